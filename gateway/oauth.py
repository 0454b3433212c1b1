"""`/oauth/start` and `/oauth/callback`: a person's browser, on its way to a provider's consent page and back.

The cookie ties both ends to one browser. What a page says reveals nothing: whoever has begun knows what it is
about, and whoever has not learns nothing.
"""

from __future__ import annotations

import html
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from foundation.errors import Problem
from tieline.credentials.v1 import oauth_pb2_grpc
from tieline.credentials.v1.oauth_pb2 import CompleteAuthorizationRequest, OpenAuthorizationRequest

log = structlog.get_logger(__name__)

COOKIE = "tieline_oauth"
LIFE_SECONDS = 600
LONGEST = 4096
"""Of what a browser brings; providers' codes are long, but not longer."""
SECONDS = 25.0

_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Tieline</title>
<style>body{{font:16px/1.5 system-ui;margin:4em auto;max-width:32em;padding:0 1em}}</style>
<h1>{title}</h1><p>{text}</p></html>
"""


class Oauth:
    def __init__(self, stub: oauth_pb2_grpc.OauthServiceAsyncStub, public_url: str) -> None:
        self._stub = stub
        # By what browsers see, not by what reaches us: TLS may end at a proxy before us.
        secure = public_url.startswith("https://")
        self._cookie: dict[str, Any] = {
            "path": "/oauth",
            "httponly": True,
            "samesite": "lax",
            "secure": secure,
        }

    async def start(self, request: Request) -> Response:
        try:
            opened = await self._stub.OpenAuthorization(
                OpenAuthorizationRequest(ticket=_given(request, "ticket")), timeout=SECONDS
            )
        except Problem as problem:
            return _refused(problem)
        response = RedirectResponse(opened.authorization_url, status_code=303, headers=_HEADERS)
        response.set_cookie(COOKIE, opened.browser_binding, **self._cookie, max_age=LIFE_SECONDS)
        return response

    async def callback(self, request: Request) -> Response:
        returned = CompleteAuthorizationRequest(
            state=_given(request, "state"),
            code=_given(request, "code"),
            error=_given(request, "error"),
            browser_binding=request.cookies.get(COOKIE, "")[:LONGEST],
        )
        try:
            done = await self._stub.CompleteAuthorization(returned, timeout=SECONDS)
        except Problem as problem:
            return _refused(problem)
        response: Response
        if done.return_path:
            response = RedirectResponse(done.return_path, status_code=303, headers=_HEADERS)
        else:
            response = _page(200, "Connected", "The credential has its tokens. You can close this page.")
        response.delete_cookie(COOKIE, **self._cookie)
        return response


def _given(request: Request, name: str) -> str:
    """One text of reasonable length, or nothing: what stands twice in a URL is nobody's honest answer."""
    texts = request.query_params.getlist(name)
    return texts[0] if len(texts) == 1 and len(texts[0]) <= LONGEST and texts[0].isprintable() else ""


def _refused(problem: Problem) -> Response:
    log.info("a consent did not succeed", code=problem.code.name)
    later = problem.meaning.http >= 500
    text = "It did not succeed. Ask whoever sent you here to begin anew."
    return _page(503 if later else 400, "Not connected", text)


def _page(status: int, title: str, text: str) -> Response:
    body = _PAGE.format(title=html.escape(title), text=html.escape(text))
    return HTMLResponse(body, status_code=status, headers=_HEADERS)
