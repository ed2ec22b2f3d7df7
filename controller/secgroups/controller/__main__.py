"""``secgroups-controller``: exit status 0 after SIGTERM or SIGINT, 2 if it can't start, with one line that says why.

``secgroups-controller restore FILE --data-dir DIR`` puts a backup in the place of the database and ends, and
``secgroups-controller reset-operator-token --data-dir DIR`` makes the operator's token anew and ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

# gRPC logs on stderr in a format of its own what is told better elsewhere; it reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from secgroups.controller.config import read_config
from secgroups.controller.errors import StartError


def main() -> int:
    """Run the controller with the settings of the command line, or restore a backup."""
    try:
        if sys.argv[1:2] == ["restore"]:
            from secgroups.controller.restoring import restore_from

            sys.stdout.write(restore_from(sys.argv[2:]) + "\n")
            return 0
        if sys.argv[1:2] == ["reset-operator-token"]:
            from secgroups.controller.resetting import reset_operator_token

            sys.stdout.write(reset_operator_token(sys.argv[2:]) + "\n")
            return 0
        read = partial(read_config, sys.argv[1:], os.environ)
        config = read()
        # Not before the settings are known to work: gRPC takes a while to import.
        from secgroups.controller.event_loop import EventLoop
        from secgroups.controller.logs import set_up_logs
        from secgroups.controller.server import run_controller

        set_up_logs(config.log_level)
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(run_controller(config, read))
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
