"""Decisions read off bytes, so that whatever varies bytes varies what is decided: packets, messages, the turns of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

T = TypeVar("T")

FIELDS_MAX, REPEATS_MAX, DEPTH_MAX = 8, 4, 6
# Around every bound that some field has.
_NUMBERS = (*(0, 1, 2, 3, 6, 7, 8, 17, 21, 22, 53, 58, 80, 132, 255, 256, 1_024, 65_535, 65_536, 1 << 31, 1 << 63),)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = (0.0, 0.5, 1.0, -1.0, 1.5, float("nan"), float("inf"))
# A field that no message has, with a varint.
_UNKNOWN_FIELD = b"\xf8\x3f\x01"
_PACKED = (
    *(bytes([10, 0, 0, 9]), bytes([10, 0, 0, 5]), bytes([203, 0, 113, 7]), bytes(4), b"\xff" * 4, bytes([127, 0, 0, 1])),
    *(bytes.fromhex("20010db8000000000000000000000009"), bytes(15) + b"\x01", bytes(10) + b"\xff\xff\n\0\0\t", b"\xff" * 16),
)


class Choices:
    """Reads ``data`` from its beginning; at its end everything is 0, so what is decided by then is small."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def take(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def below(self, most: int) -> int:
        """Return a number from 0 to ``most`` - 1, which is at most 65,536."""
        return int.from_bytes(self.take(1 if most <= 256 else 2)) % most

    def chance(self, one_in: int) -> bool:
        """Return whether what is rare happens; never at the end."""
        return self.below(one_in) == one_in - 1

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def text(self, words: Sequence[str]) -> str:
        """Return a word, seldom another text."""
        return self.take(self.below(40)).decode(errors="replace") if self.chance(8) else self.pick(words)

    def number(self, least: int, most: int) -> int:
        """Return a number within the bounds, mostly a small one or one beside a bound."""
        made = int.from_bytes(self.take(8)) if self.chance(8) else self.pick(_NUMBERS) - self.below(2)
        if self.chance(16):
            made = most - self.below(3)
        elif self.chance(16):
            made = -made
        return min(max(made, least), most)

    def addresses(self) -> bytes:
        """Return packed addresses of either family, seldom with a rest."""
        packed = [self.pick(_PACKED) if self.chance(2) else self.take(self.pick((4, 16))) for _ in range(self.below(4))]
        return b"".join(packed) + (b"?" if self.chance(16) else b"")

    def fill(self, message: Message, words: Sequence[str], depth: int = 0) -> None:
        """Set some fields of ``message``, seldom to what no sender of this version would."""
        fields = message.DESCRIPTOR.fields
        for _ in range(self.below(FIELDS_MAX) if fields else 0):
            self._set(message, self.pick(fields), words, depth)
        if self.chance(64):
            message.MergeFromString(_UNKNOWN_FIELD)

    def _set(self, message: Message, field: FieldDescriptor, words: Sequence[str], depth: int) -> None:
        value = getattr(message, field.name)
        if field.message_type is None:
            if field.is_repeated:
                value.extend(self._scalar(field, words) for _ in range(self.below(REPEATS_MAX)))
            else:
                setattr(message, field.name, self._scalar(field, words))
        elif field.message_type.GetOptions().map_entry:
            value[self.pick(words)] = self.number(0, (1 << 64) - 1)
        elif depth < DEPTH_MAX:
            for each in [value.add() for _ in range(self.below(REPEATS_MAX))] if field.is_repeated else [value]:
                each.SetInParent()
                self.fill(each, words, depth + 1)

    def _scalar(self, field: FieldDescriptor, words: Sequence[str]) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return self.addresses()
            case FieldDescriptor.CPPTYPE_STRING:
                return self.text(words)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self.chance(2)
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self.pick(_FLOATS)
            case FieldDescriptor.CPPTYPE_ENUM if not self.chance(16):
                return self.pick([value.number for value in field.enum_type.values])
            case kind:
                return self.number(*_RANGES[kind])
