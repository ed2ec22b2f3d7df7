"""``secgroups-agent``: exit status 0 after SIGTERM or SIGINT, 2 if it can't start, with one line that says why."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

# gRPC logs on stderr in a format of its own what is told better elsewhere; it reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from secgroups.agent.config import read_config
from secgroups.agent.errors import ConfigError


def main() -> int:
    """Run the agent."""
    try:
        read = partial(read_config, sys.argv[1:], os.environ)
        config = read()
        from secgroups.agent.logs import set_up_logs
        from secgroups.agent.process import run_agent

        set_up_logs(config.log_level)
        asyncio.run(run_agent(config, read))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
