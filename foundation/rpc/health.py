"""Asking another process of ours whether it serves."""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from foundation.errors import Code, Problem
from foundation.rpc.client import Connection


async def check_health(connection: Connection, dependency: str) -> None:
    """Return if the process serves; raise the problem DEPENDENCY_UNAVAILABLE if not."""
    stub: Any = health_pb2_grpc.HealthStub(connection)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
    except Problem as problem:
        why = problem.data.get("why", problem.sentence)
        raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency=dependency, why=why) from problem
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency=dependency, why="it is not ready")
