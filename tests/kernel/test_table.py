"""Our tables among others: what is put there, what becomes of it when somebody touches it, and how it is given up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import reply, tcp, udp
from netns import run
from rig import DB, EGRESS, WEB, Rig, allow, until
from structlog.testing import capture_logs

from secgroups.agent.errors import EnforcementError
from secgroups.agent.kernel.enforcer import KernelEnforcer
from secgroups.agent.kernel.nft import Nft
from secgroups.agent.kernel.settings import KernelSettings
from secgroups.agent.ruleset import Ruleset

WEB4, CLIENT, OTHER = "10.0.0.9", "203.0.113.7", "198.51.100.1"
HTTP, DNS, OUT = allow("http", protocol=6, ports=80), allow("dns", protocol=17, ports=53), allow("out", EGRESS)
FOREIGN = """
table inet foreign {
    set kept { type ipv4_addr; elements = { 192.0.2.77 } }
    chain mangle {
        type filter hook forward priority mangle; policy accept;
        ct mark set ct mark and 0xffffff00 or 0x5a
    }
    chain watch {
        type filter hook forward priority 50; policy accept;
        ip saddr @kept drop
    }
}
"""


@pytest.fixture
async def guarded(rig: Rig) -> Rig:
    await rig.change(groups={"web": [HTTP, DNS]}, servers={WEB: ["web"]}, members={})
    await rig.stamped()
    return rig


def tables(rig: Rig) -> set[str]:
    listed = json.loads(rig.world.nft("-j", "list", "tables"))["nftables"]
    return {each["table"]["name"] for each in listed if "table" in each}


async def test_foreign_tables_and_mark_bits_stay_as_they_are(guarded: Rig, tmp_path: Path) -> None:
    file = tmp_path / "foreign.nft"
    file.write_text(FOREIGN)
    guarded.world.nft("-f", str(file))
    try:
        before = guarded.world.nft("list", "table", "inet", "foreign")
        opening = udp(CLIENT, WEB4, 53)
        assert guarded.agree(opening)
        for rules in ([], [DNS], [HTTP, DNS]):
            await guarded.change(groups={"web": rules})
            guarded.agree(opening)
            guarded.agree(reply(opening))
        marks = run("ip", "netns", "exec", guarded.world.router, "conntrack", "-L", "-p", "udp", "--dport", "53")
        (mark,) = {int(word.removeprefix("mark=")) for word in marks.split() if word.startswith("mark=")}
        assert mark & 0xFF == 0x5A
        assert mark & 0xFFFFFF00
        await guarded.close()
        marks = run("ip", "netns", "exec", guarded.world.router, "conntrack", "-L", "-p", "udp", "--dport", "53")
        assert "mark=90" in marks
        assert guarded.world.nft("list", "table", "inet", "foreign") == before
        assert tables(guarded) == {"foreign"}
    finally:
        guarded.world.nft("delete", "table", "inet", "foreign")


@pytest.mark.parametrize(
    "damage",
    [
        ("flush", "ruleset"),
        ("delete", "table", "inet", "secgroups-a"),
        ("flush", "table", "inet", "secgroups-a"),
        ("flush", "chain", "inet", "secgroups-a", "opener"),
        ("insert", "rule", "inet", "secgroups-a", "opener", "accept"),
        ("flush", "map", "inet", "secgroups-a", "opens4"),
        ("add", "element", "inet", "secgroups-a", "servers4", "{ 192.0.2.9 }"),
        ("add", "chain", "inet", "secgroups-a", "more"),
        ("add", "table", "inet", "secgroups-a", "{ flags dormant; }"),
    ],
    ids=" ".join,
)
async def test_what_somebody_damages_is_put_back_and_told(guarded: Rig, damage: tuple[str, ...]) -> None:
    opening = udp(CLIENT, WEB4, 53)
    assert guarded.agree(opening)
    with capture_logs() as logs:
        guarded.world.nft(*damage)
        await until(lambda: any(each["event"] == "kernel_table_restored" for each in logs), "the table is put back")
        (told,) = [each for each in logs if each["event"] == "kernel_table_changed"]
        await guarded.stamped()
    assert told["by"] == "nft"
    assert len(tables(guarded)) == 1
    assert guarded.agree(reply(opening))
    assert not guarded.agree(tcp(CLIENT, WEB4, 81))


async def test_changes_of_other_tables_are_not_ours(guarded: Rig) -> None:
    with capture_logs() as logs:
        guarded.world.nft("add", "table", "inet", "foreign")
        guarded.world.nft("delete", "table", "inet", "foreign")
        await guarded.change(groups={"web": [HTTP]})
    assert [each["event"] for each in logs] == []
    assert tables(guarded) == {"secgroups-a"}


async def test_a_new_agent_takes_over_without_a_gap(guarded: Rig) -> None:
    opening, refused = udp(CLIENT, WEB4, 53), tcp(CLIENT, WEB4, 81)
    assert guarded.passes(opening)
    for _ in range(3):
        await guarded.enforcer.stop()
        guarded.enforcer = KernelEnforcer(KernelSettings())
        # As when the agent was killed: nothing tells the kernel.
        assert guarded.passes(reply(opening))
        assert not guarded.passes(refused)
        await guarded.enforcer.start(guarded.ruleset)
        assert guarded.passes(opening)
        assert not guarded.passes(refused)
        await guarded.stamped()
        assert guarded.passes(reply(opening))
        assert len(tables(guarded)) == 1
    await guarded.change(groups={"web": [HTTP]})
    assert not guarded.passes(opening)


async def test_an_agent_that_has_lost_its_rules_leaves_those_in_force(guarded: Rig) -> None:
    opening = udp(CLIENT, WEB4, 53)
    await guarded.enforcer.stop()
    guarded.enforcer = KernelEnforcer(KernelSettings())
    await guarded.enforcer.start(Ruleset())
    assert guarded.passes(opening)
    assert not guarded.passes(tcp(CLIENT, WEB4, 81))
    await guarded.change(groups={"web": [HTTP]})
    assert not guarded.passes(opening)


async def test_marks_of_before_do_not_count(guarded: Rig) -> None:
    opening = udp(CLIENT, WEB4, 53)
    assert guarded.passes(opening)
    await guarded.enforcer.stop()
    guarded.world.nft("flush", "ruleset")
    guarded.enforcer = KernelEnforcer(KernelSettings())
    await guarded.enforcer.start(guarded.ruleset)
    # The same numbers of epochs, but other rules.
    await guarded.change(groups={"web": [HTTP]})
    await guarded.stamped()
    assert not guarded.passes(opening)


async def test_a_refusal_of_nft_leaves_the_last_good_state_and_the_next_attempt_repairs(rig: Rig) -> None:
    failing = FailingNft()
    rig.settings(KernelSettings(), failing)
    await rig.change(groups={"web": [HTTP, DNS]}, servers={WEB: ["web"]})
    await rig.stamped()
    failing.well = False
    with pytest.raises(EnforcementError, match=r"nftables refused: .*No such file or directory"):
        await rig.change(groups={"web": [HTTP]})
    assert rig.enforcer.revision == 1
    assert rig.passes(udp(CLIENT, WEB4, 53))
    assert not rig.passes(tcp(CLIENT, WEB4, 81))
    failing.well = True
    await rig.enforcer.apply(rig.ruleset)
    assert rig.enforcer.revision == 2
    assert not rig.passes(udp(CLIENT, WEB4, 53))


class FailingNft(Nft):
    """The real nft, given a command too many that it refuses, unless it is ``well``."""

    well = True

    async def change(self, commands: list[dict[str, object]]) -> None:
        refused = [] if self.well else [{"delete": {"table": {"family": "inet", "name": "no-such-table"}}}]
        await super().change([*commands, *refused])


async def test_a_second_agent_is_refused(guarded: Rig) -> None:
    second = KernelEnforcer(KernelSettings())
    with pytest.raises(EnforcementError, match="another agent enforces in this network namespace"):
        await second.start(guarded.ruleset)
    with pytest.raises(EnforcementError, match="another agent enforces in this network namespace"):
        await second.clean_up()
    assert guarded.agree(udp(CLIENT, WEB4, 53))


async def test_an_address_that_two_servers_claim_is_closed_and_told(rig: Rig) -> None:
    with capture_logs() as logs:
        await rig.change(
            groups={"web": [allow("all")]},
            servers={WEB: ["web"], "q/web": ["web"], DB: ["web"]},
            addresses={"q/web": [WEB4]},
        )
    assert [each["addresses"] for each in logs if each["event"] == "kernel_addresses_shared"] == [[WEB4]]
    assert not rig.passes(tcp(CLIENT, WEB4, 80))
    assert rig.passes(tcp(CLIENT, "10.0.0.5", 80))


async def test_a_server_whose_rules_are_not_held_is_closed(rig: Rig) -> None:
    await rig.change(groups={"web": [allow("all"), OUT]}, servers={WEB: ["web", "unknown"]})
    assert not rig.agree(tcp(CLIENT, WEB4, 80))
    assert not rig.agree(tcp(WEB4, CLIENT, 80))
    await rig.change(groups={"unknown": []})
    assert rig.agree(tcp(CLIENT, WEB4, 80))


async def test_a_server_that_goes_is_guarded_no_more(guarded: Rig) -> None:
    await guarded.change(gone=[WEB])
    assert guarded.passes(tcp(CLIENT, WEB4, 81))
