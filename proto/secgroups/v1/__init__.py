"""The protocol: all that controller, agent and command line share."""
