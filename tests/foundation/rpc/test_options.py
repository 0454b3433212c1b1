"""gRPC ignores an option that it does not know, and says nothing; so each name is looked for in the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from foundation.rpc import options
from tieline.sdk import _grpc as plugins

NAMES = sorted({name for name, _ in (*options.SERVER, *options.CLIENT, *plugins.OPTIONS)})


@pytest.mark.parametrize("name", NAMES)
def test_grpc_knows_the_option(name: str) -> None:
    assert name.encode() + b"\0" in Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("server", [options.SERVER, plugins.OPTIONS])
def test_a_server_lets_our_own_clients_ping(server: list[tuple[str, Any]]) -> None:
    """Else a quiet stream is ended with GOAWAY (too_many_pings) after some minutes."""
    allowed = dict(server)["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed < dict(options.CLIENT)["grpc.keepalive_time_ms"]
