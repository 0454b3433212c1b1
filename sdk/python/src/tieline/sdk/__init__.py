"""What a plugin is written with: `from tieline.sdk import Event, Input, Instance, serve`.

Three layers. `core` and `document` are plain values and Protocols, and know no gRPC. `_convert` is the only
place that knows the contract's messages. `_grpc` is the only place that serves. A plugin needs the first.
"""

from tieline.sdk.core import (
    Category,
    Change,
    Credential,
    Diagnostic,
    Entity,
    Event,
    Evidence,
    Failing,
    Failure,
    FailureKind,
    Health,
    Hint,
    Input,
    Instance,
    InvalidInput,
    Migrates,
    ObjectVersion,
    Probe,
    Probes,
    Severity,
    Skip,
    Transformed,
    Transforms,
)
from tieline.sdk.document import Document
from tieline.sdk.serving import serve

__all__ = [
    "Category",
    "Change",
    "Credential",
    "Diagnostic",
    "Document",
    "Entity",
    "Event",
    "Evidence",
    "Failing",
    "Failure",
    "FailureKind",
    "Health",
    "Hint",
    "Input",
    "Instance",
    "InvalidInput",
    "Migrates",
    "ObjectVersion",
    "Probe",
    "Probes",
    "Severity",
    "Skip",
    "Transformed",
    "Transforms",
    "serve",
]
