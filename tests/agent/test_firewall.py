"""The firewall as a library: settings, engines, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import secgroups.agent
from secgroups.agent import EngineSettings, Firewall
from secgroups.agent.errors import ConfigError


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("flows_max 3 is not in 4..67108864", {"flows_max": 3}),
        ("flows_max 67108865 is not in 4..67108864", {"flows_max": 67_108_865}),
        ("server_flows_max 3 is not in 4..67108864", {"server_flows_max": 3}),
        ("tcp_loose_s -1 is not in 0..86400", {"tcp_loose_s": -1}),
        ("tcp_loose_s 86401 is not in 0..86400", {"tcp_loose_s": 86_401}),
        ("fragments_max 3 is not in 4..1048576", {"fragments_max": 3}),
        ("flows_max '4' is not a whole number", {"flows_max": "4"}),
        ("flows_max True is not a whole number", {"flows_max": True}),
        ("tcp_loose_s 1.5 is not a whole number", {"tcp_loose_s": 1.5}),
        ("essential_services 1 is neither true nor false", {"essential_services": 1}),
    ],
)
def test_settings_that_can_not_work_are_refused_with_their_bound(message, wrong):
    with pytest.raises(ConfigError) as caught:
        EngineSettings(**wrong)
    assert str(caught.value) == message


def test_the_bounds_themselves_are_allowed():
    assert EngineSettings(flows_max=4, server_flows_max=4, tcp_loose_s=86_400, fragments_max=4).flows_max == 4
    assert EngineSettings(flows_max=67_108_864, server_flows_max=67_108_864, fragments_max=1_048_576).tcp_loose_s == 0


def test_the_defaults_are_those_of_the_contract():
    settings = EngineSettings()
    assert (settings.essential_services, settings.flows_max, settings.server_flows_max) == (True, 1_048_576, 65_536)


def test_an_unknown_engine_is_refused_and_the_choices_are_named():
    with pytest.raises(ConfigError, match=r"engine 'kernel' is not one of: .*reference"):
        Firewall(now_ns=0, engine="kernel")


def test_a_firewall_starts_with_nothing_in_force(engine):
    firewall = Firewall(now_ns=0, engine=engine)
    stats = firewall.stats(0)
    assert (firewall.ruleset.revision, stats.servers, stats.groups, stats.sets, stats.flows) == (0, 0, 0, 0, 0)
    assert (stats.flows_max, stats.server_flows_max, stats.fragments_max) == (1_048_576, 65_536, 4_096)


def test_every_public_name_is_there():
    assert all(hasattr(secgroups.agent, name) for name in secgroups.agent.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        secgroups.agent.Nonsense  # noqa: B018


def test_the_firewall_loads_nothing_of_network_or_time():
    code = (
        "import sys; from secgroups.agent import Firewall, Packet; Firewall(now_ns=0);"
        "print(sorted({'grpc', 'asyncio', 'structlog', 'google.protobuf', 'socket'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
