"""The private certificate authority of a controller, and the files that it keeps for itself and its operator.

In the folder ``trust`` of the data directory: ``ca.pem`` and ``ca-key.pem``, ``server.pem`` and ``server-key.pem``,
``operator.token``. All are made at the first start, readable by their owner alone. The server's certificate is made anew when it
ends soon or other names are wanted. Lifetimes are those usual for private authorities: ten years for the authority, one for what it
issues.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secgroups.controller.errors import ConfigError, InvalidError

AUTHORITY_DAYS = 3_650
ISSUED_DAYS = 365
# A certificate of the server's own that ends sooner is replaced at the next start, and once a day.
RENEW_DAYS = 120
# Clocks of others may be behind.
BACKDATED = timedelta(minutes=5)
CSR_BYTES_MAX = 16 << 10
EC_BITS_MIN = 256
RSA_BITS_MIN, RSA_BITS_MAX = 2_048, 8_192
# By the certificate itself: a URI is the one kind of name in which every agent id fits, percent-encoded where it is no plain ASCII.
AGENT_URI = "secgroups://agent/"
OPERATOR_URI = "secgroups://operator/"
# Agents know of no revocations: what they are shown has to end by itself.
OPERATOR_LIFETIME = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate for an agent or an operator. ``serial`` in lower-case hexadecimal."""

    certificate_pem: bytes
    serial: str
    issued_us: int
    expires_us: int


