"""What becomes of recorded packets: each allowing rule beside its neighbour that does not allow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import (
    CAPTURES,
    CLIENT4,
    CLIENT6,
    CLIENT_HARDWARE,
    EGRESS,
    FOLDER,
    SERVER4,
    SERVER6,
    SERVER_HARDWARE,
    ruleset,
    spec,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet as Layers
from scapy.utils import wrpcap

from secgroups.agent.errors import ConfigError, UnenforceableError
from secgroups.agent.firewall import ENGINES
from secgroups.agent.flow import ICMPV6, Direction
from secgroups.agent.flow import TCP as TCP_NUMBER
from secgroups.agent.settings import EngineSettings
from secgroups.lab.replay.capture import Capture, CaptureError
from secgroups.lab.replay.packing import PROBLEMS_MAX, Clock
from secgroups.lab.replay.run import Judged, Replay
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset

ALL_OUT = spec("any", direction=EGRESS)
HTTP, HTTPS, SSH, DNS_UDP, DNS_TCP, PING = (
    spec("tcp", 80),
    spec("tcp", 443),
    spec("tcp", 22),
    spec("udp", 53),
    spec("tcp", 53),
    spec("icmp"),
)
STRANGER = "192.0.2.1"


def judge(path: Path, rules: EffectiveRuleset, *, everything: bool = False, **settings: int) -> tuple[list[Judged], Replay]:
    with Capture(path) as capture:
        replay = Replay(capture, rules, settings=EngineSettings(**settings), everything=everything)
        return list(replay.judged()), replay


def is_discovery(judged: Judged) -> bool:
    packet = judged.packet
    return packet.protocol == ICMPV6 and packet.icmp_type >= 130


def verdicts(name: str, *rules: object, **options: object) -> Counter[str]:
    """Return how often each verdict came, neighbour discovery and the like left out.

    Of a TCP connection each counts once in a direction: how many segments it took differs from recording to recording.
    """
    judged, _ = judge(FOLDER / name, ruleset(*rules, **options))
    counted, seen = [], set()
    for one in judged:
        packet, verdict = one.packet, f"{one.packet.direction.name} {one.verdict.reason.name}"
        segment = (packet.source, packet.source_port, packet.destination_port, verdict)
        if is_discovery(one) or (packet.protocol == TCP_NUMBER and segment in seen):
            continue
        seen.add(segment)
        counted.append(verdict)
    return Counter(counted)


PAGE_ALLOWED = Counter({"INGRESS NEW": 1, "INGRESS ESTABLISHED": 1, "EGRESS ESTABLISHED": 1})
PAGE_DENIED = Counter({"INGRESS NO_RULE": 1, "INGRESS INVALID_STATE": 1, "EGRESS INVALID_STATE": 1})
KNOCK_ALLOWED = Counter({"INGRESS NEW": 1, "EGRESS ESTABLISHED": 1})
# The reset that it got is no answer to anything then.
KNOCK_DENIED = Counter({"INGRESS NO_RULE": 1, "EGRESS INVALID_STATE": 1})
WEB_ALLOWED, WEB_DENIED = PAGE_ALLOWED + KNOCK_DENIED, PAGE_DENIED + KNOCK_DENIED


@pytest.mark.parametrize("name", ["http_tcp.pcap", "ipv6_http.pcap"])
@pytest.mark.parametrize(
    ("expected", "rules"),
    [
        (WEB_ALLOWED, [HTTP]),
        (WEB_DENIED, [HTTPS]),
        (WEB_DENIED, [spec("udp", 80)]),
        (WEB_DENIED, []),
        # Whatever may go out: the answers belong to nobody's connection.
        (WEB_DENIED, [ALL_OUT]),
        (PAGE_ALLOWED + KNOCK_ALLOWED, [HTTP, SSH]),
        (WEB_ALLOWED, [HTTPS, spec("tcp", 80, remote="peers")]),
        (WEB_DENIED, [spec("tcp", 80, remote="peers", direction=EGRESS)]),
    ],
    ids=["80", "443", "udp 80", "none", "egress", "80 and 22", "80 from the peers", "80 to the peers"],
)
def test_a_web_connection_passes_by_its_rule_only(name: str, expected: Counter[str], rules: list[object]) -> None:
    assert verdicts(name, *rules, peers=(CLIENT4, CLIENT6)) == expected


def test_a_group_of_others_lets_nobody_in() -> None:
    for peers in ((), ("198.51.100.8", "2001:db8:1::8")):
        assert verdicts("http_tcp.pcap", spec("tcp", 80, remote="peers"), peers=peers) == WEB_DENIED


@pytest.mark.parametrize(
    ("expected", "remote"),
    [
        (WEB_ALLOWED, "198.51.100.7/32"),
        (WEB_DENIED, "198.51.100.8/32"),
        (WEB_ALLOWED, "0.0.0.0/0"),
        (WEB_DENIED, "::/0"),
    ],
)
def test_a_cidr_covers_its_own_addresses_and_family(expected: Counter[str], remote: str) -> None:
    assert verdicts("http_tcp.pcap", spec("tcp", 80, remote=remote)) == expected


@pytest.mark.parametrize(
    ("expected", "rules"),
    [
        ({"INGRESS NEW": 2, "EGRESS ESTABLISHED": 2}, [DNS_UDP]),
        ({"INGRESS NO_RULE": 2, "EGRESS NO_RULE": 2}, [DNS_TCP]),
        ({"INGRESS NO_RULE": 2, "EGRESS NO_RULE": 2}, [spec("udp", 54)]),
        ({"INGRESS NO_RULE": 2, "EGRESS NEW": 2}, [ALL_OUT]),
    ],
    ids=["udp 53", "tcp 53", "udp 54", "egress"],
)
def test_a_dns_question_passes_by_its_rule_only(expected: dict[str, int], rules: list[object]) -> None:
    assert verdicts("dns_udp.pcap", *rules) == Counter(expected)


PING_IN = {"INGRESS NEW": 1, "INGRESS ESTABLISHED": 2, "EGRESS ESTABLISHED": 3}
PING_OUT = {"EGRESS NEW": 1, "EGRESS ESTABLISHED": 1, "INGRESS ESTABLISHED": 2}
PING_IN_DENIED = {"INGRESS NO_RULE": 3, "EGRESS INVALID_STATE": 3}
PING_OUT_DENIED = {"EGRESS NO_RULE": 2, "INGRESS INVALID_STATE": 2}


@pytest.mark.parametrize("name", ["ping.pcap", "ping6.pcap", "cooked_ping.pcap"])
@pytest.mark.parametrize(
    ("expected", "rules"),
    [
        ((PING_IN, PING_OUT), [PING, ALL_OUT]),
        ((PING_IN, PING_OUT_DENIED), [PING]),
        ((PING_IN_DENIED, PING_OUT), [ALL_OUT]),
        ((PING_IN_DENIED, PING_OUT), [HTTP, spec("icmp", direction=EGRESS)]),
        ((PING_IN_DENIED, PING_OUT_DENIED), [HTTP]),
    ],
    ids=["both", "in", "out", "icmp out", "neither"],
)
def test_pings_pass_in_the_direction_of_their_rule(name: str, expected: tuple[dict[str, int], ...], rules: list[object]) -> None:
    assert verdicts(name, *rules) == Counter(expected[0]) + Counter(expected[1])


@pytest.mark.parametrize("name", ["icmp_unreachable.pcap", "icmp6_unreachable.pcap"])
@pytest.mark.parametrize(
    ("expected", "rules"),
    [
        # Both datagrams passed, so both errors belong to something.
        ({"INGRESS NEW": 1, "EGRESS RELATED": 1, "EGRESS NEW": 1, "INGRESS RELATED": 1}, [spec("udp", 9999), ALL_OUT]),
        # Nobody asked: the error about the denied datagram needs a rule of its own.
        ({"INGRESS NO_RULE": 1, "EGRESS NO_RULE": 1, "EGRESS NEW": 1, "INGRESS RELATED": 1}, [spec("udp", 9999, direction=EGRESS)]),
        ({"INGRESS NEW": 1, "EGRESS RELATED": 1, "EGRESS NO_RULE": 1, "INGRESS NO_RULE": 1}, [spec("udp", 9999)]),
        ({"INGRESS NO_RULE": 2, "EGRESS NO_RULE": 2}, [spec("udp", 9998)]),
    ],
    ids=["both", "out", "in", "neither"],
)
def test_an_unreachable_passes_with_the_datagram_that_it_quotes(name: str, expected: dict[str, int], rules: list[object]) -> None:
    assert verdicts(name, *rules) == Counter(expected)


@pytest.mark.parametrize(
    ("expected", "rules"),
    [
        # Three fragments each way, IPv4 and IPv6; the later ones get what the first one got.
        ({"INGRESS NEW": 6, "EGRESS ESTABLISHED": 6}, [PING]),
        ({"INGRESS NO_RULE": 6, "EGRESS INVALID_STATE": 6}, [HTTP]),
    ],
)
def test_fragments_get_the_verdict_of_their_first(expected: dict[str, int], rules: list[object]) -> None:
    assert verdicts("fragments.pcap", *rules) == Counter(expected)


def test_later_fragments_alone_are_unknown(tmp_path: Path) -> None:
    whole = Ether() / IP(src=CLIENT4, dst=SERVER4) / ICMP(id=5) / (b"x" * 3000)
    wrpcap(str(tmp_path / "c"), whole.fragment(1480)[1:])
    judged, _ = judge(tmp_path / "c", ruleset(PING))
    assert [one.verdict.reason.name for one in judged] == ["UNKNOWN_FRAGMENT", "UNKNOWN_FRAGMENT"]


def test_both_families_of_a_pcapng_are_judged_by_one_ruleset() -> None:
    assert verdicts("dual_stack_http.pcapng", HTTP) == PAGE_ALLOWED + KNOCK_DENIED + PAGE_ALLOWED
    assert verdicts("dual_stack_http.pcapng", spec("tcp", 80, remote="::/0")) == PAGE_DENIED + KNOCK_DENIED + PAGE_ALLOWED


def test_the_rule_that_decided_is_named_with_its_group() -> None:
    judged, _ = judge(FOLDER / "http_tcp.pcap", ruleset(HTTPS, HTTP))
    named = {(one.verdict.rule_id[-2:], one.group_name) for one in judged if one.verdict.rule_id}
    assert named == {("02", "web")}
    assert {one.group_name for one in judged if not one.verdict.rule_id} == {""}


def test_neighbour_discovery_is_essential_in_the_direction_it_really_went() -> None:
    judged, _ = judge(FOLDER / "ipv6_http.pcap", ruleset())
    discovery = [one for one in judged if is_discovery(one)]
    sent = [one for one in discovery if one.packet.direction is Direction.EGRESS]
    # The server's own, whether from its address, its link-local one or none yet, pass without any rule.
    assert {str(one.packet.source) for one in sent} == {"::", "fe80::ff:fe00:9", SERVER6}
    assert {one.verdict.reason.name for one in sent} == {"ESSENTIAL"}
    solicitations = [one for one in discovery if one.packet.icmp_type == 135 and one.packet.direction is Direction.INGRESS]
    assert {one.verdict.reason.name for one in solicitations} == {"ESSENTIAL"}
    # What other machines tell all routers is for a rule to decide.
    assert {
        one.verdict.reason.name
        for one in discovery
        if one.packet.direction is Direction.INGRESS and one.packet.icmp_type in (133, 143) and not one.packet.source.is_unspecified
    } == {"NO_RULE"}


@pytest.mark.parametrize("name", CAPTURES)
def test_every_frame_is_accounted_for(name: str) -> None:
    for everything in (False, True):
        for addresses in ((SERVER4, SERVER6), (CLIENT4, CLIENT6), (STRANGER,)):
            judged, replay = judge(FOLDER / name, ruleset(HTTP, addresses=addresses), everything=everything)
            totals = replay.totals()
            left_out = totals["not_ip"] + (0 if everything else totals["other"])
            assert totals["packets"] == len(judged) == totals["frames"] - left_out
            assert totals["allowed"] + totals["denied"] == len(judged) == sum(totals["reasons"].values())
            assert (totals["cut"], totals["malformed"], totals["damage"], replay.problems) == (0, 0, "", [])
            assert sum(line.packets.total() for line in replay.flows) == len(judged)


def test_seen_from_the_other_end_everything_goes_the_other_way() -> None:
    ours, _ = judge(FOLDER / "http_tcp.pcap", ruleset(HTTP))
    theirs, _ = judge(FOLDER / "http_tcp.pcap", ruleset(spec("tcp", 80, direction=EGRESS), addresses=(CLIENT4,)))
    assert [one.packet.direction.opposite for one in ours] == [one.packet.direction for one in theirs]
    assert [one.verdict.reason for one in ours] == [one.verdict.reason for one in theirs]


def recorded(path: Path, *layers: Layers) -> Path:
    wrpcap(str(path), list(layers))
    return path


def from_server(**fields: object) -> Ether:
    return Ether(src=SERVER_HARDWARE, dst=CLIENT_HARDWARE, **fields)


def from_client(**fields: object) -> Ether:
    return Ether(src=CLIENT_HARDWARE, dst=SERVER_HARDWARE, **fields)


OWN = from_server() / IP(src=SERVER4, dst=CLIENT4) / UDP(sport=1, dport=2)
FORGED = from_server() / IP(src=STRANGER, dst=CLIENT4) / UDP(sport=1, dport=2)


@pytest.mark.parametrize(
    ("expected", "layers"),
    [
        ("EGRESS", [OWN]),
        ("INGRESS", [from_client() / IP(src=CLIENT4, dst=SERVER4) / UDP(sport=1, dport=2)]),
        ("EGRESS", [from_server() / Dot1Q(vlan=9) / IP(src=SERVER4, dst=CLIENT4) / UDP(sport=1, dport=2)]),
        ("", [from_client() / IP(src=CLIENT4, dst=STRANGER) / UDP(sport=1, dport=2)]),
        # To itself.
        ("EGRESS", [from_server() / IP(src=SERVER4, dst=SERVER4) / UDP(sport=1, dport=2)]),
        # For many.
        ("EGRESS", [from_server() / IP(src=SERVER4, dst="224.0.0.251") / UDP(sport=1, dport=2)]),
        ("INGRESS", [from_client() / IP(src=CLIENT4, dst="224.0.0.251") / UDP(sport=1, dport=2)]),
        ("INGRESS", [from_client() / IP(src=CLIENT4, dst="255.255.255.255") / UDP(sport=1, dport=2)]),
        # The engine knows no subnets, so a subnet's broadcast address is somebody else's.
        ("", [from_client() / IP(src=CLIENT4, dst="10.0.0.255") / UDP(sport=1, dport=2)]),
        # DHCP before there is an address: the hardware address tells, once it is known.
        ("EGRESS", [from_server() / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67), OWN]),
        ("INGRESS", [from_server() / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)]),
        ("INGRESS", [from_client() / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67), OWN]),
        # Link-local, to the server's own link-local address.
        ("INGRESS", [from_client() / IP(src="169.254.1.1", dst="169.254.1.2") / UDP(sport=1, dport=2), OWN]),
        ("", [from_client(type=0x0800) / IP(src="169.254.1.1", dst="169.254.1.2") / UDP(sport=1, dport=2)]),
    ],
)
def test_the_direction_of_a_packet(tmp_path: Path, expected: str, layers: list[Layers]) -> None:
    judged, replay = judge(recorded(tmp_path / "c", *layers), ruleset())
    first = [one for one in judged if one.number == 1]
    assert [one.packet.direction.name for one in first] == ([expected] if expected else [])
    assert replay.totals()["other"] == (0 if expected else 1)


def test_a_hardware_address_that_sends_for_others_too_is_a_routers(tmp_path: Path) -> None:
    discover = from_server() / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    judged, _ = judge(recorded(tmp_path / "c", discover, OWN, FORGED), ruleset())
    assert [one.packet.direction.name for one in judged] == ["INGRESS", "EGRESS"]


def test_with_all_the_packets_of_others_are_judged_as_what_the_wire_would_say(tmp_path: Path) -> None:
    path = recorded(tmp_path / "c", OWN, from_client() / IP(src=CLIENT4, dst=STRANGER) / UDP(sport=1, dport=2))
    without, _ = judge(path, ruleset(ALL_OUT))
    judged, replay = judge(path, ruleset(ALL_OUT), everything=True)
    assert [one.verdict.reason.name for one in without] == ["NEW"]
    assert [one.verdict.reason.name for one in judged] == ["NEW", "NOT_LOCAL"]
    assert replay.totals()["other"] == 1


def test_time_is_that_of_the_capture(tmp_path: Path) -> None:
    question = from_client() / IP(src=CLIENT4, dst=SERVER4) / UDP(sport=1000, dport=53)
    answer = from_server() / IP(src=SERVER4, dst=CLIENT4) / UDP(sport=53, dport=1000)
    for pause_s, reason in ((29, "ESTABLISHED"), (31, "NO_RULE")):
        question.time, answer.time = 1_700_000_000, 1_700_000_000 + pause_s
        judged, _ = judge(recorded(tmp_path / "c", question, answer), ruleset(DNS_UDP))
        assert [(one.time_ns, one.verdict.reason.name) for one in judged] == [(0, "NEW"), (pause_s * 10**9, reason)]


def test_time_that_goes_back_stands_still(tmp_path: Path) -> None:
    packets = [OWN.copy() for _ in range(4)]
    for one, time in zip(packets, (100, 105, 99, 106), strict=True):
        one.time = time
    judged, replay = judge(recorded(tmp_path / "c", *packets), ruleset(ALL_OUT))
    assert [one.time_ns // 10**9 for one in judged] == [0, 5, 5, 6]
    assert replay.totals()["clock_went_back"] == 1


@pytest.mark.parametrize(
    ("times", "expected", "went_back"),
    [
        ([100, 105, 99, 106], [0, 5, 5, 6], 1),
        ([100, 99, 98, 101], [0, 0, 0, 1], 2),
        ([100, None, 107, None], [0, 0, 7, 7], 0),
        ([None, 100, None, 99], [0, 0, 0, 0], 1),
        ([None, None], [0, 0], 0),
        ([5, 5 + 2**63, 6, 5 + 2**62], [0, 2**62, 2**62, 2**62], 1),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_the_clock_begins_at_0_and_never_goes_back(
    times: list[int | None], expected: list[int], went_back: int, at_once: int
) -> None:
    clock = Clock()
    read = [moment for at in range(0, len(times), at_once) for moment in clock.read(times[at : at + at_once])]
    assert (read, clock.went_back) == (expected, went_back)


def test_a_connection_open_before_the_capture_needs_leave(tmp_path: Path) -> None:
    segment = from_client() / IP(src=CLIENT4, dst=SERVER4) / TCP(sport=1000, dport=80, flags="A")
    path = recorded(tmp_path / "c", segment)
    for loose_s, rule, reason in ((0, HTTP, "INVALID_STATE"), (60, HTTP, "NEW"), (60, HTTPS, "INVALID_STATE")):
        judged, _ = judge(path, ruleset(rule), tcp_loose_s=loose_s)
        assert [one.verdict.reason.name for one in judged] == [reason]


def test_frames_that_can_not_be_read_are_counted_and_told_up_to_a_bound(tmp_path: Path) -> None:
    cut = Ether(bytes(OWN)[:30])
    short = Ether() / IP(bytes(IP(src=CLIENT4, dst=SERVER4, len=24, proto=17) / b"abcd"))
    judged, replay = judge(recorded(tmp_path / "c", OWN, cut, *[short] * PROBLEMS_MAX), ruleset(ALL_OUT))
    assert [one.number for one in judged] == [1]
    assert (replay.totals()["cut"], replay.totals()["malformed"]) == (1, PROBLEMS_MAX)
    assert replay.problems[:2] == [
        "frame 2: 16 bytes of an IPv4 header, the rest was not recorded",
        "frame 3: 4 bytes of the header of protocol 17",
    ]
    assert len(replay.problems) == PROBLEMS_MAX


def test_damage_keeps_the_verdicts_before_it(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes((FOLDER / "http_tcp.pcap").read_bytes()[:-5])
    whole, _ = judge(FOLDER / "http_tcp.pcap", ruleset(HTTP))
    judged, replay = judge(path, ruleset(HTTP))
    assert judged == whole[:-1]
    assert replay.damage.startswith("the file ends in the middle of a packet")


def test_frames_of_an_unknown_kind_are_refused_before_anything_is_judged(tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "c"), [OWN], linktype=105)
    with Capture(tmp_path / "c") as capture, pytest.raises(CaptureError, match=r"^frames of link type 105 can't be read"):
        Replay(capture, ruleset())


def test_a_rule_of_an_unknown_kind_is_refused() -> None:
    strange = spec("tcp", 80)
    strange.protocol = 99
    with Capture(FOLDER / "ping.pcap") as capture, pytest.raises(UnenforceableError, match=r"protocol 99 is not known"):
        Replay(capture, ruleset(strange))


def test_flows_put_both_directions_and_all_fragments_into_one_line() -> None:
    _, replay = judge(FOLDER / "fragments.pcap", ruleset(PING))
    pings = {line.text: line for line in replay.flows if "echo" in line.kind}
    assert sorted(pings) == [
        "ICMP 198.51.100.7 > 10.0.0.9 echo request id 704",
        "ICMPv6 2001:db8:1::7 > 2001:db8::9 echo request id 706",
    ]
    assert [line.packets.total() for line in pings.values()] == [6, 6]
    assert [line.opened for line in pings.values()] == [1, 1]


def test_flows_are_listed_in_order_with_the_verdict_of_their_first_packet() -> None:
    _, replay = judge(FOLDER / "icmp_unreachable.pcap", ruleset(spec("udp", 9999)))
    assert [(line.text, line.verdict.reason.name) for line in replay.flows] == [
        ("UDP 198.51.100.7:40099 > 10.0.0.9:9999", "NEW"),
        ("ICMP 10.0.0.9 > 198.51.100.7 port unreachable", "RELATED"),
        ("UDP 10.0.0.9:40098 > 198.51.100.7:9999", "NO_RULE"),
        ("ICMP 198.51.100.7 > 10.0.0.9 port unreachable", "NO_RULE"),
    ]


def test_a_list_of_flows_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("secgroups.lab.replay.tally.FLOW_LINES_MAX", 3)
    scan = [from_client() / IP(src=CLIENT4, dst=SERVER4) / UDP(sport=1000, dport=port) for port in range(1, 8)]
    judged, replay = judge(recorded(tmp_path / "c", *scan), ruleset())
    assert len(judged) == 7
    assert (len(replay.flows), replay.totals()["packets_of_unlisted_flows"]) == (3, 4)


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("rules", [[HTTP, PING, ALL_OUT], [DNS_UDP, spec("udp", 9999)], []], ids=["web", "dns", "none"])
def test_both_engines_say_the_same(name: str, rules: list[object]) -> None:
    for everything in (False, True):
        said = []
        for engine in sorted(ENGINES):
            with Capture(FOLDER / name) as capture:
                replay = Replay(capture, ruleset(*rules), engine=engine, everything=everything)
                said.append((list(replay.judged()), replay.totals()))
        assert said[0] == said[1]


def test_the_engine_that_is_chosen_is_the_one_that_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in list(ENGINES):
        with monkeypatch.context() as patched:
            patched.delitem(ENGINES, engine)
            with Capture(FOLDER / "ping.pcap") as capture, pytest.raises(ConfigError, match=engine):
                Replay(capture, ruleset(), engine=engine)


def test_two_replays_of_one_capture_say_the_same() -> None:
    first, _ = judge(FOLDER / "ipv6_http.pcap", ruleset(HTTP))
    second, _ = judge(FOLDER / "ipv6_http.pcap", ruleset(HTTP))
    assert first == second
    assert first != [replace(one, number=one.number + 1) for one in second]
