"""TLS of the listening addresses: files that are read again when they change, without a restart."""

from __future__ import annotations

from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from secgroups.controller.errors import ConfigError

log = structlog.get_logger(__name__)


class ServerFiles:
    """A certificate and its key; ``client_ca`` is what clients must show a certificate of, None if they need none."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read them. ConfigError, in one line, if they can't be used."""
        self._paths = [certificate, key, *([client_ca] if client_ca else [])]
        self._asks_clients = client_ca is not None
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a server listens with. Files that have changed count from the next connection on."""
        return grpc.dynamic_ssl_server_credentials(self._configuration, self._find_changed, self._asks_clients)  # type: ignore[arg-type]

    def _find_changed(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            if self._stamp == self._stamp_now():
                return None
            self._configuration = self._read()
        except (ConfigError, OSError) as error:
            # What was in use stays: somebody is in the middle of writing, or has made a mistake.
            log.error("certificate_not_reloaded", reason=str(error))  # noqa: TRY400
            return None
        log.info("certificate_reloaded", file=str(self._paths[0]))
        return self._configuration

    def _stamp_now(self) -> tuple[tuple[int, int], ...]:
        return tuple((found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in self._paths))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            stamp = self._stamp_now()
            certificate, key, *client_ca = [path.read_bytes() for path in self._paths]
        except OSError as error:
            raise ConfigError(f"{error.filename} can't be read: {error.strerror}") from None
        try:
            # gRPC would say so to each client, and nothing to anybody else.
            public = x509.load_pem_x509_certificate(certificate).public_key()
            matching = public == serialization.load_pem_private_key(key, None).public_key()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self._paths[0]} and {self._paths[1]} are no certificate and key in PEM: {error}") from None
        if not matching:
            raise ConfigError(f"{self._paths[0]} and {self._paths[1]} do not belong together")
        self._stamp = stamp
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)
