"""The gRPC services, thin: convert, call the core, convert."""
