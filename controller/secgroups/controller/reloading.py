"""SIGHUP: settings are read again. The log level is taken over at once; what else is different is named, and needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import structlog

from secgroups.controller.config import ControllerConfig
from secgroups.controller.errors import ConfigError
from secgroups.controller.logs import set_log_level

log = structlog.get_logger(__name__)


class Reloading:
    """Keeps what is in use. ``read_again`` returns the settings as they are now; ConfigError if they can't work."""

    def __init__(self, running: ControllerConfig, read_again: Callable[[], ControllerConfig]) -> None:
        self._running = running
        self._read_again = read_again

    def reload(self) -> None:
        """Read the settings and take over what can be. With settings that can't work nothing changes. Raises nothing."""
        try:
            wanted = self._read_again()
        except ConfigError as error:
            # It is the whole of what there is to know.
            log.error("settings_not_reloaded", reason=str(error))  # noqa: TRY400
            return
        self._running = replace(self._running, log_level=wanted.log_level)
        others = [each.name for each in fields(ControllerConfig) if getattr(wanted, each.name) != getattr(self._running, each.name)]
        # At the least, it is said; what follows is of the level that is wanted.
        set_log_level("info")
        log.info("settings_reloaded", log_level=wanted.log_level, restart_needed_for=others)
        set_log_level(wanted.log_level)
