"""Scenario files for ``sgctl test``: read, run against controller and engine, reported.

Here a wire packet meets the controller's policy with nothing in between but the real code: the store, the publisher, the protobuf
messages, the engine.
"""
