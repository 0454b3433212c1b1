from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foundation.errors import Code, Problem
from foundation.settings import Address
from foundation.telemetry.http import application, serve_http


async def refuse(_: Request) -> Response:
    raise Problem(Code.TENANT_FOREIGN, tenant="acme")


async def fail(_: Request) -> Response:
    raise KeyError("hunter2")


APP = application([Route("/refuse", refuse), Route("/fail", fail)])


@pytest.mark.parametrize(
    ("verb", "path", "status", "title"),
    [
        ("GET", "/refuse", 403, "TENANT_FOREIGN"),
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("DELETE", "/refuse", 405, "HTTP_METHOD_NOT_ALLOWED"),
        ("GET", "/fail", 500, "INTERNAL"),
    ],
)
async def test_every_refusal_is_a_problem_of_the_catalogue(
    verb: str, path: str, status: int, title: str
) -> None:
    async with serve_http(APP, Address("127.0.0.1", 0), 1) as address, httpx.AsyncClient() as client:
        answer = await client.request(verb, f"http://{address}{path}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["title"] == title
    assert body["code"] == int(Code[title])
    assert body["status"] == status
    assert "hunter2" not in answer.text


async def test_an_address_in_use_is_one_sentence() -> None:
    async with serve_http(APP, Address("127.0.0.1", 0), 1) as address:
        with pytest.raises(Problem, match="another process listens there") as refused:
            async with serve_http(APP, address, 1):
                pass
    assert refused.value.meaning.exit == 2
