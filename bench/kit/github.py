"""The GitHub plugin under a host of its own, and pushes for it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.kit.load import push_body
from foundation.clock import SystemClock
from services.registry.broker.serving import Served
from services.registry.catalogue.catalogue import Catalogue
from services.registry.catalogue.installing import Installer
from services.registry.catalogue.ledger import HeldLedger
from services.registry.catalogue.manifests import BUILT_IN
from services.registry.host.host import Host
from services.registry.host.socket_room import socket_room
from tieline.plugin.v1.transform_pb2 import TransformInput
from tieline.registry.v1 import broker_pb2

ONE = Served(
    connection="tenants/bench/connections/github",
    plugin="github",
    instance="bench",
    revision=1,
    settings=b"{}",
)


@asynccontextmanager
async def hosted() -> AsyncIterator[Host]:
    ledger = HeldLedger(SystemClock())
    with socket_room() as room, TemporaryDirectory() as environments:
        async with (
            Catalogue([BUILT_IN], ledger, Installer(Path(environments))) as catalogue,
            Host(catalogue, ledger, room) as host,
        ):
            yield host


def pushes(count: int) -> list[TransformInput]:
    return [
        TransformInput(
            input_id=str(number),
            webhook="events",
            event_type="push",
            key=str(number),
            payload=push_body(number),
        )
        for number in range(count)
    ]


def group(inputs: Sequence[TransformInput]) -> broker_pb2.TransformDataRequest.Group:
    return broker_pb2.TransformDataRequest.Group(
        ref=broker_pb2.ConnectionRef(connection=ONE.connection), inputs=inputs
    )
