"""Agents renew their certificates by themselves when two thirds of their life are over, and lose nothing if that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from test_certificates import wait_for
from trusted_site import TIMEOUT_S, Site, issued_before

from secgroups.agent.renewal import renews_at
from secgroups.lab.stack import Process
from secgroups.v1 import agent_service_pb2 as agents
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def held(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes())


def is_connected(site: Site, agent_id: str) -> bool:
    return AgentServiceStub(site.channel).GetAgent(agents.GetAgentRequest(id=agent_id), timeout=TIMEOUT_S).agent.connected


def restart(agent: Process) -> None:
    agent.stop()
    agent.start()


def test_a_certificate_is_renewed_when_two_thirds_of_its_life_are_over(own_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "a1" / "tls"
    old = issued_before(own_site, "a1", folder, begun_days_ago=250, ends_in_days=115)
    key = (folder / "agent-key.pem").read_bytes()
    agent = own_site.stack.start_agent("a1")
    wait_for(agent.log_file, "certificate_renewed", 1)
    new = held(folder)
    assert new.not_valid_after_utc > datetime.now(UTC) + timedelta(days=360)
    assert (new.public_key(), new.serial_number != old.serial_number) == (old.public_key(), True)
    # The key is the same, nobody else can read what was written, and nothing is left of the writing.
    assert (folder / "agent-key.pem").read_bytes() == key
    assert (folder / "agent.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(folder)) == ["agent-key.pem", "agent.pem", "ca.pem"]
    # With it, and without what it took the place of, the agent is let in; and there is nothing to renew.
    restart(agent)
    wait_for(agent.log_file, "controller_connected", 2)
    assert is_connected(own_site, "a1")
    assert agent.log_file.read_text().count("certificate_renewed") == 1
    assert held(folder) == new


def test_a_certificate_that_is_good_for_long_stays(own_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "a1" / "tls"
    old = issued_before(own_site, "a1", folder, begun_days_ago=240, ends_in_days=125)
    agent = own_site.stack.start_agent("a1")
    wait_for(agent.log_file, "controller_connected", 1)
    restart(agent)
    wait_for(agent.log_file, "controller_connected", 2)
    assert held(folder) == old
    assert renews_at(old) > datetime.now(UTC)


def test_who_is_revoked_renews_nothing_and_says_so(own_site: Site, tmp_path: Path) -> None:
    """The agent was enrolled and revoked; it still holds its files, which are due."""
    folder = tmp_path / "a1" / "tls"
    with own_site.enroll("a1"):
        own_site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="a1"), timeout=TIMEOUT_S)
    old = issued_before(own_site, "a1", folder, begun_days_ago=300, ends_in_days=65)
    agent = own_site.stack.start_agent("a1")
    wait_for(agent.log_file, "certificate_not_renewed", 1)
    assert "UNAUTHENTICATED" in agent.log_file.read_text()
    assert held(folder) == old


def test_a_link_is_replaced_and_not_followed(own_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "a1" / "tls"
    old = issued_before(own_site, "a1", folder, begun_days_ago=300, ends_in_days=65)
    (folder / "agent.pem").rename(folder / "held.pem")
    (folder / "agent.pem").symlink_to("held.pem")
    agent = own_site.stack.start_agent("a1")
    wait_for(agent.log_file, "certificate_renewed", 1)
    assert not (folder / "agent.pem").is_symlink()
    assert x509.load_pem_x509_certificate((folder / "held.pem").read_bytes()) == old


def test_while_no_controller_answers_the_agent_keeps_what_it_has_and_says_so(own_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "a1" / "tls"
    old = issued_before(own_site, "a1", folder, begun_days_ago=300, ends_in_days=65)
    own_site.controller.stop()
    agent = own_site.stack.start_agent("a1")
    wait_for(agent.log_file, "certificate_not_renewed", 1)
    assert held(folder) == old
    assert agent.popen is not None
    assert agent.popen.poll() is None


def test_a_renewed_certificate_is_revoked_with_the_others(own_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "a1" / "tls"
    issued_before(own_site, "a1", folder, begun_days_ago=300, ends_in_days=65)
    agent = own_site.stack.start_agent("a1")
    wait_for(agent.log_file, "certificate_renewed", 1)
    own_site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="a1"), timeout=TIMEOUT_S)
    credentials = grpc.ssl_channel_credentials(
        own_site.ca, (folder / "agent-key.pem").read_bytes(), (folder / "agent.pem").read_bytes()
    )
    with grpc.secure_channel(own_site.controller.agent_address, credentials) as channel:
        stub = AgentServiceStub(channel)
        hello = agents.SubscribeRequest(hello=agents.Hello(agent_id="a1", boot_id="b", version="1"))
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.Subscribe(iter([hello]), timeout=TIMEOUT_S))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
