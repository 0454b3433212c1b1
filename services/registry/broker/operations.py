"""What is asked of plugins, in words that circuits, throttles and figures can share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tieline.plugin.v1 import plugin_pb2_grpc
from tieline.plugin.v1.instance_pb2 import InstanceContext

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is asked of a plugin; circuits and throttles know it by its name."""

    name: str
    """`FetchData/issues`, `Execute/comment`."""
    writes: bool = False
    """It may change something at the provider, so it is repeated only where it surely has not."""
    slot: str = ""
    """The slot that it calls with; empty: it calls nobody and gets no credential."""
    entry: str = ""
    receives: bool = False
    """It is a part of receiving, which goes on while the connection rests."""


@dataclass(frozen=True, slots=True)
class Reach:
    """A process that is ready for one call, and what belongs into the request."""

    stub: plugin_pb2_grpc.PluginServiceAsyncStub
    context: InstanceContext
    options: dict[str, Any]
    """Deadline and trace, for the stub."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    message: T
    plugin_version: str
    revision: int
