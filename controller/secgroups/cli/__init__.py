"""sgctl, the command line: a plain gRPC client of the controller."""
