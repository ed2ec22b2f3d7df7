"""A controller and an agent in this process, joined by the real messages as bytes: no socket, no thread, no clock.

The store is a real one on its own file, only not synced to the disk: nobody's policy hangs on a scenario file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from google.protobuf.text_format import MessageToString
from google.rpc import error_details_pb2

from secgroups.agent.convert import address_set, group_rules, server_binding, whole_update
from secgroups.agent.errors import AgentError
from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import ICMP, ICMPV6
from secgroups.agent.replica import Applied, Replica
from secgroups.agent.ruleset import Ruleset
from secgroups.agent.settings import EngineSettings
from secgroups.controller import rulesets
from secgroups.controller.errors import ControllerError
from secgroups.controller.interceptors import status_of
from secgroups.controller.publisher import Publisher
from secgroups.controller.services.stream_wire import Wire, ack_of, hello_of
from secgroups.controller.state import State
from secgroups.controller.store.interface import Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.stream_messages import Outbound
from secgroups.lab.cases.world import FlowAnswer, FlowQuestion, OutOfStepError
from secgroups.v1 import agent_service_pb2 as pb

T = TypeVar("T")

AGENT_ID = "lab"

# Rounds of messages until controller and agent have nothing more to say; more means that they never will.
_ROUNDS_MAX = 1_000
_HEARTBEAT_S = 10.0


class LabController:
    """The controller's core on one file. ``clock_us`` gives microseconds since the Unix epoch."""

    def __init__(self, path: Path, clock_us: Callable[[], int]) -> None:
        self._path = path
        self._open = partial(SqliteStore, path, clock_us=clock_us, durable=False)
        self.start()

    def start(self) -> None:
        """Open the file and begin from what is in it."""
        self.store = self._open()
        self.state = State.load(self.store.load())
        self.publisher = Publisher(self.state, self.store.store_epoch)
        self.running = True

    def stop(self) -> None:
        """Close the file; the store refuses changes from now on."""
        self.store.close()
        self.running = False

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Commit ``operation``, then tell state and publisher. Raises what the operation or the store raises."""
        (result,) = self.store.commit([Pending(operation)])
        if isinstance(result, Exception):
            raise result
        self.state.apply(result.changes)
        self.publisher.changed(result.changes)
        return cast("T", result.value)

    def explain_flow(self, question: FlowQuestion) -> FlowAnswer:
        """Return what policy says of a flow."""
        icmp = question.protocol in (ICMP, ICMPV6)
        explanation = rulesets.explain_flow(
            self.state,
            rulesets.FlowQuestion(
                project=question.project,
                source=rulesets.End(server_id=question.source_server, address=question.source),
                destination=rulesets.End(server_id=question.destination_server, address=question.destination),
                protocol=ICMP if icmp else question.protocol,
                port=question.port,
                icmp_type=question.icmp_type if icmp else None,
                icmp_code=question.icmp_code if icmp else None,
            ),
        )
        last = explanation.judgements[-1]
        text = "; ".join(judgement.text for judgement in explanation.judgements)
        return FlowAnswer(allowed=explanation.allowed, rule_id=last.rule.id if last.rule else "", text=text)

    def stored(self) -> object:
        """Return all that is in the file, without versions; its bytes while it is closed."""
        if not self.running:
            return self._path.read_bytes()
        contents = self.store.load()
        groups = [(group.project, group.id, group.name, group.description) for group in contents.groups]
        rules = [(rule.project, rule.id, rule.group_id, rule.spec) for rule in contents.rules]
        servers = [(server.key, server.name, server.addresses, server.agent_id, server.group_ids) for server in contents.servers]
        return groups, rules, servers


class LabAgent:
    """The agent's state and engine without its process. What its cache on disk would hold is kept as bytes."""

    def __init__(self, settings: EngineSettings, engine: str, now_ns: int) -> None:
        self._settings = settings
        self._engine = engine
        self._saved = b""
        self._saved_epoch = ""
        self._begin(Firewall(settings, now_ns=now_ns, engine=engine))

    def _begin(self, firewall: Firewall) -> None:
        self.firewall = firewall
        self.replica = Replica(firewall)

    def restart(self, now_ns: int, *, warm: bool) -> None:
        """Start anew with the state that was saved, and with the flow table if ``warm``."""
        flows = self.firewall.flows if warm else None
        self._begin(Firewall(self._settings, now_ns=now_ns, engine=self._engine, flows=flows))
        if self._saved_epoch:
            self.replica.restore(_ruleset_of(pb.Update.FromString(self._saved)), self._saved_epoch, now_ns)

    def hello(self) -> bytes:
        """Return what it says first on a stream."""
        hello = pb.Hello(
            agent_id=AGENT_ID,
            boot_id=AGENT_ID,
            store_epoch=self.replica.resume_epoch,
            applied_revision=self.replica.revision,
            held=[
                pb.ObjectVersion(kind=pb.ObjectKind.ValueType(kind), key=key, version=version)
                for (kind, key), version in self.replica.held
            ],
            state_digest=self.replica.held.digest,
        )
        return pb.SubscribeRequest(hello=hello).SerializeToString()

    def take(self, wire: bytes, now_ns: int) -> bytes:
        """Take a message of the controller; return the acknowledgement, empty if it asks for none. OutOfStepError, AgentError."""
        message = pb.SubscribeResponse.FromString(wire)
        applied: Applied | None = None
        match message.WhichOneof("message"):
            case "welcome":
                self.replica.welcome(message.welcome)
            case "update":
                applied = self.replica.update(message.update, now_ns)
            case "sync_point":
                applied = self.replica.sync_point(message.sync_point, now_ns)
            case "bookmark":
                self.replica.bookmark(message.bookmark)
            case other:
                raise OutOfStepError(f"the agent was told {other}")
        if applied is None:
            return b""
        if applied.rejected:
            raise OutOfStepError(f"the agent can't enforce {', '.join(refused.message for refused in applied.rejected)}")
        self._saved = whole_update(self.firewall.ruleset).SerializeToString()
        self._saved_epoch = self.replica.store_epoch
        ack = pb.Ack(nonce=applied.nonce, applied_revision=applied.revision)
        return pb.SubscribeRequest(ack=ack).SerializeToString()


