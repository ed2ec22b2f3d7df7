"""Frames in, batches of records out, each with the time it was recorded at; what is no packet of the server is counted."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from operator import lt

from secgroups.agent.flow import Address, Packet
from secgroups.agent.records import QUOTE_BYTES, RECORD_BYTES, pack, unpack
from secgroups.agent.wire import UnreadableError
from secgroups.lab.replay.capture import Capture, RawFrame
from secgroups.lab.replay.decode import open_frame, read_packet
from secgroups.lab.replay.placement import Placement
from secgroups.lab.replay.plain import Lane, PlainWriter

# So many frames make a batch: enough for what is done once a batch to cost nothing, few enough for all of it to stay in the cache.
BATCH_FRAMES = 4_096
# So many frames that can't be read are told of, the others are counted.
PROBLEMS_MAX = 10
# 146 years: what a damaged time stamp may claim at most.
_TIME_NS_MAX = 2**62


@dataclass(slots=True, eq=False)
class Single:
    """A packet that took the long way. It stands for no other, be it equal."""

    packet: Packet


@dataclass(slots=True, kw_only=True)
class Batch:
    """Packets in order: the numbers of their frames, their times, their records with the quotes that those name, their lanes."""

    numbers: list[int] = field(default_factory=list)
    times: array[int] = field(default_factory=lambda: array("Q"))
    records: bytearray
    quotes: bytearray = field(default_factory=bytearray)
    lanes: list[Lane | Single] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """Frames, and those of them that no packet of the server was read from."""

    frames: int = 0
    other: int = 0
    not_ip: int = 0
    cut: int = 0
    malformed: int = 0


class Clock:
    """Turns times of a file into what the engine wants: from 0 on, never back."""

    def __init__(self) -> None:
        self._start_ns: int | None = None
        self._last_ns = 0
        self.went_back = 0

    def read(self, times_ns: list[int | None]) -> list[int]:
        """Return the time at each frame; that of a frame without one is that of the frame before."""
        known = [time_ns for time_ns in times_ns if time_ns is not None]
        if not known:
            return [self._last_ns] * len(times_ns)
        if self._start_ns is None:
            self._start_ns = known[0]
        elapsed = [time_ns - self._start_ns for time_ns in known]
        reached = [min(each, _TIME_NS_MAX) for each in accumulate(elapsed, max, initial=self._last_ns)]
        self.went_back += sum(map(lt, elapsed, reached))
        before, self._last_ns = reached[0], reached[-1]
        del reached[0]
        if len(known) == len(times_ns):
            return reached
        each_known = iter(reached)
        return list(accumulate(times_ns, lambda last, time: last if time is None else next(each_known), initial=before))[1:]


class Packer:
    """Packs the packets of one server. ``problems`` are the first frames that could not be read, in words."""

    def __init__(self, placement: Placement, server: str, addresses: frozenset[Address], handle: int, *, everything: bool) -> None:
        self._placement = placement
        self._server = server
        self._handle = handle
        self._everything = everything
        self._plain = PlainWriter(placement, addresses, handle, everything=everything)
        self.clock = Clock()
        self.counts = Counts()
        self.problems: list[str] = []

    def packet(self, batch: Batch, at: int) -> Packet:
        """Return one of the packets of a batch."""
        lane = batch.lanes[at]
        if isinstance(lane, Single):
            return lane.packet
        return unpack(batch.records[at * RECORD_BYTES : (at + 1) * RECORD_BYTES], b"", lambda _: self._server)

    def batches(self, capture: Capture) -> Iterator[Batch]:
        """Yield all packets, batch by batch; a batch without packets is left out."""
        frames = capture.read()
        while True:
            before = self.counts.frames
            batch = self._pack(islice(frames, BATCH_FRAMES))
            if batch.lanes:
                yield batch
            if self.counts.frames == before:
                return

    def _pack(self, frames: Iterator[RawFrame]) -> Batch:
        first = self.counts.frames + 1
        batch = Batch(records=bytearray(BATCH_FRAMES * RECORD_BYTES))
        records, add_lane, add_number = batch.records, batch.lanes.append, batch.numbers.append
        times_ns: list[int | None] = []
        add_time = times_ns.append
        write = self._plain.write
        end = 0
        for number, (time_ns, link_type, data) in enumerate(frames, first):
            add_time(time_ns)
            lane: Lane | Single | None = write(link_type, data, records, end)
            if lane is None:
                lane = self._take_long_way(number, link_type, data, batch, end)
                if lane is None:
                    continue
            elif not lane:
                self.counts.other += 1
                continue
            add_lane(lane)
            add_number(number)
            end += RECORD_BYTES
        del records[end:]
        # Every frame moves the clock, whatever is in it.
        moments_ns = self.clock.read(times_ns)
        batch.times.extend(moments_ns[number - first] for number in batch.numbers)
        self.counts.frames += len(times_ns)
        return batch

    def _take_long_way(self, number: int, link_type: int, data: bytes, batch: Batch, end: int) -> Single | None:
        """Read a frame whole and write its record at ``end``; None if there is no packet of the server in it."""
        try:
            opened = open_frame(link_type, data)
            if not opened.version:
                self.counts.not_ip += 1
                return None
            packet = read_packet(opened)
        except UnreadableError as error:
            self._note(number, error)
            return None
        direction = self._placement.find_direction(packet, opened)
        if direction is None:
            self.counts.other += 1
            if not self._everything:
                return None
            direction = self._placement.guess_direction(opened)
        packet = replace(packet, server=self._server, direction=direction)
        batch.records[end : end + RECORD_BYTES], quote = pack(packet, self._handle, len(batch.quotes) // QUOTE_BYTES + 1)
        batch.quotes += quote
        return Single(packet)

    def _note(self, number: int, error: UnreadableError) -> None:
        if error.cut:
            self.counts.cut += 1
        else:
            self.counts.malformed += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"frame {number}: {error}{', the rest was not recorded' if error.cut else ''}")
