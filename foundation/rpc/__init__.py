"""The gRPC kit: servers that refuse what no rule allows, clients that raise what the server raised."""

from foundation.rpc.client import Connection, TokenSource, connect
from foundation.rpc.health import check_health
from foundation.rpc.server import RpcServer
from foundation.rpc.serving import serving
from foundation.rpc.streams import follow, streaming

__all__ = [
    "Connection",
    "RpcServer",
    "TokenSource",
    "check_health",
    "connect",
    "follow",
    "serving",
    "streaming",
]
