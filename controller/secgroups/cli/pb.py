"""Every message and enum value of secgroups.v1, loaded when the first one is asked for.

Command modules say ``pb.CreateGroupRequest(...)``; help and completion, which send nothing, then never pay for protobuf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration as Duration
    from google.protobuf.field_mask_pb2 import FieldMask as FieldMask

    from secgroups.v1.agent_service_pb2 import *  # noqa: F403
    from secgroups.v1.attachment_service_pb2 import *  # noqa: F403
    from secgroups.v1.audit_service_pb2 import *  # noqa: F403
    from secgroups.v1.group_service_pb2 import *  # noqa: F403
    from secgroups.v1.limit_service_pb2 import *  # noqa: F403
    from secgroups.v1.operator_service_pb2 import *  # noqa: F403
    from secgroups.v1.rule_service_pb2 import *  # noqa: F403
    from secgroups.v1.ruleset_service_pb2 import *  # noqa: F403
    from secgroups.v1.server_service_pb2 import *  # noqa: F403
    from secgroups.v1.trust_service_pb2 import *  # noqa: F403
    from secgroups.v1.types_pb2 import *  # noqa: F403
    from secgroups.v1.verdict_service_pb2 import *  # noqa: F403
else:
    _MODULES = (
        "google.protobuf.duration_pb2",
        "google.protobuf.field_mask_pb2",
        *(
            f"secgroups.v1.{name}_pb2"
            for name in (
                "types",
                "group_service",
                "rule_service",
                "server_service",
                "attachment_service",
                "ruleset_service",
                "agent_service",
                "audit_service",
                "limit_service",
                "operator_service",
                "trust_service",
                "verdict_service",
            )
        ),
    )

    def __getattr__(name):
        if name.startswith("_"):
            raise AttributeError(name)
        import importlib

        for module in _MODULES:
            content = vars(importlib.import_module(module))
            globals().update({key: value for key, value in content.items() if not key.startswith("_") and key != "DESCRIPTOR"})
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(f"secgroups.v1 has no {name}") from None
