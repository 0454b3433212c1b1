"""Channel options, the same on both sides: they are part of the contract with plugins in any language.

* The authority is fixed, since grpcio sends a percent-encoded path for unix sockets and others refuse it.
* A client may ping every 30 s at most and only with calls under way, else servers answer GOAWAY.
* One limit for messages, on both sides; batches aim at 1 MiB and a larger item travels alone.
* A port is listened on by one server: with the default, a second one silently takes half the connections.
* A supervised peer is back within a second: waiting longer for the reconnect would be our own delay.
"""

from __future__ import annotations

from typing import Any

MESSAGE_LIMIT = 32 * 1024 * 1024

_SIZES: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
]

SERVER: list[tuple[str, Any]] = [
    *_SIZES,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

CLIENT: list[tuple[str, Any]] = [
    *_SIZES,
    ("grpc.default_authority", "localhost"),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
