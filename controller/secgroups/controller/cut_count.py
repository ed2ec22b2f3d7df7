"""Asks agents how many live flows a change would cut, all at once, and adds up what comes in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from secgroups.controller.preview import FlowsCut

if TYPE_CHECKING:
    from secgroups.controller.prospect import Prospect
    from secgroups.controller.publisher import Publisher
    from secgroups.controller.questions import Questions
    from secgroups.controller.stream_messages import PreviewResult

# People wait for it: long enough for a busy agent, short enough for one that never answers.
PREVIEW_TIMEOUT_S = 1.0
# Agents that one preview asks.
AGENTS_ASKED_MAX = 1_000


async def count_cut(publisher: Publisher, prospect: Prospect, timeout_s: float) -> FlowsCut:
    """Return what the agents that hold a server of ``prospect`` answer within ``timeout_s``; those that don't are named.

    Cancelled, it leaves no question behind.
    """
    count = _Count()
    try:
        for number, agent_id in enumerate(sorted(publisher.holders_of(prospect.server_keys))):
            channel = publisher.find_channel(agent_id)
            if number >= AGENTS_ASKED_MAX:
                count.uncounted[agent_id] = f"not asked: more than {AGENTS_ASKED_MAX} agents are touched"
            elif channel is None:
                count.uncounted[agent_id] = "not connected"
            else:
                count.ask(agent_id, channel.questions, prospect, timeout_s)
        await count.wait(timeout_s)
    finally:
        count.withdraw(overdue=False)
    return FlowsCut(flows=count.flows, agents_counted=count.agents_counted, uncounted=count.uncounted)


class _Count:
    """The answers to one preview."""

    def __init__(self) -> None:
        self.flows = 0
        self.agents_counted = 0
        self.uncounted: dict[str, str] = {}
        self._open: dict[str, tuple[Questions, int]] = {}
        self._complete = asyncio.Event()

    def ask(self, agent_id: str, questions: Questions, prospect: Prospect, timeout_s: float) -> None:
        obstacle = questions.obstacle
        if obstacle:
            self.uncounted[agent_id] = obstacle
            return
        question_id = questions.ask(prospect, timeout_s, lambda answer: self._take(agent_id, answer))
        self._open[agent_id] = questions, question_id

    def _take(self, agent_id: str, answer: PreviewResult | str) -> None:
        del self._open[agent_id]
        problem = answer if isinstance(answer, str) else answer.problem
        if problem or isinstance(answer, str):
            self.uncounted[agent_id] = problem
        else:
            self.flows += answer.flows_cut
            self.agents_counted += 1
        if not self._open:
            self._complete.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until all have answered or the time is over."""
        if not self._open:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._complete.wait()
        except TimeoutError:
            self.uncounted |= dict.fromkeys(self._open, f"no answer within {timeout_s:g} s")
            self.withdraw(overdue=True)

    def withdraw(self, *, overdue: bool) -> None:
        """Take back what is still open."""
        for questions, question_id in self._open.values():
            questions.withdraw(question_id, overdue=overdue)
        self._open.clear()
