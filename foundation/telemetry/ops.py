"""The HTTP routes that every process serves for operators: /healthz, /readyz, /metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from foundation.telemetry.metrics import CONTENT_TYPE, Metrics
from foundation.telemetry.readiness import Readiness


def routes(readiness: Readiness, metrics: Metrics) -> list[BaseRoute]:
    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        report = await readiness.report()
        metrics.ready.set(report.ready)
        body = {"status": "ready" if report.ready else "not ready", "dependencies": report.dependencies}
        return JSONResponse(body, status_code=200 if report.ready else 503)

    async def measure(_: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", measure)]
