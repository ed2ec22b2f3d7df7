"""Small changes that go past nft: the kernel holds the same as if nft had made them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import udp
from rig import DB, EGRESS, WEB, Rig, allow

from secgroups.agent.errors import EnforcementError
from secgroups.agent.kernel.batch import ELEMENTS_MAX, encode
from secgroups.agent.kernel.nft import Nft
from secgroups.agent.kernel.settings import KernelSettings
from secgroups.agent.kernel.statements import Command, Table, goto

WEB4, CLIENT = "10.0.0.9", "203.0.113.7"
OURS = Table("secgroups-a")
BY_GROUP = [allow("g", protocol=17, ports=53, group="friends"), allow("out", EGRESS)]


class LibraryNft(Nft):
    """Makes every change by libnftables."""

    def _change(self, commands: Sequence[Command]) -> None:
        self._change_by_library(commands)


class CountingNft(Nft):
    """Counts the changes that libnftables makes."""

    by_library = 0

    def _change_by_library(self, commands: Sequence[Command]) -> None:
        self.by_library += 1
        super()._change_by_library(commands)


Change = Callable[[Rig], Any]
SMALL: dict[str, Change] = {
    "a member comes": lambda rig: rig.change(members={"friends": [CLIENT, "192.0.2.7", "2001:db8:1::7"]}),
    "members go": lambda rig: rig.change(members={"friends": []}),
    "a server takes another policy": lambda rig: rig.change(servers={"p/db2": ["web"]}, addresses={"p/db2": ["10.0.0.78"]}),
    "a server with a policy that is there": lambda rig: rig.change(servers={"p/new": ["db"]}, addresses={"p/new": ["10.0.0.77"]}),
    "a server takes the last of a policy with it": lambda rig: rig.change(servers={WEB: ["db"]}),
    "nothing is allowed any more": lambda rig: rig.change(groups={"db": []}),
    "a server goes, its policy stays": lambda rig: rig.change(gone=["p/db2"]),
}


async def listed_after(rig: Rig, nft: Nft, change: Change) -> list[Any]:
    """Return what the table holds after a change, without what differs from one table to the next."""
    rig.settings(KernelSettings(), nft)
    await rig.change(
        groups={"web": BY_GROUP, "db": [allow("d", protocol=6, ports=5432, group="friends")]},
        servers={WEB: ["web"], DB: ["db"], "p/db2": ["db"]},
        addresses={"p/db2": ["10.0.0.78"]},
        members={"friends": [CLIENT]},
    )
    await rig.stamped()
    before = nft.by_library if isinstance(nft, CountingNft) else 0
    await change(rig)
    if isinstance(nft, CountingNft):
        assert nft.by_library == before
    listed = json.loads(rig.world.nft("-j", "list", "table", "inet", OURS.name))["nftables"]
    for each in listed:
        ((_, value),) = each.items()
        value.pop("handle", None)
    return [each for each in listed if "metainfo" not in each]


@pytest.mark.parametrize("change", SMALL.values(), ids=SMALL)
async def test_a_small_change_leaves_what_nft_would_have_left(rig: Rig, change: Change) -> None:
    past_nft = await listed_after(rig, CountingNft(), change)
    await rig.close()
    twin = Rig(rig.world)
    try:
        assert past_nft == await listed_after(twin, LibraryNft(), change)
    finally:
        await twin.close()


async def test_what_can_not_be_made_past_nft_is_refused_whole_and_in_words(rig: Rig) -> None:
    await rig.change(groups={"web": BY_GROUP}, servers={WEB: ["web"]}, members={"friends": [CLIENT]})
    await rig.stamped()
    nft = CountingNft()
    commands = [OURS.add_elements("servers4", ["192.0.2.1"]), OURS.delete_elements("servers4", ["192.0.2.2"])]
    assert encode(commands) is not None
    with pytest.raises(EnforcementError, match=r"nftables refused: .*No such file or directory"):
        await nft.change(commands)
    assert "192.0.2.1" not in rig.world.nft("list", "set", "inet", OURS.name, "servers4")
    # And the next one is not taken for that.
    await nft.change([OURS.delete_elements("servers4", [WEB4]), OURS.add_elements("servers4", [WEB4])])
    assert nft.by_library == 1
    assert rig.passes(udp(CLIENT, WEB4, 53))


@pytest.mark.parametrize(
    ("known", "commands"),
    [
        (True, [OURS.add_elements("servers4", ["192.0.2.1"] * ELEMENTS_MAX)]),
        (False, [OURS.add_elements("servers4", ["192.0.2.1"] * (ELEMENTS_MAX + 1))]),
        (True, [OURS.add_elements("opens6", [["2001:db8::9", goto("egress-1")]] * ELEMENTS_MAX)]),
        (False, [OURS.add_elements("ports", ["tap0"])]),
        (True, [OURS.add_chain("more")]),
        (False, [OURS.add_base_chain("more", "forward", 0)]),
        (False, [OURS.add_elements("servers4", ["192.0.2.1"]), OURS.add_set("more", ("ipv4_addr",))]),
        (False, [OURS.flush_chain("opener")] * 501),
    ],
    ids=range(8),
)
def test_only_what_is_small_and_of_a_form_that_is_known_goes_past_nft(known: bool, commands: list[Command]) -> None:
    assert (encode(commands) is not None) is known


async def test_as_many_elements_as_may_be_go_past_nft(rig: Rig) -> None:
    addresses = [f"2001:db8:7::{number:x}" for number in range(1, ELEMENTS_MAX)]
    nft = CountingNft()
    rig.settings(KernelSettings(), nft)
    await rig.change(groups={"web": BY_GROUP}, servers={WEB: ["web"]}, members={"friends": []})
    await rig.stamped()
    before = nft.by_library
    await rig.change(members={"friends": addresses})
    assert nft.by_library == before
    assert rig.world.nft("list", "set", "inet", OURS.name, "members-1-6").count("2001:db8:7::") == len(addresses)
