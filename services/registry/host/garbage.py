"""Answers that are no messages of the contract.

gRPC logs such an answer and hands out None; nobody who reads an answer should have to think of that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio


class RefuseGarbage(grpc.aio.UnaryUnaryClientInterceptor):
    """Turns them into the failure that they are."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        call = await continuation(client_call_details, request)
        if await call is None:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details="the plugin's answer is no message of the contract",
            )
        return call
