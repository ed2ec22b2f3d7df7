"""Logs: one event per line on stderr, JSON unless a person is looking."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


def set_up_logs(level: str) -> None:
    """Log to stderr from now on what is of ``level`` (debug, info, warning, error) and above."""
    set_log_level(level)
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            _drop_below_threshold,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )


def set_log_level(level: str) -> None:
    """Log from now on what is of ``level`` and above, by loggers that are in use as well."""
    _threshold.level = _LEVELS[level]


def is_logged(level: int) -> bool:
    """Whether what is of ``level`` (as ``logging`` has them) is logged now; for what would cost something to put together."""
    return level >= _threshold.level


class _Threshold:
    """The lowest level that is logged. Loggers are cached with all else that they have, so this is looked at for each event."""

    level = logging.INFO


_threshold = _Threshold()
# All that structlog calls its methods; exception() is an error.
_LEVELS = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}


def _drop_below_threshold(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if _LEVELS[method] < _threshold.level:
        raise structlog.DropEvent
    return event


class _Stderr:
    """Standard error that loses what it can't take: a full disk, or a reader that has gone, must not end what it is told of."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()
