"""sgctl with contexts, tokens and enrolments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trusted_site import Site


class Cli:
    def __init__(self, config: Path) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("SECGROUPS_")}
        self._environment["SECGROUPS_CONFIG"] = str(config)

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Run sgctl; return what it said, on either stream."""
        command = [sys.executable, "-m", "secgroups.cli", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "home" / "config.toml"


@pytest.fixture
def sgctl(config: Path) -> Cli:
    return Cli(config)


def test_contexts_are_kept_used_and_forgotten(site: Site, sgctl: Cli, config: Path, tmp_path: Path) -> None:
    assert "sgctl context add" in sgctl("group", "list", status=2)
    address = site.controller.address
    sgctl("context", "add", "local", "--from", str(site.stack.trust_folder.parent), "--address", address)
    assert config.stat().st_mode & 0o777 == 0o600
    sgctl("group", "create", "web")
    sgctl("token", "create", "ci", "--role", "editor", "--in-project", "cli", "--out", str(tmp_path / "ci.token"))
    assert (tmp_path / "ci.token").stat().st_mode & 0o777 == 0o600
    ca = str(site.stack.trust_folder / "ca.pem")
    token = str(tmp_path / "ci.token")
    sgctl("context", "add", "ci", "--address", address, "--ca-file", ca, "--token-file", token, "--project", "cli")
    rows = json.loads(sgctl("context", "list", "-o", "json"))
    assert [(row["name"], row["project"], row["token"]) for row in rows] == [("ci", "cli", True), ("local", "", True)]
    assert Path(token).read_text().strip() not in sgctl("context", "list", "-o", "json") + sgctl("context", "list")
    sgctl("group", "create", "db")
    assert "there is no project default" in sgctl("--project", "default", "group", "list", status=2)
    assert "role admin" in sgctl("token", "list", status=2)
    assert "web" in sgctl("--context", "local", "group", "list").split()
    sgctl("context", "use", "local")
    assert "db" not in sgctl("group", "list").split()
    sgctl("context", "remove", "ci")
    assert "there is no context ci; known are local" in sgctl("context", "use", "ci", status=2)


def test_tokens_are_listed_without_their_texts_and_revoked(site: Site, sgctl: Cli, tmp_path: Path) -> None:
    sgctl("context", "add", "local", "--from", str(site.stack.trust_folder.parent), "--address", site.controller.address)
    said = sgctl("token", "create", "short", "--role", "admin", "--lifetime", "3600")
    text = next(line for line in said.splitlines() if line.startswith("sgt_"))
    (made,) = [token for token in json.loads(sgctl("token", "list", "-o", "json")) if token["name"] == "short"]
    assert "expires" in made
    assert text not in sgctl("token", "list", "-o", "wide")
    (tmp_path / "short").write_text(text)
    assert "short" in sgctl("--token-file", str(tmp_path / "short"), "token", "list")
    sgctl("token", "revoke", made["id"])
    assert "UNAUTHENTICATED" in sgctl("--token-file", str(tmp_path / "short"), "token", "list", status=2)
    assert "there is no token" in sgctl("token", "revoke", made["id"], status=2)


def test_an_agent_is_enrolled_into_a_folder_and_revoked(site: Site, sgctl: Cli, tmp_path: Path) -> None:
    sgctl("context", "add", "local", "--from", str(site.stack.trust_folder.parent), "--address", site.controller.address)
    folder = tmp_path / "agent"
    assert "enrolled until" in sgctl("agent", "enroll", "hv-1", "--out", str(folder))
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("ca.pem", "authority.pem", "agent.pem", "agent-key.pem"), 0o600
    )
    assert "1 were known" in sgctl("agent", "revoke", "hv-1")
    assert "0 were known" in sgctl("agent", "revoke", "hv-1")
    assert "agent_id" in sgctl("agent", "enroll", "a/b", "--out", str(tmp_path / "bad"), status=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "is no TOML"),
        ('[contexts.a]\nca = "x"\n', "has no address"),
        ("contexts = 3\n", "is no table"),
        ('current = "gone"\n', "there is no context gone"),
    ],
)
def test_a_file_of_contexts_that_is_none_is_told(sgctl: Cli, config: Path, content: str, said: str) -> None:
    config.parent.mkdir()
    config.write_text(content)
    assert said in sgctl("group", "list", status=2)


def test_plain_text_goes_nowhere_but_to_this_host(sgctl: Cli) -> None:
    assert "is not on loopback" in sgctl("--plaintext", "--controller", "192.0.2.1:7700", "group", "list", status=2)


def test_another_authority_is_not_believed(site: Site, sgctl: Cli, tmp_path: Path) -> None:
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    token = str(site.stack.trust_folder / "operator.token")
    flags = ("--controller", site.controller.address, "--ca-file", str(tmp_path / "other.pem"), "--token-file", token)
    assert "can't be reached" in sgctl(*flags, "--timeout", "5", "group", "list", status=2)


def test_the_log_names_the_token_with_which_a_change_was_made(site: Site, sgctl: Cli, tmp_path: Path) -> None:
    sgctl("context", "add", "local", "--from", str(site.stack.trust_folder.parent), "--address", site.controller.address)
    sgctl("token", "create", "auditor", "--role", "editor", "--in-project", "audited", "--out", str(tmp_path / "token"))
    (made,) = [token for token in json.loads(sgctl("token", "list", "-o", "json")) if token["name"] == "auditor"]
    own = ("--token-file", str(tmp_path / "token"), "-p", "audited")
    sgctl(*own, "group", "create", "web")
    sgctl(*own, "group", "set", "web", "--name", "www")
    said = sgctl(*own, "audit", "--group", "www")
    assert said.count(made["id"]) == 2
    assert "name: web -> www" in said
    assert len(json.loads(sgctl("audit", "--all-projects", "--token", made["id"], "-o", "json"))) >= 2
    assert "there is no project default" in sgctl("--token-file", str(tmp_path / "token"), "-p", "default", "audit", status=2)
    assert "no time" in sgctl("audit", "--since", "yesterday", status=2)


def test_the_token_of_a_context_goes_to_no_other_address(site: Site, sgctl: Cli) -> None:
    """The same controller under another of its names: what is named by hand needs a token that is named by hand."""
    address = site.controller.address
    sgctl("context", "add", "local", "--from", str(site.stack.trust_folder.parent), "--address", address)
    sgctl("--controller", address, "group", "list")
    other = f"localhost:{address.rpartition(':')[2]}"
    assert f"nothing is known to check controller {other} by" in sgctl("--controller", other, "group", "list", status=2)
    ca, token = (str(site.stack.trust_folder / name) for name in ("ca.pem", "operator.token"))
    sgctl("--controller", other, "--ca-file", ca, "--token-file", token, "group", "list")
