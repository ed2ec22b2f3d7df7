"""All of trust that a controller with TLS has, put together: authority, credentials, door, gate, and what changes them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from secgroups.controller.clocks import SYSTEM_CLOCKS
from secgroups.controller.errors import ConfigError
from secgroups.controller.services.trust import TrustService
from secgroups.controller.trust.authority import Authority
from secgroups.controller.trust.credentials import Credentials
from secgroups.controller.trust.door import Door
from secgroups.controller.trust.gate import Gate, Sessions
from secgroups.controller.trust.operator_token import make_operator_token
from secgroups.controller.trust.quotas import CallRates
from secgroups.controller.trust.transport import ServerFiles

if TYPE_CHECKING:
    import grpc

    from secgroups.controller.config import ControllerConfig
    from secgroups.controller.core import Core
    from secgroups.controller.metrics import Counts

log = structlog.get_logger(__name__)

FOLDER = "trust"
# Who makes it, in the change log.
OWN_ACTOR = "controller"
# One that is well makes a call when it connects and one a year to renew its certificate.
CALLS_PER_S_OF_AGENT = 100
RENEWAL_S = 24 * 3600.0


class Trust:
    """Made when ``core`` is. ConfigError, in one line, if certificates can't be read or made."""

    def __init__(self, core: Core, data_dir: Path, config: ControllerConfig, counts: Counts) -> None:
        names = {name.strip() for name in config.tls_names.split(",") if name.strip()} | _listened_names(config)
        self._authority = Authority(data_dir / FOLDER, names)
        self._config = config
        sessions = Sessions(config.streams_per_principal)
        self._credentials = Credentials(core, SYSTEM_CLOCKS.now_us, sessions.end)
        rates = CallRates(config.calls_per_s, SYSTEM_CLOCKS.monotonic_ns)
        agent_rates = CallRates(CALLS_PER_S_OF_AGENT, SYSTEM_CLOCKS.monotonic_ns)
        # What a second has room for, on top of what goes on.
        calls_max = config.calls_per_s + config.streams_per_principal
        self.door = Door(self._credentials, rates, agent_rates, calls_max, counts)
        self.gate = Gate(self._credentials, sessions)
        ca_pem = self._authority.ca_pem
        if config.tls_cert:
            certificate, key = Path(config.tls_cert), Path(config.tls_key)
            if config.tls_ca:
                try:
                    ca_pem = Path(config.tls_ca).read_bytes()
                except OSError as error:
                    raise ConfigError(f"tls_ca {config.tls_ca} can't be read: {error.strerror}") from None
        else:
            certificate, key = self._authority.server_paths
        self._files = certificate, key
        self.service = TrustService(self._credentials, self._authority, ca_pem)
        self._renewal: asyncio.Task[None] | None = None

    def for_clients(self) -> grpc.ServerCredentials:
        """Return TLS for those who have tokens."""
        return ServerFiles(*self._files).credentials()

    def for_agents(self) -> grpc.ServerCredentials:
        """Return TLS for those who show certificates of the authority."""
        return ServerFiles(*self._files, self._authority.ca_path).credentials()

    async def start(self) -> None:
        """Make the operator's token if no admin has one, and renew the server's certificate from now on."""
        if not self._credentials.has_admin():
            path, now_us = self._authority.operator_token_path, SYSTEM_CLOCKS.now_us()
            await make_operator_token(path, self._credentials, now_us, actor=OWN_ACTOR)
        log.info("trust_ready", ca=str(self._authority.ca_path), operator_token=str(self._authority.operator_token_path))
        self._renewal = asyncio.create_task(self._renew())

    async def stop(self) -> None:
        """End what goes on."""
        if self._renewal is not None:
            self._renewal.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewal
        await self._credentials.close()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_S)
            try:
                await asyncio.to_thread(self._authority.renew)
            except ConfigError as error:
                log.error("certificate_not_renewed", reason=str(error))  # noqa: TRY400


def _listened_names(config: ControllerConfig) -> set[str]:
    """Return the hosts that are listened on by name or address, unless that is every address."""
    listened = (config.listen, config.agent_listen, config.admin_listen)
    hosts = {each.rpartition(":")[0].strip("[]") for each in listened if not each.startswith("unix:")}
    return hosts - {"0.0.0.0", "::", ""}  # noqa: S104