class Authority:
    """The files in ``folder``, made if they are not there. ConfigError if they can't be read, made or used."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._names = sorted({*_own_names(), *names})
        with self._problems_told():
            folder.mkdir(mode=0o700, exist_ok=True)
            # One that was copied from elsewhere may be open to others, and in it lies what signs for every agent.
            if folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
            self._certificate, self._key = self._load_or_make()
        self.renew()

    @contextmanager
    def _problems_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            file = f" ({error.filename})" if error.filename not in (None, str(self._folder)) else ""
            raise ConfigError(f"trust folder {self._folder} can't be used: {error.strerror}{file}") from None
        except (ValueError, TypeError) as error:
            what = f"holds what is no certificate or key ({error})"
            raise ConfigError(f"trust folder {self._folder} {what}; restore it from a backup") from None

    @property
    def ca_path(self) -> Path:
        return self._folder / "ca.pem"

    @property
    def ca_pem(self) -> bytes:
        """What others check the controller, and the controller agents, by."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def server_paths(self) -> tuple[Path, Path]:
        """The server's certificate and its key."""
        return self._folder / "server.pem", self._folder / "server-key.pem"

    @property
    def operator_token_path(self) -> Path:
        return self._folder / "operator.token"

    def issue(self, agent_id: str, csr_pem: str) -> Issued:
        """Return a certificate for the key of a request. InvalidError if that is none, or of a kind that is too weak."""
        key = _key_of(csr_pem)
        names = [x509.UniformResourceIdentifier(agent_uri(agent_id)), x509.DNSName(agent_server_name(agent_id))]
        # An agent that answers elsewhere than on its own host is a server too.
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        return self._issue(agent_id, key, timedelta(days=ISSUED_DAYS), names, purposes)

    def issue_operator(self, token_id: str, csr_pem: str) -> Issued:
        """Return a short-lived certificate for the holder of a token of role admin. InvalidError as above."""
        names = [x509.UniformResourceIdentifier(OPERATOR_URI + quote(token_id, safe=""))]
        return self._issue(token_id, _key_of(csr_pem), OPERATOR_LIFETIME, names, [ExtendedKeyUsageOID.CLIENT_AUTH])

    def _issue(
        self,
        name: str,
        key: _PublicKey,
        lifetime: timedelta,
        names: Sequence[x509.GeneralName],
        purposes: Sequence[x509.ObjectIdentifier],
    ) -> Issued:
        begin, end = _span(lifetime)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        made = self._builder(subject, key, begin, end, names, purposes).sign(self._key, hashes.SHA256())
        return Issued(
            certificate_pem=made.public_bytes(serialization.Encoding.PEM),
            serial=f"{made.serial_number:x}",
            issued_us=int(begin.timestamp() * 1_000_000),
            expires_us=int(end.timestamp() * 1_000_000),
        )

    def _load_or_make(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key_path = self._folder / "ca-key.pem"
        # A key alone is left by a first start that was cut off. A certificate alone is one that others trust.
        if self.ca_path.exists():
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError("ca-key.pem is no EC key")
            certificate = x509.load_pem_x509_certificate(self.ca_path.read_bytes())
            if certificate.public_key() != key.public_key():
                raise ValueError("ca.pem and ca-key.pem do not belong together")
            return certificate, key
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"secgroups {x509.random_serial_number() >> 120:x}")])
        begin, end = _span(timedelta(days=AUTHORITY_DAYS))
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The key first: with a certificate whose key is missing, everybody would trust what nobody can use.
        write_private(key_path, _key_pem(key))
        write_private(self.ca_path, made.public_bytes(serialization.Encoding.PEM))
        return made, key

    def renew(self) -> None:
        """Make the server's certificate anew if it ends soon or lacks a name. ConfigError."""
        with self._problems_told():
            self._renew_server()

    def _renew_server(self) -> None:
        names = self._names
        certificate_path, key_path = self.server_paths
        held = _find_pair(certificate_path, key_path)
        if held is not None:
            left = held.not_valid_after_utc - datetime.now(UTC)
            if left > timedelta(days=RENEW_DAYS) and set(_names_of(held)) >= set(names) and self._issued(held):
                return
        key = ec.generate_private_key(ec.SECP256R1())
        begin, end = _span(timedelta(days=ISSUED_DAYS))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secgroups controller")])
        made = self._builder(
            subject, key.public_key(), begin, end, [_general_name(name) for name in names], [ExtendedKeyUsageOID.SERVER_AUTH]
        ).sign(self._key, hashes.SHA256())
        write_private(key_path, _key_pem(key))
        write_private(certificate_path, made.public_bytes(serialization.Encoding.PEM))

    def _issued(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _builder(
        self,
        subject: x509.Name,
        key: _PublicKey,
        begin: datetime,
        end: datetime,
        names: Sequence[x509.GeneralName],
        purposes: Sequence[x509.ObjectIdentifier],
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def agent_uri(agent_id: str) -> str:
    """Return the name of an agent in its certificate."""
    return AGENT_URI + quote(agent_id, safe="")


def agent_server_name(agent_id: str) -> str:
    """Return the name of an agent, as one that answers, in its certificate: of a form that no host has, whatever the id."""
    return f"{hashlib.sha256(agent_id.encode()).hexdigest()[:40]}.agent.secgroups.internal"


def find_agent_id(certificate: x509.Certificate) -> str | None:
    """Return the agent that a certificate names, None if it names none, or several, or in another form than ``agent_uri`` gives."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(AGENT_URI):
        return None
    agent_id = unquote(uris[0].removeprefix(AGENT_URI))
    return agent_id if agent_id and agent_uri(agent_id) == uris[0] else None


_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, all at once and for good. OSError if that can't be."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    # Nobody may have put something there before, to read from it what is written.
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _find_pair(certificate_path: Path, key_path: Path) -> x509.Certificate | None:
    """Return a certificate that lies beside its key; None if one is missing or damaged, or they do not belong together."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return certificate if certificate.public_key() == key.public_key() else None


def _span(lifetime: timedelta) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now - BACKDATED, now + lifetime


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def _own_names() -> list[str]:
    """Return under which names this host is reached."""
    host = socket.gethostname()
    return ["localhost", "127.0.0.1", "::1", *([host] if host.isascii() and host else [])]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _key_of(csr_pem: str) -> _PublicKey:
    if len(csr_pem) > CSR_BYTES_MAX:
        raise InvalidError("csr_pem", f"has {len(csr_pem)} characters, the most allowed is {CSR_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        sound = request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise InvalidError("csr_pem", f"is no PKCS #10 request in PEM: {error}") from None
    if not sound:
        raise InvalidError("csr_pem", "is not signed with the key that it names")
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.key_size >= EC_BITS_MIN:
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            return key
    raise InvalidError("csr_pem", "has a key that is none of EC P-256 or larger, Ed25519, RSA of 2,048 to 8,192 bits")
