"""The agent as a process: enforces the cached state first, then serves verdicts and subscribes, until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from secgroups.agent.boot_time import next_boot_time_ns
from secgroups.agent.cache import LOCK_NAME, Cache, CachedState
from secgroups.agent.cache_writer import CacheWriter
from secgroups.agent.compiled_table import CompiledTable
from secgroups.agent.config import AgentConfig
from secgroups.agent.errors import CacheError, ConfigError, EnforcementError, EngineBrokenError
from secgroups.agent.firewall import Firewall
from secgroups.agent.kernel.enforcer import KernelEnforcer
from secgroups.agent.long_lived import LongLived
from secgroups.agent.metrics import collect
from secgroups.agent.metrics_server import Collect, MetricsServer
from secgroups.agent.reloading import Reloading
from secgroups.agent.removal_limit import RemovalLimit
from secgroups.agent.replica import Replica, held_in, mark_of
from secgroups.agent.server import AgentServer, Protected
from secgroups.agent.service_manager import READY, STOPPING, notify
from secgroups.agent.services.verdicts import Verdicts
from secgroups.agent.subscription import Identity, Subscription, connecting
from secgroups.agent.transport import OpenChannel, TlsFiles, open_plaintext, open_tls

if TYPE_CHECKING:
    from secgroups.agent.renewal import Renewal

log = structlog.get_logger(__name__)

STOP_GRACE_S = 1.0
# In the state directory, unless another folder is named.
TLS_FOLDER = "tls"


async def run_agent(config: AgentConfig, read_again: Callable[[], AgentConfig]) -> None:
    """Run until SIGTERM or SIGINT; at SIGHUP the settings are read again. ConfigError if it can't start."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, Reloading(config, read_again).reload)
    cache = Cache(Path(config.state_dir), config.agent_id)
    try:
        if config.clean_up:
            # The cache's lock is held: no agent of this folder is at work.
            await clean_up_kernel(config)
            return
        await _serve(config, cache, stopped)
    finally:
        cache.close()


async def _serve(config: AgentConfig, cache: Cache, stopped: asyncio.Event) -> None:
    state = load(cache, config.agent_id)
    table = open_table(config, state)
    firewall = Firewall(config.engine_settings(), now_ns=time.monotonic_ns(), flows=table)
    replica = Replica(firewall, RemovalLimit(config.max_removal))
    if state is not None:
        replica.restore(state.ruleset, state.store_epoch, time.monotonic_ns(), timeline_id=state.timeline_id)
    kernel = await enforce_in_kernel(config, firewall)
    try:
        await _subscribe_and_serve(config, cache, stopped, table, firewall, replica, kernel)
    finally:
        if kernel is not None:
            await kernel.stop()


