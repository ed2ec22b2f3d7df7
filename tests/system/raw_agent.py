"""An agent of another make: speaks the stream by hand, enforces nothing, and remembers every message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread

import grpc
from running_system import TIMEOUT_S, System

from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub


@dataclass
class RawAgent:
    """What came, and why it ended. It acknowledges all, but rejects groups that have a rule for ``refuses_port``."""

    refuses_port: int = 0
    messages: list[agents_pb.SubscribeResponse] = field(default_factory=list)
    ended: str = ""
    _to_say: SimpleQueue[agents_pb.SubscribeRequest | None] = field(default_factory=SimpleQueue)

    @property
    def updates(self) -> list[agents_pb.Update]:
        return [message.update for message in self.messages if message.HasField("update")]

    @property
    def group_ids(self) -> list[str]:
        """The ids of the groups that came, as often as they did."""
        return [group.group_id for update in self.updates for group in update.groups]

    def hear(self, stream: Iterator[agents_pb.SubscribeResponse]) -> None:
        ack = agents_pb.Ack()
        try:
            for message in stream:
                self.messages.append(message)
                update, point = message.update, message.sync_point
                nonce = update.nonce or point.nonce
                ack.rejected.extend(self._rejections(update))
                if update.more:
                    # Of a step that goes on: it was received, that is all.
                    self._acknowledge(agents_pb.Ack(applied_revision=ack.applied_revision, received_nonce=nonce))
                elif nonce or message.HasField("bookmark"):
                    ack.nonce = nonce
                    ack.applied_revision = update.revision or point.revision or message.bookmark.revision
                    self._acknowledge(ack)
                    ack = agents_pb.Ack(applied_revision=ack.applied_revision)
        except grpc.RpcError as error:
            self.ended = error.details()  # type: ignore[attr-defined]

    def _acknowledge(self, ack: agents_pb.Ack) -> None:
        self.say(agents_pb.SubscribeRequest(ack=ack))

    def say(self, message: agents_pb.SubscribeRequest | None) -> None:
        """Say something; None is the last word."""
        self._to_say.put(message)

    def sayings(self) -> Iterator[agents_pb.SubscribeRequest]:
        return iter(self._to_say.get, None)

    def _rejections(self, update: agents_pb.Update) -> list[agents_pb.RejectedObject]:
        return [
            agents_pb.RejectedObject(
                object=agents_pb.ObjectVersion(kind=agents_pb.OBJECT_KIND_GROUP, key=group.group_id, version=group.version),
                code=grpc.StatusCode.UNIMPLEMENTED.value[0],
                message=f"port {self.refuses_port}",
            )
            for group in update.groups
            if self.refuses_port and any(rule.spec.ports.first == self.refuses_port for rule in group.rules)
        ]


@contextmanager
def raw_agent(site: System, agent_id: str, *, refuses_port: int = 0, boot_time_ns: int = 0) -> Iterator[RawAgent]:
    """Be subscribed as ``agent_id``, with a start at ``boot_time_ns``."""
    agent = RawAgent(refuses_port)
    hello = agents_pb.Hello(agent_id=agent_id, boot_id="b1", version="0")
    hello.boot_time.FromNanoseconds(boot_time_ns)
    agent.say(agents_pb.SubscribeRequest(hello=hello))
    with grpc.insecure_channel(site.stack.controller.address) as channel:
        stream = AgentServiceStub(channel).Subscribe(agent.sayings())
        listener = Thread(target=agent.hear, args=[stream])
        listener.start()
        try:
            yield agent
        finally:
            agent.say(None)
            stream.cancel()
            listener.join(TIMEOUT_S)
