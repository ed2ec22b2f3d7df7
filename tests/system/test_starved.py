"""An agent that runs out of memory in the middle of an update ends, says why, and comes back with what was good."""

from __future__ import annotations

import resource
from collections.abc import Callable
from ipaddress import ip_network
from itertools import islice
from pathlib import Path

import pytest
from running_system import TIMEOUT_S, System, wait_until

from secgroups.agent._engine import CHECKED
from secgroups.v1 import attachment_service_pb2 as attachments_pb
from secgroups.v1 import rule_service_pb2 as rules_pb
from secgroups.v1 import types_pb2 as types
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub

WEB = "10.0.0.9"
# What comes takes the engine 7 MiB or so, and everything else some hundred KiB.
SPARE_BYTES = 1536 << 10
GROUPS, RULES_PER_GROUP = 3, 200


def make_large_group(site: System, number: int) -> str:
    """Make a group with rules for networks of 128 addresses, which an engine has to know one by one; return its id."""
    networks = ip_network(f"10.{number}.0.0/16").subnets(new_prefix=25)
    rules = [
        types.RuleSpec(direction=types.DIRECTION_INGRESS, protocol=types.PROTOCOL_TCP, cidr=str(network))
        for network in islice(networks, RULES_PER_GROUP)
    ]
    group_id = site.group(f"many-{number}")
    request = rules_pb.ReplaceRulesRequest(project=site.project, group_id=group_id, rules=rules)
    site.ask(RuleServiceStub, "ReplaceRules", request)
    return group_id


@pytest.mark.skipif(CHECKED, reason="what watches memory takes all the addresses that there are")
def test_an_agent_that_lacks_memory_for_an_update_ends_and_comes_back_with_what_was_good(
    system: Callable[..., System], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With one arena, what is left of the limit is all that there is to be had.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    site = system("a1")
    agent = site.stack.agents["a1"]
    group_ids = [site.group("web", 80)]
    site.server("w1", WEB, "a1", *group_ids)
    assert site.wait_in_force().in_force
    wait_until(lambda: site.cached("a1", f"{site.project}/w1"), "the cache is written")
    group_ids += [make_large_group(site, number) for number in range(GROUPS)]
    process = agent.popen
    assert process is not None
    used_bytes = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (used_bytes + SPARE_BYTES, resource.RLIM_INFINITY))
    request = attachments_pb.SetServerGroupsRequest(project=site.project, server_id="w1", group_ids=group_ids)
    site.ask(AttachmentServiceStub, "SetServerGroups", request)
    assert process.wait(TIMEOUT_S) == 1
    (said,) = site.logged("a1", "engine_broken")
    assert "half in force when memory ran out" in said["reason"]

    # As its supervisor would, while nobody tells it anything.
    site.stack.controller.stop()
    agent.start()
    assert site.stats("a1").from_cache
    assert [site.decide("a1", "w1", WEB, port) for port in (80, 22)] == ["NEW", "NO_RULE"]
    site.stack.controller.start()
    wait_until(lambda: site.agent_is_in_sync("a1"), "the update is in force")
    assert site.stats("a1").groups == len(group_ids)
