"""What a replay prints."""

from __future__ import annotations

import csv
import io
import json
from ipaddress import ip_address

import pytest
from recorded import EGRESS, FOLDER, ruleset, spec

from secgroups.agent.flow import ICMP, ICMPV6, TCP, Direction, Fragment, Packet, QuotedPacket
from secgroups.lab.replay.capture import Capture
from secgroups.lab.replay.report import write_csv, write_json, write_table
from secgroups.lab.replay.run import Replay
from secgroups.lab.replay.words import packet_text
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset

DNS = ruleset(spec("udp", 53))
OUT = ruleset(spec("any", direction=EGRESS))


def printed(
    form: str, rules: EffectiveRuleset = DNS, name: str = "dns_udp.pcap", *, summary: bool = False, color: bool = False
) -> str:
    with Capture(FOLDER / name) as capture:
        replay = Replay(capture, rules)
        if form == "table":
            return "\n".join(write_table(replay, summary=summary, color=color))
        return "\n".join((write_json if form == "json" else write_csv)(replay, summary=summary))


def test_json_is_one_object_of_packets_flows_and_totals() -> None:
    report = json.loads(printed("json"))
    assert list(report) == ["packets", "flows", "totals"]
    assert [(packet["number"], packet["direction"], packet["action"], packet["reason"]) for packet in report["packets"]] == [
        (3, "INGRESS", "ALLOW", "NEW"),
        (4, "EGRESS", "ALLOW", "ESTABLISHED"),
        (5, "INGRESS", "ALLOW", "NEW"),
        (6, "EGRESS", "ALLOW", "ESTABLISHED"),
    ]
    first = report["packets"][0]
    assert (first["source"], first["source_port"], first["destination"], first["destination_port"]) == (
        "198.51.100.7",
        40053,
        "10.0.0.9",
        53,
    )
    assert (first["group"], first["rule_id"][-2:], first["opened"], first["protocol"]) == ("web", "01", True, 17)
    flow = report["flows"][0]
    assert {key: flow[key] for key in flow if key.endswith(("allowed", "denied"))} == {
        "ingress_allowed": 1,
        "ingress_denied": 0,
        "egress_allowed": 1,
        "egress_denied": 0,
    }
    assert (flow["local"], flow["local_port"], flow["remote"], flow["remote_port"]) == ("10.0.0.9", 53, "198.51.100.7", 40053)
    assert (flow["flow"], flow["action"], flow["reason"]) == ("UDP 198.51.100.7:40053 > 10.0.0.9:53", "ALLOW", "NEW")
    totals = report["totals"]
    assert (totals["server"], totals["revision"], totals["frames"], totals["packets"], totals["not_ip"]) == ("p/web-1", 7, 6, 4, 2)
    assert totals["reasons"] == {"ESTABLISHED": 2, "NEW": 2}


def test_a_flow_shows_the_denied_question_beside_the_answer_that_passed() -> None:
    flow = json.loads(printed("json", OUT))["flows"][0]
    assert (flow["action"], flow["reason"], flow["ingress_denied"], flow["egress_allowed"]) == ("DENY", "NO_RULE", 1, 1)
    assert flow["reasons"] == {"NEW": 1, "NO_RULE": 1}


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_a_summary_leaves_the_packets_out_and_keeps_the_sums(form: str) -> None:
    whole, summary = printed(form), printed(form, summary=True)
    assert "85 bytes" in whole
    assert "85 bytes" not in summary
    assert "UDP 198.51.100.7:40053 > 10.0.0.9:53" in summary


def test_csv_has_a_header_and_the_packets_or_with_summary_the_flows() -> None:
    packets = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [(row["number"], row["action"], row["opened"]) for row in packets] == [
        ("3", "ALLOW", "true"),
        ("4", "ALLOW", "false"),
        ("5", "ALLOW", "true"),
        ("6", "ALLOW", "false"),
    ]
    assert all("e" not in row["time_s"] for row in packets)
    flows = list(csv.DictReader(io.StringIO(printed("csv", summary=True))))
    assert [(row["local_port"], row["remote_port"], row["reasons"]) for row in flows] == [
        ("53", "40053", "ESTABLISHED=1 NEW=1"),
        ("53", "40054", "ESTABLISHED=1 NEW=1"),
    ]


