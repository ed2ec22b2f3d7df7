"""What the agent answers over gRPC."""
