"""Worlds in this process: for each case a fresh controller on its own file, a fresh agent, and a clock that only the case moves."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from secgroups.agent.flow import Explanation, Packet, Verdict
from secgroups.agent.ruleset import Ruleset
from secgroups.agent.settings import EngineSettings
from secgroups.controller import operations
from secgroups.controller.convert import addresses_of, group_ids_of, one_spec_of, rule_message, specs_of
from secgroups.controller.errors import ControllerError
from secgroups.controller.model import Rule as StoredRule
from secgroups.controller.model import Server
from secgroups.controller.store.interface import Transaction
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.lab.cases.bench import Clock, engine_settings
from secgroups.lab.cases.in_process import AGENT_ID, LabAgent, LabController, Stream, error_text, fresh_ruleset
from secgroups.lab.cases.model import DEFAULT_GROUP, Case
from secgroups.lab.cases.world import FlowAnswer, FlowQuestion, Holdings, OutOfStepError, RefusedError
from secgroups.v1.types_pb2 import Rule, RuleSpec

T = TypeVar("T")

# When a case begins, in microseconds since the Unix epoch. The store's clock goes with the engine's.
_BEGIN_US = 1_700_000_000_000_000

# Where files live in memory; TemporaryDirectory makes a folder in it that is nobody else's.
_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108


class LocalWorlds:
    """Makes worlds; a context manager that removes their files. A migrated empty database is copied for each."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        in_memory = str(_MEMORY_FOLDER) if _MEMORY_FOLDER.is_dir() else None
        self._folder = tempfile.TemporaryDirectory(prefix="secgroups-test-", dir=in_memory)
        self._template = Path(self._folder.name) / "template.db"
        self._made = 0

    def __enter__(self) -> Self:
        SqliteStore(self._template, durable=False).close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def make(self, case: Case) -> LocalWorld:
        """Return a new world for ``case``."""
        self._made += 1
        folder = Path(self._folder.name) / str(self._made)
        folder.mkdir()
        path = folder / "secgroups.db"
        shutil.copyfile(self._template, path)
        return LocalWorld(path, engine_settings(case.settings), self._engine)


