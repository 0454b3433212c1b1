"""Settings as somebody sends them: JSON that every language reads, or a problem that says so."""

from __future__ import annotations

import pytest

from foundation.errors import Code, Problem
from services.registry.connections.wanted import DEPTH, check, settable
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1.connections_pb2 import Connection


def nested(deep: int) -> bytes:
    return b'{"a":' + b"[" * (deep - 1) + b"]" * (deep - 1) + b"}"


@pytest.mark.parametrize(
    "settings",
    [
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        rb'{"a": "\ud800"}',
        rb'{"\udfff": 1}',
        nested(DEPTH + 1),
        nested(300),
        nested(100_000),
        b"[]",
        b"\xff\xfe{}",
    ],
)
def test_what_is_no_json_is_refused_by_its_name(settings: bytes) -> None:
    with pytest.raises(Problem) as refused:
        settable(Connection(plugin="plugins/x", settings=settings))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "connection.settings" in refused.value.sentence


def test_deep_settings_are_checked_like_any_others() -> None:
    wanted = settable(Connection(plugin="plugins/x", settings=nested(DEPTH)))
    check(wanted, Manifest(name="x", settings_schema=b'{"type": "object"}'), "acme")
