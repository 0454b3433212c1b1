"""A plugin by hand whose mood is a word in a file beside its log: `well`, `sick` or `denied`."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import raw_plugin  # type: ignore[import-not-found]  # lies beside it, where it runs
from raw_plugin import K, refuse

from tieline.common.v1.failure_pb2 import EFFECT_NONE, Failure
from tieline.plugin.v1 import execute_pb2, instance_pb2, transform_pb2

# ruff: noqa: N802  the contract's names


class Plugin(raw_plugin.Plugin):  # type: ignore[misc]  # not found above
    @property
    def mood(self) -> str:
        return Path("calls.jsonl").with_name("mood").read_text().strip()

    async def HealthCheck(self, request: Any, context: Any) -> instance_pb2.HealthCheckResponse:
        await self.demand(request.context, context)
        self.note("HealthCheck", instance=request.context.instance_id)
        if self.mood != "sick":
            return instance_pb2.HealthCheckResponse(state=instance_pb2.HealthCheckResponse.STATE_OK)
        answer = instance_pb2.HealthCheckResponse(state=instance_pb2.HealthCheckResponse.STATE_FAILED)
        finding = answer.findings.add(name="api", state=instance_pb2.HealthCheckResponse.STATE_FAILED)
        finding.failure.message = "the provider is closed today"
        return answer

    async def Execute(self, request: Any, context: Any) -> execute_pb2.ExecuteResponse:
        await self.demand(request.context, context)
        if self.mood == "denied":
            why = "it may not write here"
            denied = K.FAILURE_KIND_PERMISSION_DENIED
            await refuse(context, Failure(kind=denied, reason="FORBIDDEN", message=why, effect=EFFECT_NONE))
        return execute_pb2.ExecuteResponse(output=b"{}")

    async def TransformData(self, request: Any, context: Any) -> transform_pb2.TransformDataResponse:
        answer: transform_pb2.TransformDataResponse = await super().TransformData(request, context)
        if self.mood == "sick":
            for result in answer.results:
                why = "nobody is at home"
                result.failure.CopyFrom(Failure(kind=K.FAILURE_KIND_INTERNAL, reason="SICK", message=why))
        return answer


if __name__ == "__main__":
    raw_plugin.NONCE = base64.urlsafe_b64decode(os.environ["TIELINE_PLUGIN_NONCE"] + "==")
    raw_plugin.Plugin = Plugin
    asyncio.run(raw_plugin.main())