def test_a_table_is_aligned_and_nothing_is_cut_off() -> None:
    lines = printed("table", ruleset(spec("tcp", 443), spec("tcp", 80)), "http_tcp.pcap").splitlines()
    verdicts = [line.index("VERDICT") for line in lines if "VERDICT" in line]
    packets = lines[1 : lines.index("")]
    assert all(line[verdicts[0] :].split()[0] in ("ALLOW", "DENY") for line in packets)
    # As much of the rule's id as tells it from the others.
    assert any(line.endswith("0198c0de-0000-7000-8000-000000000102 web") for line in packets)
    assert any(
        "TCP 198.51.100.7:40002 > 10.0.0.9:22 SYN, 60 bytes" in line and " DENY " in line and "NO_RULE" in line for line in packets
    )
    assert lines[-2].endswith("2 flows; revision 7")
    assert lines[-1].startswith("frames: ")
    assert lines[-1].endswith(", 2 without IP")


def test_only_a_terminal_gets_colors() -> None:
    assert "\x1b[" not in printed("table")
    colored = printed("table", color=True)
    assert "\x1b[32mALLOW\x1b[0m" in colored


SYN_ACK_TEXT = "TCP 10.0.0.9:80 > 198.51.100.7:40001 SYN,ACK, 60 bytes"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (SYN_ACK_TEXT, {"protocol": TCP, "source_port": 80, "destination_port": 40001, "tcp_flags": 0x12}),
        (
            "TCP 10.0.0.9:80 > 198.51.100.7:40001 no flags, 60 bytes",
            {"protocol": TCP, "source_port": 80, "destination_port": 40001},
        ),
        ("ICMP 10.0.0.9 > 198.51.100.7 echo reply id 7, 60 bytes", {"protocol": ICMP, "icmp_id": 7}),
        ("ICMP 10.0.0.9 > 198.51.100.7 type 77 code 3, 60 bytes", {"protocol": ICMP, "icmp_type": 77, "icmp_code": 3}),
        ("ICMPv6 10.0.0.9 > 198.51.100.7 packet too big, 60 bytes", {"protocol": ICMPV6, "icmp_type": 2}),
        ("protocol 99 10.0.0.9 > 198.51.100.7, 60 bytes", {"protocol": 99}),
        ("TCP 10.0.0.9 > 198.51.100.7 later fragment, 60 bytes", {"protocol": TCP, "fragment": Fragment.LATER}),
        ("ICMP 10.0.0.9 > 198.51.100.7 echo reply, first fragment, 60 bytes", {"protocol": ICMP, "fragment": Fragment.FIRST}),
    ],
)
def test_a_packet_in_words(text: str, fields: dict[str, int]) -> None:
    ends = {"source": ip_address("10.0.0.9"), "destination": ip_address("198.51.100.7")}
    assert packet_text(Packet(server="p/s", direction=Direction.EGRESS, length=60, **ends, **fields)) == text


def test_an_error_in_words_names_what_it_is_about() -> None:
    server, client = ip_address("2001:db8::9"), ip_address("2001:db8:1::7")
    quoted = QuotedPacket(source=client, destination=server, protocol=17, source_port=1, destination_port=2)
    error = Packet(
        server="p/s",
        direction=Direction.EGRESS,
        source=server,
        destination=client,
        protocol=ICMPV6,
        icmp_type=1,
        icmp_code=4,
        quoted=quoted,
    )
    assert packet_text(error) == (
        "ICMPv6 2001:db8::9 > 2001:db8:1::7 port unreachable about UDP [2001:db8:1::7]:1 > [2001:db8::9]:2, 0 bytes"
    )


def test_a_rule_id_is_shortened_to_what_tells_it_from_the_others() -> None:
    only = printed("table", DNS).splitlines()
    assert only[1].endswith(" NEW          0198c0de web")