class LocalWorld:
    """One world; see ``world.World``."""

    def __init__(self, path: Path, settings: EngineSettings, engine: str) -> None:
        self._folder = path.parent
        self._clock = Clock()
        self._controller = LabController(path, lambda: _BEGIN_US + self._clock.now_ns // 1000)
        self._agent = LabAgent(settings, engine, self._clock.now_ns)
        self._connect()

    def _connect(self) -> None:
        self._stream = Stream(self._controller.publisher, self._agent, self._clock.now_ns)
        self._pump()

    def _pump(self) -> None:
        self._stream.pump(self._clock.now_ns)
        self._to_compare = True

    def _compare(self) -> None:
        """What came in steps must be what a snapshot would say: what is in force depends on the stored state alone."""
        if not self._to_compare:
            return
        should, held = _in_force(fresh_ruleset(self._controller)), _in_force(self._agent.firewall.ruleset)
        if should != held:
            raise OutOfStepError(f"the agent holds {held}; of what is stored now it should hold {should}")
        self._to_compare = False

    def _change(self, operation: Callable[[Transaction], T]) -> T:
        try:
            made = self._controller.change(operation)
        except ControllerError as error:
            raise RefusedError(error.code, error_text(error)) from None
        self._pump()
        return made

    def find_group(self, project: str, name: str) -> str | None:
        found = self._controller.state.group_by_name(project, name)
        if found is None and name == DEFAULT_GROUP:
            found = self._change(lambda tx: operations.ensure_default_group(tx, project))
        return found.id if found else None

    def create_group(self, project: str, name: str) -> str:
        return self._change(lambda tx: operations.create_group(tx, project=project, name=name)).id

    def rename_group(self, project: str, group_id: str, name: str) -> None:
        self._change(lambda tx: operations.update_group(tx, project=project, group_id=group_id, name=name))

    def delete_group(self, project: str, group_id: str) -> None:
        self._change(lambda tx: operations.delete_group(tx, project=project, group_id=group_id))

    def rules(self, project: str, group_id: str) -> list[Rule]:
        return [rule_message(rule) for rule in self._controller.state.rules_of_group(group_id)]

    def create_rule(self, project: str, group_id: str, spec: RuleSpec) -> str:
        def create(tx: Transaction) -> list[StoredRule]:
            return operations.create_rules(tx, project=project, group_id=group_id, specs=[one_spec_of(spec)], bulk=False)

        return self._change(create)[0].id

    def create_rules(self, project: str, group_id: str, specs: Sequence[RuleSpec]) -> list[str]:
        def create(tx: Transaction) -> list[StoredRule]:
            made = specs_of(specs, fewest=1)
            return operations.create_rules(tx, project=project, group_id=group_id, specs=made, bulk=True)

        return [rule.id for rule in self._change(create)]

    def replace_rules(self, project: str, group_id: str, specs: Sequence[RuleSpec]) -> list[str]:
        def replace(tx: Transaction) -> operations.Replaced:
            return operations.replace_rules(tx, project=project, group_id=group_id, specs=specs_of(specs, fewest=0))

        return [rule.id for rule in self._change(replace).rules]

    def delete_rule(self, project: str, rule_id: str) -> None:
        self._change(lambda tx: operations.delete_rule(tx, project=project, rule_id=rule_id))

    def create_server(self, project: str, server_id: str, addresses: Sequence[str], group_ids: Sequence[str]) -> None:
        def create(tx: Transaction) -> Server:
            return operations.create_server(
                tx,
                project=project,
                server_id=server_id,
                addresses=addresses_of(addresses, tx.limits_of(project).addresses_per_server),
                agent_id=AGENT_ID,
                group_ids=group_ids_of(group_ids, tx.limits_of(project).groups_per_server),
            )

        self._change(create)

    def set_addresses(self, project: str, server_id: str, addresses: Sequence[str]) -> None:
        def update(tx: Transaction) -> Server:
            made = addresses_of(addresses, tx.limits_of(project).addresses_per_server)
            return operations.update_server(tx, project=project, server_id=server_id, addresses=made)

        self._change(update)

    def delete_server(self, project: str, server_id: str) -> None:
        self._change(lambda tx: operations.delete_server(tx, project=project, server_id=server_id))

    def attach(self, project: str, server_id: str, group_id: str) -> None:
        self._change(lambda tx: operations.attach_group(tx, project=project, server_id=server_id, group_id=group_id))

    def detach(self, project: str, server_id: str, group_id: str) -> None:
        self._change(lambda tx: operations.detach_group(tx, project=project, server_id=server_id, group_id=group_id))

    def set_groups(self, project: str, server_id: str, group_ids: Sequence[str]) -> None:
        def update(tx: Transaction) -> Server:
            return operations.set_server_groups(
                tx, project=project, server_id=server_id, group_ids=group_ids_of(group_ids, tx.limits_of(project).groups_per_server)
            )

        self._change(update)

    def holdings(self) -> Holdings:
        self._compare()
        return Holdings(
            revision=self._controller.store.revision,
            objects=self._controller.stored(),
            enforced=self._agent.firewall.ruleset,
        )

    def judge(self, packet: Packet) -> tuple[Explanation, Verdict]:
        self._compare()
        return self._clock.judge(self._agent.firewall, packet)

    def explain_flow(self, question: FlowQuestion) -> FlowAnswer | None:
        return self._controller.explain_flow(question) if self._controller.running else None

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def restart_agent(self, *, warm: bool) -> None:
        self._agent.restart(self._clock.now_ns, warm=warm)
        if self._controller.running:
            self._connect()

    def stop_controller(self) -> None:
        self._compare()
        self._controller.stop()

    def start_controller(self) -> None:
        self._controller.start()
        self._connect()

    def close(self) -> None:
        self._controller.stop()
        shutil.rmtree(self._folder)


def _in_force(ruleset: Ruleset) -> tuple[object, ...]:
    return dict(ruleset.sets), dict(ruleset.groups), dict(ruleset.servers)
