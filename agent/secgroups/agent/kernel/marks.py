"""How the connection mark is divided: which bits are ours, and which of them remember which judgement.

The mark of a connection carries two **epochs**: one of the server that opened it (its egress rules), one of the server that
answers (its ingress rules). Each names one state of one policy's rules, by which the connection was last found allowed; 0 is none.
Foreign bits are never read and never written.
"""

from __future__ import annotations

from dataclasses import dataclass

from secgroups.agent.errors import ConfigError
from secgroups.agent.flow import Direction

_MARK_BITS = 32
_FIELD_BITS_MIN = 4
DEFAULT_MASK = 0xFFFFFF00


@dataclass(frozen=True, slots=True)
class MarkField:
    """A run of bits that holds an epoch, 1 to ``epochs_max``."""

    shift: int
    bits: int

    @property
    def epochs_max(self) -> int:
        return (1 << self.bits) - 1

    @property
    def mask(self) -> int:
        return self.epochs_max << self.shift

    def value(self, epoch: int) -> int:
        """Return the bits that stand for ``epoch``."""
        return epoch << self.shift


@dataclass(frozen=True, slots=True)
class MarkLayout:
    """The bits of ``mask``, one run of an even number of bits, 8 or more: the upper half for openers, the lower for answerers.

    ConfigError if it is no such run.
    """

    mask: int = DEFAULT_MASK

    def __post_init__(self) -> None:
        bits = self.mask.bit_count()
        run = ((1 << bits) - 1) << self._shift if 0 < self.mask < 1 << _MARK_BITS else 0
        if run != self.mask or bits % 2 or bits < 2 * _FIELD_BITS_MIN:
            raise ConfigError(
                f"kernel_mark_mask {self.mask:#x} must be one run of an even number of bits, "
                f"{2 * _FIELD_BITS_MIN} to {_MARK_BITS}, such as {DEFAULT_MASK:#x}"
            )

    @property
    def _shift(self) -> int:
        return (self.mask & -self.mask).bit_length() - 1

    def field(self, direction: Direction) -> MarkField:
        """Return where the judgement by the rules of ``direction`` is kept."""
        bits = self.mask.bit_count() // 2
        return MarkField(self._shift + (bits if direction is Direction.EGRESS else 0), bits)