class Stream:
    """The stream between the two, pumped by hand."""

    def __init__(self, publisher: Publisher, agent: LabAgent, now_ns: int) -> None:
        self._agent = agent
        self._wire = Wire("lab", _HEARTBEAT_S)
        hello = hello_of(pb.SubscribeRequest.FromString(agent.hello()))
        self._channel = publisher.connect(hello, _nothing, now_ns // 1000)

    def pump(self, now_ns: int) -> None:
        """Carry messages and acknowledgements until both sides are quiet, then compare digests. OutOfStepError if they differ."""
        for _ in range(_ROUNDS_MAX):
            messages = self._channel.next_messages(now_ns // 1000)
            if not messages:
                break
            self._carry(messages, now_ns)
        else:
            raise OutOfStepError("the controller always has more to say")
        self._carry(self._channel.heartbeat(now_ns // 1000), now_ns)
        if self._channel.pending_since is not None:
            raise OutOfStepError(f"the agent did not acknowledge revision {self._channel.pending_since}")

    def _carry(self, messages: Sequence[Outbound], now_ns: int) -> None:
        for message in messages:
            try:
                answer = self._agent.take(self._wire.encoded(message), now_ns)
            except AgentError as error:
                raise OutOfStepError(f"the agent could not go on: {error}") from None
            if answer:
                self._channel.acknowledge(ack_of(pb.SubscribeRequest.FromString(answer).ack), now_ns // 1000)


def error_text(error: ControllerError) -> str:
    """Return what a client is told: the message and every detail of the status."""
    status = status_of(error)
    texts = [status.message]
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])()
        packed.Unpack(detail)
        texts.append(MessageToString(detail, as_one_line=True))
    return "; ".join(texts)


def fresh_ruleset(controller: LabController) -> Ruleset:
    """Return what an agent would hold that came to know everything at once: a function of what is stored, and of nothing else."""
    publisher = Publisher(State.load(controller.store.load()), controller.store.store_epoch)
    agent = LabAgent(EngineSettings(), "reference", 0)
    Stream(publisher, agent, 0).pump(0)
    return agent.firewall.ruleset


def _nothing() -> None:
    """Nobody waits for the stream: it is pumped after each change."""


def _ruleset_of(update: pb.Update) -> Ruleset:
    return Ruleset(
        revision=update.revision,
        sets={held.group_id: address_set(held) for held in update.sets},
        groups={held.group_id: group_rules(held) for held in update.groups},
        servers={held.server: server_binding(held) for held in update.servers},
    )
