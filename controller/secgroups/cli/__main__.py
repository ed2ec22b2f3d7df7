"""The ``sgctl`` of the shell, and ``python -m secgroups.cli``."""

from __future__ import annotations

import signal

# Most of a short command is importing; until the command begins, Ctrl-C ends the process without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run sgctl with the arguments of the process and exit."""
    from secgroups.cli.main import main as run_and_exit

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_and_exit()


if __name__ == "__main__":
    main()
