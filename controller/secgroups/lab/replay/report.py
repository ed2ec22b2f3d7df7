"""A replay as text for people, as CSV or as one JSON object. Packets are written as they are judged, none is kept."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice

import click

from secgroups.agent.flow import Action, Direction, Verdict
from secgroups.lab.replay.run import Judged, Replay
from secgroups.lab.replay.tally import FlowLine
from secgroups.lab.replay.words import packet_text

# Columns are as wide as the widest of so many rows; wider rows later on shift only what stands behind.
ROWS_ALIGNED_MAX = 1000

_COLORS = {Action.ALLOW.name: "green", Action.DENY.name: "red"}
_NS_PER_S = 1_000_000_000

Value = str | int | float | bool | None | dict[str, int]


def packet_record(judged: Judged) -> dict[str, Value]:
    """Return one packet and its verdict as plain values."""
    packet, verdict = judged.packet, judged.verdict
    return {
        "number": judged.number,
        "time_s": judged.time_ns / _NS_PER_S,
        "direction": packet.direction.name,
        "protocol": packet.protocol,
        "source": str(packet.source),
        "source_port": packet.source_port,
        "destination": str(packet.destination),
        "destination_port": packet.destination_port,
        "length": packet.length,
        "packet": packet_text(packet),
        "action": verdict.action.name,
        "reason": verdict.reason.name,
        "opened": verdict.opened,
        "rule_id": verdict.rule_id,
        "group": judged.group_name,
    }


def flow_record(line: FlowLine, group_name: str) -> dict[str, Value]:
    """Return one flow as plain values; the verdict is that of its first packet."""
    sums = {
        f"{direction.name.lower()}_{'allowed' if action is Action.ALLOW else 'denied'}": line.packets[direction, action]
        for direction in Direction
        for action in Action
    }
    return {
        "flow": line.text,
        "direction": line.direction.name,
        "protocol": line.protocol,
        "local": str(line.local),
        "local_port": line.local_port,
        "remote": str(line.remote),
        "remote_port": line.remote_port,
        **sums,
        "opened": line.opened,
        "action": line.verdict.action.name,
        "reason": line.verdict.reason.name,
        "reasons": dict(sorted(line.reasons.items())),
        "rule_id": line.verdict.rule_id,
        "group": group_name,
    }


def write_json(replay: Replay, *, summary: bool) -> Iterator[str]:
    """Yield the lines of one object: ``packets`` (none with ``summary``), ``flows``, ``totals``."""
    yield '{"packets": ['
    yield from _separated(packet_record(judged) for judged in _packets(replay, summary=summary))
    yield '], "flows": ['
    yield from _separated(_flow_records(replay))
    yield f'], "totals": {json.dumps(replay.totals(), ensure_ascii=False)}}}'


def write_csv(replay: Replay, *, summary: bool) -> Iterator[str]:
    """Yield a header and the packets, or the flows with ``summary``. ``reasons`` of a flow read ``ESTABLISHED=5 NEW=1``."""
    yield from _csv_lines(packet_record(judged) for judged in _packets(replay, summary=summary))
    if summary:
        yield from _csv_lines(_flow_records(replay))


def write_table(replay: Replay, *, summary: bool, color: bool) -> Iterator[str]:
    """Yield a line for each packet (none with ``summary``), then one for each flow, then the totals."""
    yield from _aligned(
        ("#", "SECONDS", "DIRECTION", "PACKET", "VERDICT", "REASON", "RULE"),
        (_packet_cells(judged, replay) for judged in _packets(replay, summary=summary)),
        color=color,
    )
    if not summary:
        yield ""
    yield from _aligned(
        ("FLOW", "IN ALLOWED", "IN DENIED", "OUT ALLOWED", "OUT DENIED", "VERDICT", "REASON", "RULE"),
        (_flow_cells(line, replay) for line in replay.flows),
        color=color,
    )
    yield ""
    yield _totals_text(replay)


def _packets(replay: Replay, *, summary: bool) -> Iterator[Judged]:
    if summary:
        replay.run()
    else:
        yield from replay.judged()


def _flow_records(replay: Replay) -> Iterator[dict[str, Value]]:
    for line in replay.flows:
        yield flow_record(line, replay.group_name(line.verdict.rule_id))


def _separated(records: Iterable[dict[str, Value]]) -> Iterator[str]:
    for place, record in enumerate(records):
        yield ("," if place else "") + json.dumps(record, ensure_ascii=False)


def _csv_lines(records: Iterable[dict[str, Value]]) -> Iterator[str]:
    for place, record in enumerate(records):
        if place == 0:
            yield _csv_line(record)
        yield _csv_line(_flat(value) for value in record.values())


def _csv_line(cells: Iterable[Value]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _flat(value: Value) -> Value:
    if isinstance(value, dict):
        return " ".join(f"{name}={count}" for name, count in value.items())
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.9f}" if isinstance(value, float) else value


def _packet_cells(judged: Judged, replay: Replay) -> tuple[str, ...]:
    return (
        str(judged.number),
        f"{judged.time_ns / _NS_PER_S:.6f}",
        judged.packet.direction.name.lower(),
        packet_text(judged.packet),
        *_verdict_cells(judged.verdict, replay),
    )


def _flow_cells(line: FlowLine, replay: Replay) -> tuple[str, ...]:
    sums = (str(line.packets[direction, action]) for direction in Direction for action in Action)
    return (line.text, *sums, *_verdict_cells(line.verdict, replay))


def _verdict_cells(verdict: Verdict, replay: Replay) -> tuple[str, ...]:
    rule = f"{replay.short_rule_id(verdict.rule_id)} {replay.group_name(verdict.rule_id)}" if verdict.rule_id else "-"
    return (verdict.action.name, verdict.reason.name, rule)


def _aligned(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, color: bool) -> Iterator[str]:
    """Yield lines of aligned columns, block by block; nothing at all if there are no rows."""
    rows = iter(rows)
    widths = [len(name) for name in header]
    is_first = True
    while block := list(islice(rows, ROWS_ALIGNED_MAX)):
        widths = [max(width, *(len(row[column]) for row in block)) for column, width in enumerate(widths)]
        if is_first:
            block.insert(0, header)
            is_first = False
        for row in block:
            yield "  ".join(_cell(text, width, color=color) for text, width in zip(row, widths, strict=True)).rstrip()


def _cell(text: str, width: int, *, color: bool) -> str:
    padding = " " * (width - len(text))
    if text.replace(".", "").isdecimal():
        return padding + text
    return (click.style(text, fg=_COLORS[text]) if color and text in _COLORS else text) + padding


def _totals_text(replay: Replay) -> str:
    totals = replay.totals()
    text = (
        f"{totals['packets']} packets of {totals['server']}: {totals['allowed']} allowed, {totals['denied']} denied; "
        f"{totals['flows']} flows; revision {totals['revision']}"
    )
    left_out = {
        "of others": totals["other"],
        "without IP": totals["not_ip"],
        "cut off": totals["cut"],
        "malformed": totals["malformed"],
        "of flows not listed": totals["packets_of_unlisted_flows"],
    }
    told = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return f"{text}\nframes: {totals['frames']}" + (f", {told}" if told else "")
