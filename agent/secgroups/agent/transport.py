"""The channel to the controller: with the agent's certificate, read anew for every connection, or in plain text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from secgroups.agent.errors import ConfigError, StreamError

# The largest single message is a group or a server, far below this; the controller cuts the rest.
MESSAGE_BYTES_MAX = 64 << 20
# What the controller may send ahead of what was read: some messages of a snapshot, so that a long line is filled.
_LOOKAHEAD_BYTES = 1 << 20
_OPTIONS = (
    # Not measured by a ping for every update, which the controller of a thousand agents would have to answer.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _LOOKAHEAD_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)
# What a Unix socket's controller is called in its certificate.
_LOCAL_NAME = (("grpc.ssl_target_name_override", "localhost"),)

OpenChannel = Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What ``sgctl agent enroll`` writes into a folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "agent.pem"

    @property
    def key(self) -> Path:
        return self.folder / "agent-key.pem"

    @property
    def authority(self) -> Path:
        """What certificates of operators are checked by."""
        path = self.folder / "authority.pem"
        # Folders from before there was one: nearly always it is what the controller is checked by as well.
        return path if path.exists() else self.folder / "ca.pem"

    def check(self) -> None:
        """Raise ConfigError, in one line, if the files can't be read."""
        try:
            self.read()
        except OSError as error:
            advice = "get them with: sgctl agent enroll AGENT_ID --out DIR (or --plaintext, for a controller without TLS)"
            raise ConfigError(f"{error.filename} can't be read: {error.strerror}; {advice}") from None

    def read(self) -> grpc.ChannelCredentials:
        """Return what they hold now. OSError if one can't be read."""
        ca, key, certificate = (path.read_bytes() for path in (self.folder / "ca.pem", self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


@asynccontextmanager
async def open_plaintext(controller: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel without TLS."""
    async with grpc.aio.insecure_channel(controller, options=_OPTIONS) as channel:
        yield channel


def open_tls(files: TlsFiles) -> OpenChannel:
    """Return what opens channels with the certificate that is in ``files`` then. StreamError if that can't be read."""

    @asynccontextmanager
    async def opened(controller: str) -> AsyncIterator[grpc.aio.Channel]:
        try:
            credentials = files.read()
        except OSError as error:
            raise StreamError(f"{error.filename} can't be read: {error.strerror}") from None
        options = _OPTIONS + (_LOCAL_NAME if controller.startswith("unix:") else ())
        async with grpc.aio.secure_channel(controller, credentials, options=options) as channel:
            yield channel

    return opened
