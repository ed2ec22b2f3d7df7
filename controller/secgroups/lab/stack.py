"""A real controller and real agents as processes of their own, on loopback, for the demo, ``sgctl dev`` and system tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class StackError(Exception):
    """A process did not start or died; the message holds the end of what it said."""


@dataclass
class Process:
    """One process of ours. ``address`` is where it answers, known once it is ready; ``log_file`` holds what it says."""

    name: str
    arguments: list[str]
    ready_file: Path
    log_file: Path
    address: str = ""
    admin_address: str = ""
    agent_address: str = ""
    environment: dict[str, str] | None = field(default=None, repr=False)
    popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it and wait until it serves. StackError if it does not within ``START_TIMEOUT_S``."""
        self.ready_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            command = [sys.executable, "-m", *self.arguments, "--ready-file", str(self.ready_file)]
            self.popen = _begun(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready_file.exists():
            if self.popen.poll() is not None:
                raise StackError(f"{self.name} ended with {self.popen.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                self.stop()
                raise StackError(f"{self.name} was not ready within {START_TIMEOUT_S:.0f} s: {self.last_words()}")
            time.sleep(0.02)
        ready = json.loads(self.ready_file.read_text())
        self.address = ready["address"]
        self.admin_address = ready.get("admin_address", "")
        self.agent_address = ready.get("agent_address", self.address)

    def last_words(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-5:])

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()

    def stop(self) -> None:
        """Ask it to end, insist after ``STOP_TIMEOUT_S``."""
        if self.popen is None or self.popen.poll() is not None:
            return
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


def _begun(command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
    """Begin a process, or, if a signal ends this one meanwhile, leave none behind.

    In a thread of its own: what a signal raises comes in the first one, where it could come between the beginning of the process
    and the moment when somebody knows of it.
    """
    with ThreadPoolExecutor(1) as thread:
        begun = thread.submit(lambda: subprocess.Popen[bytes](command, **settings))
        try:
            return begun.result()
        except BaseException:
            if begun.exception() is None:
                begun.result().kill()
                begun.result().wait()
            raise


class Stack:
    """A controller with its own database in ``folder`` and an agent for each of ``agent_ids``; a context manager that stops all.

    ``listen`` is the controller's address; port 0 takes a free one. With ``tls`` everybody shows a token or a certificate, which
    are enrolled for the agents here; without, nobody is asked.
    """

    def __init__(self, folder: Path, agent_ids: Sequence[str], *, listen: str = "127.0.0.1:0", tls: bool = False) -> None:
        self._folder = folder
        self._agent_ids = agent_ids
        self.tls = tls
        data = folder / "controller"
        data.mkdir(parents=True, exist_ok=True)
        self.trust_folder = data / "trust"
        arguments = ["secgroups.controller", "--listen", listen, "--admin-listen", "127.0.0.1:0", "--data-dir", str(data)]
        arguments += ["--agent-listen", "127.0.0.1:0"] if tls else ["--plaintext"]
        self.controller = self._process("controller", arguments)
        self.agents: dict[str, Process] = {}

    def start(self) -> None:
        """Start the controller, then the agents. StackError if one does not start. Whatever ends it half way, all are stopped."""
        try:
            self.controller.start()
            for agent_id in self._agent_ids:
                self.start_agent(agent_id)
        except BaseException:
            self.stop()
            raise

    def start_agent(self, agent_id: str, *flags: str) -> Process:
        """Start one more agent, with ``flags`` on top of what it needs."""
        state = self._folder / agent_id
        state.mkdir(exist_ok=True)
        own = ["--agent-id", agent_id, "--state-dir", str(state), *([] if self.tls else ["--plaintext"])]
        if self.tls and not (state / "tls").exists():
            self._enroll(agent_id, state / "tls")
        where = ["--controller", self.controller.agent_address, "--listen", "127.0.0.1:0"]
        agent = self._process(agent_id, ["secgroups.agent", *own, *where, *flags])
        self.agents[agent_id] = agent
        agent.start()
        return agent

    def stop(self) -> None:
        """Stop every process that runs."""
        for agent in self.agents.values():
            agent.stop()
        self.controller.stop()

    def channel(self) -> grpc.Channel:
        """Open a channel to the controller, as its operator."""
        if not self.tls:
            return grpc.insecure_channel(self.controller.address)
        tls = grpc.ssl_channel_credentials((self.trust_folder / "ca.pem").read_bytes())
        token = grpc.access_token_call_credentials((self.trust_folder / "operator.token").read_text().strip())
        return grpc.secure_channel(self.controller.address, grpc.composite_channel_credentials(tls, token))

    def _enroll(self, agent_id: str, folder: Path) -> None:
        command = [sys.executable, "-m", "secgroups.cli", "agent", "enroll", agent_id, "--out", str(folder)]
        enrolling = _begun(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment_of(self, "default"))
        try:
            _, said = enrolling.communicate()
        except BaseException:
            enrolling.kill()
            enrolling.communicate()
            raise
        if enrolling.returncode != 0:
            raise StackError(f"{agent_id} could not be enrolled: {said.decode(errors='replace').strip()}")

    def _process(self, name: str, arguments: list[str]) -> Process:
        return Process(
            name=name,
            arguments=arguments,
            ready_file=self._folder / f"{name}.ready",
            log_file=self._folder / f"{name}.log",
            environment=_without_plaintext() if self.tls else None,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def environment_of(stack: Stack, project: str) -> dict[str, str]:
    """Return the variables that point ``sgctl`` at ``stack``, on top of those of this process."""
    variables = {"SECGROUPS_CONTROLLER": stack.controller.address, "SECGROUPS_PROJECT": project}
    if stack.tls:
        variables["SECGROUPS_CA_FILE"] = str(stack.trust_folder / "ca.pem")
        variables["SECGROUPS_TOKEN_FILE"] = str(stack.trust_folder / "operator.token")
    return _without_plaintext() | variables | ({} if stack.tls else {"SECGROUPS_PLAINTEXT": "1"})


def _without_plaintext() -> dict[str, str]:
    """Return the variables of this process but for those that ask for plain text."""
    return {name: value for name, value in os.environ.items() if not (name.startswith("SECGROUPS_") and name.endswith("PLAINTEXT"))}
