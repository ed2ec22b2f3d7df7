"""Why a controller does not answer: looked at step by step, from its name to its certificate."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

from secgroups.cli.diagnosis.finding import Finding
from secgroups.cli.security import SYSTEM_CA

PROBE_TIMEOUT_S = 3.0
# The controller renews its own certificate long before that.
EXPIRY_MIN_S = 14 * 86_400.0
CERTIFICATE_ENDS = "CERTIFICATE_ENDS"
_UNREACHABLE = "CONTROLLER_UNREACHABLE"


def look_at_address(address: str, ca: str | None) -> Finding | None:
    """Return what stands in the way to ``address`` (HOST:PORT or unix:PATH), None if nothing does up to a TLS connection.

    ``ca`` is PEM or "system"; None for plain text. Waits a few times ``PROBE_TIMEOUT_S`` at most.
    """
    if address.startswith("unix:"):
        return _look_at_socket(Path(address.removeprefix("unix:")))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S) as connection:
            return _look_at_plaintext(address, connection) if ca is None else _look_at_tls(address, host, ca, connection)
    except socket.gaierror as error:
        return _unreachable(f"the name {host} can't be resolved: {error.strerror}", "correct the address, or make the name known")
    except TimeoutError:
        return _unreachable(
            f"nothing answers at {address} within {PROBE_TIMEOUT_S:g} s",
            "see whether the machine is up, and whether a firewall on the way lets this port pass",
        )
    except OSError as error:
        return _unreachable(
            f"{address} can't be connected to: {error.strerror}",
            "start the controller, or see where it listens: --listen, and address in its log",
        )


def _look_at_socket(path: Path) -> Finding | None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            probe.connect(str(path))
    except OSError as error:
        advice = "start the controller, or see where it listens: --listen, and address in its log"
        if isinstance(error, PermissionError):
            advice = "run this as the controller's user"
        return _unreachable(f"{path} can't be connected to: {error.strerror or error}", advice)
    return None


def _look_at_tls(address: str, host: str, ca: str, connection: socket.socket) -> Finding | None:
    try:
        context = ssl.create_default_context(cadata=None if ca == SYSTEM_CA else ca)
    except ssl.SSLError as error:
        return _unreachable(f"the authority's certificate (--ca-file) is none: {error.reason}", "take ca.pem of the controller")
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            certificate = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Finding(
            what="CONTROLLER_CERTIFICATE",
            text=f"the certificate that {address} shows does not count: {error.verify_message}",
            advice="take this controller's ca.pem, start it with --tls-names for the name you call it by, compare the clocks",
        )
    except (ssl.SSLError, ConnectionError):
        return _unreachable(
            f"{address} does not speak TLS", "is it started with --plaintext, or is that the port of something else?"
        )
    left_s = ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()
    if left_s >= EXPIRY_MIN_S:
        return None
    return Finding(
        what=CERTIFICATE_ENDS,
        text=f"the certificate that {address} shows ends in {left_s / 86_400:.0f} days",
        advice="renew it: --tls-cert and --tls-key are read again when the files change; its own a controller renews by itself",
    )


def _look_at_plaintext(address: str, connection: socket.socket) -> Finding | None:
    context = ssl.create_default_context()
    # Who it is does not matter: only whether it speaks TLS.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except OSError:
        # Among them are those of TLS.
        return None
    return _unreachable(f"{address} speaks TLS", "call it without --plaintext (SECGROUPS_PLAINTEXT)")


def _unreachable(text: str, advice: str) -> Finding:
    return Finding(what=_UNREACHABLE, text=text, advice=advice)
