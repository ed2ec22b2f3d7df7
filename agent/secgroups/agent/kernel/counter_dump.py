"""The named counters of a table, read over netlink: quicker than to have all of a table listed, enough for every scrape."""

from __future__ import annotations

import os
import struct

from secgroups.agent.kernel.netlink import (
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    attribute,
    attributes_in,
    messages,
    open_socket,
    request,
)

# linux/netfilter/nf_tables.h
_GET_OBJECT = 10 << 8 | 19
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4
_COUNTER = 1
_COUNTER_PACKETS = 2
_INET = 1
_BE32, _BE64 = struct.Struct(">I"), struct.Struct(">Q")
_ANSWER_TIMEOUT_S = 10.0


def read_counters(table: str) -> dict[str, int]:
    """Return the packets of each named counter of a table of family inet, none if there is no such table. OSError if it fails."""
    wanted = attribute(_TABLE, table.encode() + b"\0") + attribute(_TYPE, _BE32.pack(_COUNTER))
    found: dict[str, int] = {}
    with open_socket() as asked:
        asked.settimeout(_ANSWER_TIMEOUT_S)
        asked.send(request(_GET_OBJECT, NLM_F_DUMP, 1, _INET, wanted))
        while True:
            for message in messages(asked.recv(RECEIVE_BYTES)):
                if message.kind == NLMSG_DONE:
                    return found
                if message.kind == NLMSG_ERROR:
                    raise OSError(message.error, os.strerror(message.error))
                told = message.attributes()
                # A kernel that does not filter for us tells of all tables.
                if _text(told[_TABLE]) == table and _BE32.unpack(told[_TYPE])[0] == _COUNTER:
                    found[_text(told[_NAME])] = _BE64.unpack(attributes_in(told[_DATA])[_COUNTER_PACKETS])[0]


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
