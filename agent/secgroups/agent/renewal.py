"""Renews the agent's certificate over the one that is still good, when two thirds of its life are over.

The key stays: then one file is all that changes, and it changes all at once, so that nothing that happens in between leaves a key
and a certificate that do not belong together. A key that may be known to somebody else is replaced with ``sgctl agent revoke`` and
``enroll``. The next connection shows the new certificate; the controller ends the present one when the old certificate ends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from secgroups.agent.errors import StreamError
from secgroups.agent.transport import OpenChannel, TlsFiles
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

log = structlog.get_logger(__name__)

# The files are looked at so often: somebody may have enrolled the agent anew.
LOOK_S = 3600.0
# Between attempts while the controller can't be reached, or refuses; a third of a year is left.
RETRY_S = 300.0
CALL_TIMEOUT_S = 10.0
CERTIFICATE_BYTES_MAX = 64 << 10


class RenewalError(Exception):
    """The certificate is not renewed; the message says why. What was there is still there."""


def renews_at(certificate: x509.Certificate) -> datetime:
    """Return when two thirds of a certificate's life are over."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin + (end - begin) * 2 / 3


class Renewal:
    """Keeps the certificate in ``files`` good. ``draw(low, high)`` gives a random number between its arguments."""

    def __init__(
        self,
        agent_id: str,
        controller: str,
        files: TlsFiles,
        open_channel: OpenChannel,
        draw: Callable[[float, float], float],
    ) -> None:
        self._agent_id = agent_id
        self._controller = controller
        self._files = files
        self._open_channel = open_channel
        self._draw = draw

    async def run(self) -> None:
        """Renew whenever it is time, until cancelled. What goes wrong is said, and tried again."""
        while True:
            try:
                wait_s = await self._renew_if_due()
            except RenewalError as error:
                log.error("certificate_not_renewed", agent_id=self._agent_id, reason=str(error), retry_s=RETRY_S)  # noqa: TRY400
                wait_s = RETRY_S
            # Agents that were enrolled together do not come together.
            await asyncio.sleep(self._draw(wait_s / 2, wait_s))

    async def _renew_if_due(self) -> float:
        """Return after how long to look again. RenewalError."""
        held = await asyncio.to_thread(self._read)
        left_s = (renews_at(held[0]) - datetime.now(UTC)).total_seconds()
        if left_s > 0:
            return min(max(left_s, 1.0), LOOK_S)
        made = await self._ask(*held)
        try:
            await asyncio.to_thread(_replace, self._files.certificate, made.public_bytes(serialization.Encoding.PEM))
        except OSError as error:
            raise RenewalError(f"{self._files.certificate} can't be written: {error.strerror}") from None
        log.info("certificate_renewed", agent_id=self._agent_id, until=made.not_valid_after_utc.isoformat())
        return LOOK_S

    def _read(self) -> tuple[x509.Certificate, _PrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self._files.certificate.read_bytes())
            key = serialization.load_pem_private_key(self._files.key.read_bytes(), None)
        except OSError as error:
            raise RenewalError(f"{error.filename} can't be read: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise RenewalError(f"{self._files.folder} holds what is no certificate or key: {error}") from None
        if not isinstance(key, _PrivateKey):
            raise RenewalError(f"{self._files.key} is a key of another kind than EC, Ed25519 and RSA")
        return certificate, key

    async def _ask(self, held: x509.Certificate, key: _PrivateKey) -> x509.Certificate:
        """Return the new certificate for the key. RenewalError."""
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        asked = x509.CertificateSigningRequestBuilder().subject_name(held.subject).sign(key, algorithm)
        csr_pem = asked.public_bytes(serialization.Encoding.PEM).decode()
        request = pb.EnrollAgentRequest(agent_id=self._agent_id, csr_pem=csr_pem)
        try:
            async with self._open_channel(self._controller) as channel:
                answer = await TrustServiceStub(channel).EnrollAgent(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise RenewalError(f"{error.code().name}: {error.details()}") from None
        except StreamError as error:
            raise RenewalError(str(error)) from None
        return _checked(answer.certificate_pem, held, key)


_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def _checked(pem: str, held: x509.Certificate, key: _PrivateKey) -> x509.Certificate:
    """Return the certificate of an answer. RenewalError if it would not do in place of the one that is held."""
    if len(pem) > CERTIFICATE_BYTES_MAX:
        raise RenewalError(f"the answer has {len(pem)} characters, the most that a certificate may have is {CERTIFICATE_BYTES_MAX}")
    try:
        made = x509.load_pem_x509_certificate(pem.encode())
        fits = made.public_key() == key.public_key()
    except (ValueError, TypeError) as error:
        raise RenewalError(f"the answer is no certificate: {error}") from None
    if not fits:
        raise RenewalError("the answer is a certificate of another key")
    if made.not_valid_after_utc <= held.not_valid_after_utc:
        raise RenewalError(f"the answer is good until {made.not_valid_after_utc.isoformat()}, no longer than what is held")
    if renews_at(made) <= datetime.now(UTC) + timedelta(minutes=1):
        raise RenewalError("the answer is about to end: the clock of this machine or of the controller is wrong")
    return made


def _replace(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, all at once and for good. OSError; what was there is then still whole."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    # Nobody may have put something there before.
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
