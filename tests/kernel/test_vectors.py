"""The contract, case by case, with real packets: what the engine says of a packet is what the kernel does with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from case_kernel import CaseKernel, Difference, KernelRun
from netns import inside, lacking
from tunnels import Router, lacking_tunnels

from secgroups.lab.cases.loader import load
from secgroups.lab.cases.local import LocalWorlds
from secgroups.lab.cases.model import AddServer, Case
from secgroups.lab.cases.report import human_line

CASES = load(sorted(map(str, (Path(__file__).parents[1] / "vectors").glob("*.yaml"))))

# The cases of which some packets are not sent.
NOT_SENT: dict[Difference, set[str]] = {
    Difference.TIME: {
        "controller_outage: agents enforce what they have while the controller is away",
        "controller_outage: a flow whose time runs out while the controller is away is over",
        "related: an ICMP error about a flow that is over is not related",
        "revocation: a silent flow whose rule comes back before it speaks never noticed",
        "revocation: a revoked UDP flow is not reopened by the server's next packet",
        "revocation: packets of the opening direction prolong a revoked UDP flow",
        "revocation: a revoked TCP connection is remembered for 300 s",
        "revocation: a revoked ping is remembered for 30 s",
        "tcp: an unanswered SYN is forgotten after 120 s",
        "tcp: a handshake that is not completed is forgotten after 60 s",
        "tcp: an established connection is forgotten after five days without a packet",
        "tcp: a connection closes by FIN from both ends, and lingers 120 s",
        "tcp: after one FIN the connection is forgotten after 120 s, after its acknowledgement 60 s",
        "tcp: after both FINs the last acknowledgement has 30 s",
        "tcp: RST closes and leaves 10 s",
        "tcp: a connection between two servers is tracked at each of them",
        "udp_icmp: unanswered UDP is forgotten after 30 s",
        "udp_icmp: repeated questions keep unanswered UDP at 30 s",
        "udp_icmp: answered UDP is forgotten after 120 s",
        "udp_icmp: ICMP is forgotten after 30 s, answered or not",
        "udp_icmp: a protocol without ports has one flow for each pair of addresses, for 600 s",
        "udp_icmp: SCTP is told apart by its ports",
    },
    Difference.BOUNDS: {
        "bounds: a full table denies what it can't track, and keeps what is answered",
        "bounds: expired flows make room",
        "bounds: unanswered flows make room, the one opened first before the others",
        "bounds: a server has a share of the table",
        "bounds: a full share makes room from the server's own unanswered flows",
        "bounds: a full table makes room from unanswered flows of the same server first",
        "bounds: a server with less than its part always finds room",
        "bounds: a SYN flood does not push out established connections",
        "bounds: what is not tracked needs no room",
    },
    Difference.MID_STREAM: {
        "cold_start: after a cold start TCP may be accepted mid-stream for a while",
        "cold_start: a connection goes on over a cold restart that is told to be loose",
        "cold_start: loose is not blind, what can't be mid-stream is not accepted",
        "cold_start: a warm restart starts no new loose time",
    },
    Difference.FRAGMENTS: {
        "fragments: a later fragment gets what its first fragment got",
        "fragments: a later fragment of a packet nobody saw begin is denied",
        "fragments: a first fragment is remembered for 30 s",
        "fragments: fragments are forgotten when the rules change",
        "fragments: fragments of a flow are established as it is",
        "fragments: a fragment with a forged source or for somebody else is no exception",
        "fragments: fragments between two servers pass both of them",
    },
    Difference.PROJECTS: {
        "projects: two projects may use the same addresses and names",
        "projects: the state of two projects does not mix",
        "projects: every project has a default group of its own",
        "projects: names are free in another project",
    },
    Difference.NOT_ROUTED: {
        "essential_services: a server gets its address by DHCP whatever the rules say",
        "essential_services: a server gets its address by DHCPv6 whatever the rules say",
        "essential_services: neighbours and multicast listeners speak whatever the rules say",
        "essential_services: neighbour discovery of the wrong direction or source is not essential",
        "essential_services: switched off, essential services are traffic like any other",
        "essential_services: no server acts as a DHCP server or router, whatever the rules say",
        "verdict_order: row 3, sources that nothing is sent from",
        "verdict_order: row 6, multicast and broadcast are for everybody, and rules decide",
        "verdict_order: row 13, nothing is tracked towards many",
    },
    Difference.FAMILIES: {
        "verdict_order: row 3, addresses of two families",
    },
    Difference.TWO_JUDGES: {
        "remote_groups: egress to a group reaches its members only",
        "revocation: a client whose address leaves the remote group is cut off",
    },
    Difference.ICMP_ERRORS: {
        "related: an ICMP error about a flow that is not there needs a rule",
    },
}
# By case: the number of the step, and why the packet fares otherwise there.
OTHERWISE: dict[str, dict[int, Difference]] = {
    "revocation: a server whose address is taken away loses its flows on it": {7: Difference.LOST_ADDRESS},
    "revocation: a deleted server loses all its flows": {5: Difference.LOST_ADDRESS},
    "revocation: a connection resumes in the state in which it was revoked": {5: Difference.REVOKED},
    "rules_canonical: an ICMP rule covers its type and code, in both families": {3: Difference.CODE},
}


def _id(case: Case) -> str:
    return f"{Path(case.file).stem}: {case.name}"


def _servers(case: Case) -> int:
    return len(case.servers) + sum(isinstance(step.action, AddServer) for step in case.steps)


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    if why := lacking() or lacking_tunnels():
        pytest.skip(why)
    made = Router(max(map(_servers, CASES)))
    try:
        with inside(made.namespace):
            yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def worlds() -> Iterator[LocalWorlds]:
    with LocalWorlds("compiled") as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=map(_id, CASES))
def test_the_kernel_does_what_the_engine_says(router: Router, worlds: LocalWorlds, case: Case) -> None:
    world = worlds.make(case)
    kernel = CaseKernel(router, case)
    try:
        run = KernelRun(case, world)
        played = run.attach(kernel)
        outcome = run.run()
    finally:
        kernel.close()
        world.close()
    assert outcome.ok, human_line(outcome)
    name = _id(case)
    assert played.differing.keys() == OTHERWISE.get(name, {}).keys(), played.differing
    assert set(played.not_sent.values()) == {difference for difference, names in NOT_SENT.items() if name in names}, played.not_sent


def test_what_is_listed_is_in_the_files() -> None:
    listed = set(OTHERWISE).union(*NOT_SENT.values())
    assert listed <= set(map(_id, CASES))
    assert set(Difference) == NOT_SENT.keys() | {difference for steps in OTHERWISE.values() for difference in steps.values()}


def test_a_kernel_that_enforces_other_rules_is_found_out(router: Router, worlds: LocalWorlds) -> None:
    (case,) = [each for each in CASES if each.name == "rows 11 and 13, the rules of the packet's direction"]
    world = worlds.make(case)
    kernel = CaseKernel(router, case)
    try:
        run = KernelRun(case, world)
        played = run.attach(kernel)
        # What the engine gets from now on does not get to the kernel.
        kernel.enforce(world.holdings().enforced)
        kernel.enforce = lambda _: None  # type: ignore[method-assign]
        assert run.run().ok
    finally:
        kernel.close()
        world.close()
    assert played.differing.keys() == {1, 3}
