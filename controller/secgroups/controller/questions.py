"""What one agent is asked on its stream and has not answered yet: a few questions, each answered once, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secgroups.controller.prospect import Prospect
    from secgroups.controller.stream_messages import PreviewResult

# Questions under way on one stream; more are refused at once, so that an agent that is slow to answer is not asked ever more.
QUESTIONS_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a change would cut. ``answered`` is called with the answer, or with the reason why none comes."""

    id: int
    prospect: Prospect
    timeout_s: float
    answered: Callable[[PreviewResult | str], None]


class Questions:
    """The questions of one stream, at most ``QUESTIONS_MAX``. ``wake`` is called when there is one to send."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._last_id = 0
        self._unsent: dict[int, Question] = {}
        self._sent: dict[int, Question] = {}
        # An agent of an older version takes every question and answers none: it is waited for once.
        self._mute = False
        self._closed = ""

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def obstacle(self) -> str:
        """Why another question would be in vain; empty if it would not."""
        if self._closed:
            return self._closed
        if self._mute:
            return "left the last preview unanswered"
        under_way = len(self._unsent) + len(self._sent)
        return f"{under_way} previews are under way, the most allowed" if under_way >= QUESTIONS_MAX else ""

    def ask(self, prospect: Prospect, timeout_s: float, answered: Callable[[PreviewResult | str], None]) -> int:
        """Ask, unless there is an ``obstacle``; return the id of the question. ``answered`` is not called from here."""
        self._last_id += 1
        question = Question(id=self._last_id, prospect=prospect, timeout_s=timeout_s, answered=answered)
        self._unsent[question.id] = question
        self._wake()
        return question.id

    def take_unsent(self) -> list[Question]:
        """Return the questions that are to be sent now; they count as sent."""
        taken = list(self._unsent.values())
        self._sent |= self._unsent
        self._unsent.clear()
        return taken

    def answer(self, result: PreviewResult) -> None:
        """Hand an answer on. One that nobody waits for any more, or that was not asked for, goes nowhere."""
        self._mute = False
        question = self._sent.pop(result.id, None)
        if question is not None:
            question.answered(result)

    def fail(self, question_id: int, reason: str) -> None:
        """Say that a question has no answer."""
        question = self._unsent.pop(question_id, None) or self._sent.pop(question_id, None)
        if question is not None:
            question.answered(reason)

    def withdraw(self, question_id: int, *, overdue: bool) -> None:
        """Wait for a question no more: it is ``overdue``, or whoever asked has gone. Nothing happens if it was answered."""
        self._unsent.pop(question_id, None)
        if self._sent.pop(question_id, None) is not None:
            self._mute = self._mute or overdue

    def close(self, reason: str) -> None:
        """Answer everything with a reason: the stream has ended."""
        self._closed = reason
        for question_id in [*self._unsent, *self._sent]:
            self.fail(question_id, reason)