async def _subscribe_and_serve(
    config: AgentConfig,
    cache: Cache,
    stopped: asyncio.Event,
    table: CompiledTable | None,
    firewall: Firewall,
    replica: Replica,
    kernel: KernelEnforcer | None,
) -> None:
    long_lived = LongLived()
    long_lived.note(replica.taken)
    writer = CacheWriter(cache, replica)
    watch = BrokenTableWatch(config, table)

    def applied() -> None:
        long_lived.note(replica.taken)
        writer.note()
        watch.note()

    watch.note()
    open_channel = open_channel_of(config)
    subscription = Subscription(
        config.controller,
        identity_of(config),
        firewall,
        replica,
        applied=applied,
        enforce=partial(_enforce, kernel, firewall) if kernel is not None else None,
        reconnect_min_s=config.reconnect_min_s,
        reconnect_max_s=config.reconnect_max_s,
        connect=connecting(open_channel),
    )
    verdicts = Verdicts(config.agent_id, firewall, replica, subscription, kernel=kernel)
    server = AgentServer(config.listen, verdicts, protected_by(config))
    await server.start()
    read = partial(collect, firewall, replica, subscription, writer, time.monotonic_ns, program_version(), kernel)
    metrics = serve_metrics(config, read)
    background: list[asyncio.Task[None]] = [asyncio.create_task(subscription.run()), asyncio.create_task(writer.run())]
    if not config.plaintext:
        background.append(asyncio.create_task(renewal_of(config, open_channel).run()))
    ended = asyncio.create_task(_wait(stopped))
    grace_s = STOP_GRACE_S
    try:
        if config.ready_file:
            write_ready_file(Path(config.ready_file), server.address, metrics.address if metrics else "")
        notify(READY)
        log.info(
            "agent_started",
            agent_id=config.agent_id,
            address=server.address,
            controller=config.controller,
            revision=replica.revision,
            servers=len(replica.ruleset.servers),
        )
        # Neither ends by itself: if one does, an error has ended it, and an agent that hears nothing more must not look alive.
        await asyncio.wait([ended, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in background:
            if task.done():
                task.result()
    except EngineBrokenError as error:
        # Said here, as for want of memory the way out may fail as well. The sooner it is started again the better.
        log.critical("engine_broken", agent_id=config.agent_id, reason=str(error))
        grace_s = 0.0
        raise
    finally:
        notify(STOPPING)
        for task in (ended, *background):
            task.cancel()
        await asyncio.gather(ended, *background, return_exceptions=True)
        if metrics is not None:
            await metrics.stop()
        await server.stop(grace_s)
        await writer.finish()
    log.info("agent_stopped", agent_id=config.agent_id, revision=replica.revision)


def open_channel_of(config: AgentConfig) -> OpenChannel:
    """Return what opens channels to the controller. ConfigError if there is no certificate to show."""
    if config.plaintext:
        return open_plaintext
    files = tls_files_of(config)
    files.check()
    return open_tls(files)


def tls_files_of(config: AgentConfig) -> TlsFiles:
    """Return the files with which the agent shows who it is."""
    return TlsFiles(Path(config.tls_dir) if config.tls_dir else Path(config.state_dir) / TLS_FOLDER)


def protected_by(config: AgentConfig) -> Protected | None:
    """Return how verdicts are protected, None where only this host can ask. ConfigError if there is no certificate to show."""
    if not config.answers_with_tls:
        return None
    # To import what reads certificates takes a while.
    from secgroups.agent.callers import Callers
    from secgroups.agent.server_files import ServerFiles

    return Protected(ServerFiles(tls_files_of(config)).credentials(), Callers(config.agent_id))


def renewal_of(config: AgentConfig, open_channel: OpenChannel) -> Renewal:
    """Return what keeps the agent's certificate good."""
    # Without TLS there is nothing to sign, and to import what signs takes a while.
    from secgroups.agent.renewal import Renewal

    return Renewal(config.agent_id, config.controller, tls_files_of(config), open_channel, random.uniform)


async def enforce_in_kernel(config: AgentConfig, firewall: Firewall) -> KernelEnforcer | None:
    """Have the kernel enforce what ``firewall`` has in force, if that is wanted. ConfigError if it can't be."""
    if not config.enforce:
        return None
    kernel = KernelEnforcer(config.kernel_settings())
    try:
        await kernel.start(firewall.ruleset)
    except EnforcementError as error:
        await kernel.stop()
        raise ConfigError(f"enforce {config.enforce}: {error}") from None
    return kernel


async def _enforce(kernel: KernelEnforcer, firewall: Firewall) -> None:
    await kernel.apply(firewall.ruleset)


async def clean_up_kernel(config: AgentConfig) -> None:
    """Remove from the kernel what an agent has put there. ConfigError if that can't be done."""
    try:
        await KernelEnforcer(config.kernel_settings()).clean_up()
    except (EnforcementError, OSError) as error:
        raise ConfigError(f"clean_up: {error}") from None
    log.info("kernel_cleaned_up", agent_id=config.agent_id)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def load(cache: Cache, agent_id: str) -> CachedState | None:
    """Return the cached state; a damaged one is set aside and said so, and the agent starts empty. ConfigError as of the cache."""
    try:
        return cache.load()
    except CacheError as error:
        aside = ""
        with suppress(OSError):
            aside = str(cache.set_aside())
        log.error("cache_set_aside", agent_id=agent_id, reason=str(error), file=aside)  # noqa: TRY400
        return None


def open_table(config: AgentConfig, state: CachedState | None) -> CompiledTable | None:
    """Return the flow table that an earlier process may have left, None if flows are not kept. ConfigError if it can't be made.

    ``state`` is what will be enforced: if the flows were judged by just that, they are not judged again.
    """
    if not config.flow_table:
        return None
    table = CompiledTable(config.engine_settings(), time.monotonic_ns(), Path(config.flow_table))
    if table.refused:
        log.error("flow_table_refused", agent_id=config.agent_id, file=config.flow_table, reason=table.refused)
    same = state is not None and table.inherit(state.ruleset, mark_of(state.store_epoch, state.timeline_id, held_in(state.ruleset)))
    log.info(
        "flow_table_opened",
        agent_id=config.agent_id,
        file=config.flow_table,
        entries=len(table),
        dropped=table.dropped,
        judged_by_cached_state=same,
    )
    return table


class BrokenTableWatch:
    """Says once that the flows will not outlive this process, if that comes to pass."""

    def __init__(self, config: AgentConfig, table: CompiledTable | None) -> None:
        self._config = config
        self._table = table

    def note(self) -> None:
        """Look at the table after what is in force has changed: that is when its file is written to."""
        if self._table is not None and self._table.broken:
            log.error(
                "flow_table_given_up", agent_id=self._config.agent_id, file=self._config.flow_table, reason=self._table.broken
            )
            self._table = None


def identity_of(config: AgentConfig) -> Identity:
    """Return who this start of the agent is. The lock of its folder, which is this process's by now, tells of the starts before."""
    boot_time_ns = next_boot_time_ns(Path(config.state_dir) / LOCK_NAME, time.time_ns())
    return Identity(agent_id=config.agent_id, boot_id=str(uuid.uuid4()), boot_time_ns=boot_time_ns, version=program_version())


def serve_metrics(config: AgentConfig, read: Collect) -> MetricsServer | None:
    """Answer Prometheus, if that is wanted. ConfigError if it can't be."""
    return MetricsServer(config.metrics_listen, read, asyncio.get_running_loop()) if config.metrics_listen else None


def write_ready_file(path: Path, address: str, metrics_address: str) -> None:
    """Tell whoever started this agent that it serves, and where; all at once. ConfigError if that can't be written."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps({"address": address, "metrics_address": metrics_address}) + "\n")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"ready_file {path} can't be written: {error.strerror}") from None


def program_version() -> str:
    """Return the version of this program, empty if it is not installed."""
    try:
        return version("secgroups")
    except PackageNotFoundError:
        return ""
