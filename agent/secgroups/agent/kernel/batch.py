"""Small changes as netlink messages of our own: the transaction that nft would make of them, without what it reads first.

Before each transaction nft reads all tables, chains and sets there are, a millisecond or more whatever is to change. A member that
comes or goes, a server that takes another policy, a new epoch and a step to other rules are elements, chains and a few rules whose
form is known here; everything else is left to nft. In both ways the kernel makes all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address

from secgroups.agent.kernel.netlink import (
    NLM_F_ACK,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    attribute,
    messages,
    nested,
    request,
)
from secgroups.agent.kernel.statements import Command, Expression, Json

# An attribute ends at 64 KiB, an element takes up to 100 bytes; and more than that is no small change.
ELEMENTS_MAX = 500
COMMANDS_MAX = 500

# linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10
_NLM_F_CREATE, _NLM_F_APPEND = 0x400, 0x800
# linux/netfilter/nf_tables.h
_INET = 1
_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE, _DELETE_RULE = (_SUBSYSTEM << 8 | kind for kind in (3, 5, 6, 8))
_DELETE_SET, _NEW_ELEMENT, _DELETE_ELEMENT = (_SUBSYSTEM << 8 | kind for kind in (11, 12, 14))
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_SET_TABLE, _SET_NAME = 1, 2
_LIST_ELEMENT = 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT_KEY, _ELEMENT_DATA = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_ACCEPT, _JUMP, _GOTO = 1, -3, -4
_REGISTER_VERDICT, _REGISTER = 0, 1
_CT_DREG, _CT_KEY, _CT_SREG = 1, 2, 4
_CT_MARK = 3
_META_DREG, _META_KEY = 1, 2
_META_NFPROTO = 15
_BITWISE_SREG, _BITWISE_DREG, _BITWISE_LEN, _BITWISE_MASK, _BITWISE_XOR, _BITWISE_OP = 1, 2, 3, 4, 5, 6
_CMP_SREG, _CMP_OP, _CMP_DATA = 1, 2, 3
_IMMEDIATE_DREG, _IMMEDIATE_DATA = 1, 2
_EQUAL, _MASK_AND_XOR = 0, 0
# libnftnl/udata.h: how nft keeps a rule's comment.
_COMMENT = 0
_NFPROTO = {"ipv4": 2, "ipv6": 10}
_MARK: Expression = {"ct": {"key": "mark"}}
# Marks are numbers of this host, all else goes over the wire.
_MARK_VALUE = struct.Struct("=I")
_BE32, _BE32_SIGNED = struct.Struct(">I"), struct.Struct(">i")


class _OtherFormError(Exception):
    """What is to be made has no form that is known here."""


def encode(commands: Sequence[Command]) -> bytes | None:
    """Return the batch that makes ``commands``, None if one of them has no form that is known here or there are too many."""
    if len(commands) > COMMANDS_MAX:
        return None
    try:
        changes = [message for command in commands for message in _change(command)]
    except _OtherFormError:
        return None
    made = [request(_BATCH_BEGIN, 0, 0, socket.AF_UNSPEC, resource=_SUBSYSTEM)]
    for sequence, (kind, flags, attributes) in enumerate(changes, 1):
        made.append(request(kind, flags | NLM_F_ACK * (sequence == len(changes)), sequence, _INET, attributes))
    made.append(request(_BATCH_END, 0, len(changes) + 1, socket.AF_UNSPEC, resource=_SUBSYSTEM))
    return b"".join(made)


def commit(batch: bytes, over: socket.socket) -> None:
    """Make all of ``batch`` or, with OSError, nothing.

    ``over`` is used for nothing else, and not closed after each: whoever closes it waits until the kernel has taken apart what the
    last transaction removed.
    """
    over.send(batch)
    # The kernel has worked off all of it by now; it answers what failed, and the last change in any case.
    answers = []
    with suppress(BlockingIOError):
        while True:
            answers += [
                message.error for message in messages(over.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)) if message.kind == NLMSG_ERROR
            ]
    failed = next(filter(None, answers), 0 if answers else errno.EIO)
    if failed:
        raise OSError(failed, os.strerror(failed))


_Change = tuple[int, int, bytes]


def _change(command: Command) -> Iterator[_Change]:
    ((verb, what),) = command.items()
    ((kind, value),) = what.items()
    match verb, kind:
        case "add", "element":
            yield _NEW_ELEMENT, _NLM_F_CREATE, _elements(value)
        case "delete", "element":
            yield _DELETE_ELEMENT, 0, _elements(value)
        case "add", "chain" if "hook" not in value:
            yield _NEW_CHAIN, _NLM_F_CREATE, _text(_CHAIN_TABLE, value["table"]) + _text(_CHAIN_NAME, value["name"])
        case "delete", "chain":
            yield _DELETE_CHAIN, 0, _text(_CHAIN_TABLE, value["table"]) + _text(_CHAIN_NAME, value["name"])
        case "delete", "set":
            yield _DELETE_SET, 0, _text(_SET_TABLE, value["table"]) + _text(_SET_NAME, value["name"])
        case "flush", "chain":
            yield _DELETE_RULE, 0, _text(_RULE_TABLE, value["table"]) + _text(_RULE_CHAIN, value["name"])
        case "add", "rule":
            yield _NEW_RULE, _NLM_F_CREATE | _NLM_F_APPEND, _rule(value)
        case _:
            raise _OtherFormError


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _listed(kind: int, items: Iterable[bytes]) -> bytes:
    return nested(kind, *(nested(_LIST_ELEMENT, item) for item in items))


def _elements(value: Json) -> bytes:
    if len(value["elem"]) > ELEMENTS_MAX:
        raise _OtherFormError
    where = _text(_LIST_TABLE, value["table"]) + _text(_LIST_SET, value["name"])
    return where + _listed(_LIST_ELEMENTS, map(_element, value["elem"]))


def _element(value: Json) -> bytes:
    if isinstance(value, list):
        key, verdict = value
        return _data(_ELEMENT_KEY, _key(key)) + nested(_ELEMENT_DATA, _verdict(verdict))
    return _data(_ELEMENT_KEY, _key(value))


def _key(value: Json) -> bytes:
    """Return an address, or several one after another, as bytes in network order."""
    match value:
        case str():
            try:
                return ip_address(value).packed
            except ValueError:
                # The name of an interface.
                raise _OtherFormError from None
        case {"concat": parts}:
            return b"".join(map(_key, parts))
        case _:
            raise _OtherFormError


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


def _verdict(value: Expression) -> bytes:
    match value:
        case {"accept": None}:
            return nested(_DATA_VERDICT, attribute(_VERDICT_CODE, _BE32_SIGNED.pack(_ACCEPT)))
        case {"goto": {"target": chain}} | {"jump": {"target": chain}}:
            code = _GOTO if "goto" in value else _JUMP
            return nested(_DATA_VERDICT, attribute(_VERDICT_CODE, _BE32_SIGNED.pack(code)), _text(_VERDICT_CHAIN, chain))
        case _:
            raise _OtherFormError


def _rule(value: Json) -> bytes:
    comment = value["comment"].encode() + b"\0"
    return b"".join((
        _text(_RULE_TABLE, value["table"]),
        _text(_RULE_CHAIN, value["chain"]),
        _listed(_RULE_EXPRESSIONS, (part for expression in value["expr"] for part in _expression(expression))),
        attribute(_RULE_USERDATA, bytes((_COMMENT, len(comment))) + comment),
    ))  # fmt: skip


def _expression(value: Expression) -> Iterator[bytes]:
    """Yield what the kernel works off for one expression, step by step, over one register."""
    match value:
        case {"match": {"op": "==", "left": {"&": [left, int(mask)]}, "right": int(right)}} if left == _MARK:
            yield _load_mark()
            yield _bitwise(mask, 0)
            yield _compare(_MARK_VALUE.pack(right))
        case {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": str(family)}}:
            yield _step("meta", _number(_META_DREG, _REGISTER), _number(_META_KEY, _META_NFPROTO))
            yield _compare(bytes((_NFPROTO[family],)))
        case {"mangle": {"key": key, "value": {"|": [{"&": [left, int(kept)]}, int(put)]}}} if key == left == _MARK:
            yield _load_mark()
            yield _bitwise(kept & ~put, put)
            yield _step("ct", _number(_CT_KEY, _CT_MARK), _number(_CT_SREG, _REGISTER))
        case _:
            verdict = nested(_IMMEDIATE_DATA, _verdict(value))
            yield _step("immediate", _number(_IMMEDIATE_DREG, _REGISTER_VERDICT), verdict)


def _step(name: str, *attributes: bytes) -> bytes:
    return _text(_EXPRESSION_NAME, name) + nested(_EXPRESSION_DATA, *attributes)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _BE32.pack(value))


def _load_mark() -> bytes:
    return _step("ct", _number(_CT_KEY, _CT_MARK), _number(_CT_DREG, _REGISTER))


def _bitwise(mask: int, xor: int) -> bytes:
    return _step(
        "bitwise",
        _number(_BITWISE_SREG, _REGISTER),
        _number(_BITWISE_DREG, _REGISTER),
        _number(_BITWISE_OP, _MASK_AND_XOR),
        _number(_BITWISE_LEN, _MARK_VALUE.size),
        _data(_BITWISE_MASK, _MARK_VALUE.pack(mask)),
        _data(_BITWISE_XOR, _MARK_VALUE.pack(xor)),
    )


def _compare(value: bytes) -> bytes:
    return _step("cmp", _number(_CMP_SREG, _REGISTER), _number(_CMP_OP, _EQUAL), _data(_CMP_DATA, value))
