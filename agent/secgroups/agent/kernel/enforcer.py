"""Keeps the kernel enforcing what the agent has in force.

**Tables.** Ours are ``inet secgroups-a`` and ``inet secgroups-b``, of which one is hooked. A change is made in place. When nothing
is known of what is there (at the start, after a failure, after somebody has touched it) the whole is built in the other table,
which no packet meets, and one transaction hooks that and removes the old: there is no moment without rules, none with half of them.

**Epochs.** A table begins without: every packet is judged by the rules, no connection is stamped. Then our bits of all connection
marks are cleared, and only then epochs are given out, from the first. So it does not matter what an earlier agent, another mask or
a removed table left in the marks. The same is done when all epochs have been used: while it lasts, packets cost more, nothing else.

**Why no packet slips through.** A connection passes without being judged only if its mark names an epoch that is current. An epoch
is written to a mark only by the chain that has just found the connection allowed. A packet that is still on its way through the
chains of before writes the epoch of before, which is never current again until all marks have been cleared. Two processors that
write one mark at the same time can only bring back an older value of a half: not current, so judged again. Foreign bits come
through as they were read in the same step.

**Why none is lost.** Judging looks at the opening packet's tuple, which conntrack keeps with the connection, for packets of both
directions; what the rules in force allow passes, whatever its mark is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from secgroups.agent.errors import EnforcementError, ListingError
from secgroups.agent.flow import Direction, Reason
from secgroups.agent.kernel.conntrack import clear_marks
from secgroups.agent.kernel.counter_dump import read_counters
from secgroups.agent.kernel.counters import KernelCounters, KernelCounts
from secgroups.agent.kernel.denials import denials_told
from secgroups.agent.kernel.nft import Nft
from secgroups.agent.kernel.plan import Installed, Plan, Planner
from secgroups.agent.kernel.policy import Compiler, Target
from secgroups.agent.kernel.settings import KernelSettings, Told
from secgroups.agent.kernel.skeleton import Features, hooks, skeleton
from secgroups.agent.kernel.sole import Sole
from secgroups.agent.kernel.statements import Table
from secgroups.agent.kernel.verify import differences, shape_of_commands, shape_of_listing
from secgroups.agent.kernel.watch import Culprit, TableWatch
from secgroups.agent.ruleset import Ruleset

log = structlog.get_logger(__name__)

TABLE_PREFIX = "secgroups-"
TABLES = (f"{TABLE_PREFIX}a", f"{TABLE_PREFIX}b")
# What somebody keeps changing is put back this often at most.
RESTORE_PAUSE_S = 0.2


class KernelEnforcer:
    """The nftables tables of one agent, in the network namespace of this process. For one event loop."""

    def __init__(self, settings: KernelSettings, nft: Nft | None = None) -> None:
        self._settings = settings
        self._nft = nft or Nft()
        self._features = Features(marks=settings.marks, essential_services=settings.essential_services, ports=bool(settings.ports))
        self._told = Told.NOTHING
        self._compiler = Compiler()
        self._counters = KernelCounters()
        self._changing = asyncio.Lock()
        self._sole = Sole()
        # None: nothing is known of what the kernel holds.
        self._table: Table | None = None
        self._installed = Installed()
        self._wanted = Target()
        self._wanted_ruleset = self._ruleset = Ruleset()
        self._watch = TableWatch(TABLE_PREFIX, self._nft.own_pids, self._note_change)
        self._touched = asyncio.Event()
        self._culprit = Culprit(0, "")
        self._background: set[asyncio.Task[None]] = set()

    @property
    def stamps(self) -> bool:
        """Whether connections are stamped with epochs; if not, every packet is judged by the rules."""
        return self._table is not None and self._installed.next_epochs is not None

    @property
    def revision(self) -> int:
        """The revision that the kernel enforces."""
        return self._installed.target.revision

    @property
    def ruleset(self) -> Ruleset:
        """What the kernel enforces, as far as this agent has told it to."""
        return self._ruleset

    @property
    def settings(self) -> KernelSettings:
        """What it was made with."""
        return self._settings

    async def start(self, ruleset: Ruleset) -> None:
        """Enforce ``ruleset`` and watch over it from now on. EnforcementError if it can't be; what is there stays then.

        An agent that has lost what it knew (revision 0) leaves in force what an earlier one has put there, until it knows better.
        """
        self._sole.take()
        try:
            self._watch.start()
        except OSError as error:
            raise EnforcementError(f"changes of nftables can't be heard of: {error.strerror} (CAP_NET_ADMIN is needed)") from None
        self._run(self._restore_what_is_touched())
        if bridged := self._settings.bridged_ports():
            log.error("kernel_interfaces_bridged", interfaces=bridged, consequence="servers are not held to these interfaces")
        if ruleset.revision == 0 and (kept := await self._hooked_tables()):
            log.warning("kernel_table_kept", table=min(kept), reason="no rules are held, those of an earlier agent stay in force")
            return
        await self.apply(ruleset)

    async def apply(self, ruleset: Ruleset) -> None:
        """Enforce ``ruleset``. EnforcementError if it can't be: what was enforced before still is."""
        async with self._changing:
            before = self._wanted.shared
            self._wanted, self._wanted_ruleset = self._compiler.target(ruleset), ruleset
            if ambiguous := self._wanted.shared - before:
                log.error(
                    "kernel_addresses_shared", addresses=sorted(map(str, ambiguous)), consequence="nothing passes to or from them"
                )
            try:
                await self._enforce_wanted()
            except EnforcementError as error:
                log.error("kernel_refused", revision=ruleset.revision, revision_in_force=self.revision, reason=str(error))  # noqa: TRY400
                raise

    async def counts(self) -> KernelCounts:
        """Return what the kernel has counted until now. EnforcementError if it can't be read."""
        async with self._changing:
            listed = await self._nft.find_table(self._table.name) if self._table is not None else None
            return self._counters.take(listed or ())

    def denied(self) -> Mapping[Reason, int]:
        """Return how many packets the kernel has denied until now, by reason: a small part of ``counts``, and cheap.

        What can't be read now counts the next time.
        """
        shown: dict[str, int] = {}
        if self._table is not None:
            with suppress(OSError):
                shown = read_counters(self._table.name)
        return self._counters.take_denials(self._table.name if self._table is not None else "", shown)

    async def tell(self, told: Told) -> None:
        """Have the kernel tell its log group of such packets from now on. EnforcementError if it can't; then all is as it was."""
        async with self._changing:
            if self._told is told:
                return
            log_group = self._settings.log_group if told >= Told.DENIALS else None
            if self._table is not None:
                openings = self._planner(self._table, told).openings_told(self._installed)
                await self._nft.change([*denials_told(self._table, log_group), *openings])
            self._told, self._features = told, replace(self._features, log_group=log_group)

    async def stop(self) -> None:
        """Leave the kernel as it is, enforcing, and end what goes on here."""
        self._watch.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._sole.give_up()

    async def clean_up(self) -> None:
        """Remove our tables and our bits of all marks: nothing is enforced any more. EnforcementError, OSError if it can't be."""
        self._sole.take()
        async with self._changing:
            self._table = None
            await self._nft.change([command for name in TABLES for command in Table(name).remove()])
            await asyncio.to_thread(clear_marks, self._settings.marks.mask)
        self._sole.give_up()

    async def _enforce_wanted(self) -> None:
        if self._table is None:
            await self._build()
            return
        plan = self._planner(self._table).change(self._installed, self._wanted)
        await self._carry_out(plan)
        self._ruleset = self._wanted_ruleset
        if self._should_begin_again(plan.installed):
            await self._carry_out(self._planner(self._table).without_epochs(self._installed))
            self._run(self._give_epochs(self._table))

    async def _carry_out(self, plan: Plan) -> None:
        try:
            await self._nft.change(plan.prepare)
            await self._nft.change(plan.flip)
        except BaseException:
            # What was prepared may be there: the next attempt builds all of it elsewhere.
            self._table = None
            raise
        self._installed = plan.installed

    async def _build(self) -> None:
        hooked = await self._hooked_tables()
        name = next((name for name in TABLES if name not in hooked), TABLES[0])
        table = Table(name)
        plan = self._planner(table).change(Installed(), self._wanted)
        await self._nft.change([*table.remove(), *skeleton(table, self._features), *plan.prepare, *plan.flip])
        others = [command for other in TABLES if other != name for command in Table(other).remove()]
        await self._nft.change([*hooks(table, self._features), *others])
        self._table, self._installed, self._ruleset = table, plan.installed, self._wanted_ruleset
        self._counters.begin(name)
        log.info("kernel_table_built", table=name, revision=self.revision, addresses=len(self._wanted.guarded))
        self._run(self._give_epochs(table))

    async def _hooked_tables(self) -> set[str]:
        return {table for table, _ in await self._nft.base_chains() if table in TABLES}

    async def _give_epochs(self, table: Table) -> None:
        """Clear all marks, then let connections be stamped; until then all packets are judged by the rules."""
        try:
            cleared = await asyncio.to_thread(clear_marks, self._settings.marks.mask)
        except OSError as error:
            log.warning("kernel_marks_not_cleared", reason=str(error), consequence="every packet is judged by the rules")
            return
        async with self._changing:
            if self._table is not table or self._installed.next_epochs is not None:
                return
            try:
                await self._carry_out(self._planner(table).with_epochs(self._installed))
            except EnforcementError as error:
                log.warning("kernel_epochs_not_given", reason=str(error), consequence="every packet is judged by the rules")
                return
        log.info("kernel_epochs_given", table=table.name, marks_cleared=cleared)

    def _should_begin_again(self, installed: Installed) -> bool:
        """Whether epochs have run out and most would be free again. With more policies than that some go without for good."""
        marks = self._settings.marks
        half = min(marks.field(direction).epochs_max for direction in Direction) // 2
        return installed.out_of_epochs(marks) and len(installed.sides) // 2 <= half

    def _note_change(self, culprit: Culprit) -> None:
        self._culprit = culprit
        self._touched.set()

    async def _restore_what_is_touched(self) -> None:
        while True:
            await self._touched.wait()
            self._touched.clear()
            culprit = self._culprit
            async with self._changing:
                try:
                    await self._restore(culprit)
                except EnforcementError as error:
                    log.error("kernel_table_not_restored", reason=str(error))  # noqa: TRY400
                    self._touched.set()
            await asyncio.sleep(RESTORE_PAUSE_S)

    async def _restore(self, culprit: Culprit) -> None:
        table = self._table
        if table is None and self._wanted.revision == 0:
            return
        if table is not None:
            found = await self._differences(table)
            if not found:
                return
            log.error("kernel_table_changed", table=table.name, found=found, by=culprit.name, pid=culprit.pid)
            self._table = None
        await self._build()
        log.error("kernel_table_restored", revision=self.revision)

    async def _differences(self, table: Table) -> list[str]:
        try:
            listed = await self._nft.find_table(table.name)
        except ListingError as error:
            # As nft 1.0.6 does when somebody has given the table flags.
            return [str(error)]
        if listed is None:
            return [f"table {table.name} is gone"]
        wanted = [*skeleton(table, self._features), *self._planner(table).whole(self._installed), *hooks(table, self._features)]
        return differences(shape_of_commands(wanted), shape_of_listing(listed))

    def _planner(self, table: Table, told: Told | None = None) -> Planner:
        """Return the planner of ``table``, for another ``told`` than that of now if it is given."""
        openings_to = self._settings.log_group if (self._told if told is None else told) >= Told.OPENINGS else None
        return Planner(table, self._settings.marks, self._settings.ports, openings_to)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
