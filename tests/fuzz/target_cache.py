"""The file of an agent's cached state: used whole or refused, and what is used can be enforced and saved again."""

from __future__ import annotations

import struct
from hashlib import sha256

from choices import Choices
from enforced import WORDS as TEXTS
from enforced import check_enforced
from scratch import scratch_folder

from secgroups.agent.cache import FILE_NAME, Cache, CachedState
from secgroups.agent.errors import CacheError, ConfigError
from secgroups.agent.firewall import Firewall
from secgroups.agent.replica import Replica
from secgroups.agent.settings import EngineSettings
from secgroups.v1 import agent_service_pb2 as pb

_FOLDER = scratch_folder()
_CACHE = Cache(_FOLDER, "a")
_SETTINGS = EngineSettings(flows_max=64, fragments_max=16)
_HEADER, _LENGTH = struct.Struct("<8sIQ32s"), struct.Struct("<I")


def _file(payload: bytes, version: int = 1) -> bytes:
    """Return a file whose checksum fits."""
    return _HEADER.pack(b"SECGRPAG", version, len(payload), sha256(payload).digest()) + payload


def _payload(hello: pb.Hello, update: pb.Update) -> bytes:
    head = hello.SerializeToString()
    return _LENGTH.pack(len(head)) + head + update.SerializeToString()


_SMALL = _payload(pb.Hello(agent_id="a", store_epoch="e"), pb.Update(revision=3))
WORDS = [b"SECGRPAG", _SMALL]
SEEDS = [b"\x00" + _file(_SMALL), b"\x01" + _SMALL, *(bytes([2, *range(at, at + 90)]) for at in range(0, 160, 16))]


def run(data: bytes) -> None:
    choices = Choices(data)
    match choices.below(3):
        case 0:
            content = choices.rest()
        case 1:
            content = _file(choices.rest())
        case _:
            hello, update = pb.Hello(agent_id="a"), pb.Update()
            choices.fill(hello, ["a", "b", "epoch"])
            choices.fill(update, TEXTS)
            content = _file(_payload(hello, update), 1 + choices.chance(16))
    (_FOLDER / FILE_NAME).write_bytes(content)
    try:
        state = _CACHE.load()
    except (CacheError, ConfigError) as error:
        assert str(_FOLDER) in str(error)
        return
    assert state is not None
    _check(state)


def _check(state: CachedState) -> None:
    firewall = Firewall(_SETTINGS, now_ns=0)
    Replica(firewall).restore(state.ruleset, state.store_epoch, 0, timeline_id=state.timeline_id)
    check_enforced(firewall)
    _CACHE.save(state)
    assert _CACHE.load() == state
