"""TLS of the address where the agent answers: its own certificate, read again when its files change, without a restart."""

from __future__ import annotations

import grpc
import structlog

from secgroups.agent.errors import ConfigError
from secgroups.agent.transport import TlsFiles

log = structlog.get_logger(__name__)


class ServerFiles:
    """The files of ``files``, for a server that asks everybody for a certificate of the authority."""

    def __init__(self, files: TlsFiles) -> None:
        """Read them. ConfigError, in one line, if they can't be read."""
        self._files = files
        try:
            self._stamp, self._configuration = self._read()
        except OSError as error:
            raise ConfigError(f"{error.filename} can't be read: {error.strerror}") from None

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a server listens with. Files that have changed count from the next connection on."""
        return grpc.dynamic_ssl_server_credentials(self._configuration, self._find_changed, True)  # type: ignore[arg-type]

    def _find_changed(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            if self._stamp == self._stamp_now():
                return None
            self._stamp, self._configuration = self._read()
        except OSError as error:
            # What was in use stays: somebody is in the middle of writing.
            log.error("certificate_not_reloaded", reason=f"{error.filename} can't be read: {error.strerror}")  # noqa: TRY400
            return None
        log.info("certificate_reloaded", file=str(self._files.certificate))
        return self._configuration

    def _stamp_now(self) -> tuple[tuple[int, int], ...]:
        paths = (self._files.certificate, self._files.key, self._files.authority)
        return tuple((found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in paths))

    def _read(self) -> tuple[tuple[tuple[int, int], ...], grpc.ServerCertificateConfiguration]:
        stamp = self._stamp_now()
        files = self._files
        certificate, key, authority = (path.read_bytes() for path in (files.certificate, files.key, files.authority))
        return stamp, grpc.ssl_server_certificate_configuration([(key, certificate)], authority)
