"""A GitHub App: we sign who we are with its key, GitHub gives a token for one installation, good for an hour."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

from foundation.clock import Clock
from services.credentials.credential.kinds import write_session
from services.credentials.renewal.asking import Asked, Lost, Made, Refused, Unavailable
from services.credentials.renewal.port import Validation
from services.credentials.renewal.provider import Answer, Provider
from tieline.credentials.v1.secrets_pb2 import GithubApp as App

API = "https://api.github.com"
CLOCKS_APART = timedelta(seconds=60)
LIFE = timedelta(minutes=9)
"""Of our own signature: GitHub takes at most ten minutes, by its clock."""


class GithubApp:
    def __init__(self, provider: Provider, clock: Clock) -> None:
        self._provider = provider
        self._clock = clock

    async def renew(self, asked: Asked) -> Made:
        app = asked.value.github_app
        installation = asked.account or app.installation_id
        if not re.fullmatch(r"\d{1,20}", installation):
            why = "it names no installation; the app or the grant's account must name one, by its digits"
            raise Refused(why, account_only=True)
        answer = await self._ask("POST", app, f"/app/installations/{installation}/access_tokens")
        if answer.status in (403, 404, 422):
            why = _words(answer.status).format(installation=installation)
            raise Refused(why, account_only=bool(asked.account))
        said = _read(answer, 201)
        token, ends = said.get("token"), _time(said.get("expires_at"))
        if not isinstance(token, str) or not token or ends is None:
            raise Lost("GitHub's answer holds no token")
        return Made(write_session({"token": token.encode()}), ends)

    async def validate(self, asked: Asked) -> Validation:
        said = _read(await self._ask("GET", asked.value.github_app, "/app"), 200)
        return Validation(principal=f"app {said.get('slug') or said.get('id') or ''}"[:100].strip())

    async def _ask(self, method: str, app: App, path: str) -> Answer:
        headers = {
            "accept": "application/vnd.github+json",
            "authorization": f"Bearer {self._signed(app)}",
            "x-github-api-version": "2022-11-28",
        }
        return await self._provider.ask(method, (app.api_url or API).rstrip("/") + path, headers)

    def _signed(self, app: App) -> str:
        issued = self._clock.now() - CLOCKS_APART
        claims = {
            "iss": app.app_id,
            "iat": int(issued.timestamp()),
            "exp": int((issued + LIFE).timestamp()),
        }
        return jwt.encode({"alg": "RS256"}, claims, RSAKey.import_key(app.private_key), algorithms=["RS256"])


def _read(answer: Answer, expected: int) -> Mapping[str, Any]:
    limited = answer.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in answer.headers
    if answer.status == 429 or answer.status >= 500 or (answer.status == 403 and limited):
        raise Unavailable(f"GitHub answers with status {answer.status}")
    if answer.status != expected:
        raise Refused(_words(answer.status))
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Lost("GitHub's answer is no JSON object")
    return said


def _words(status: int) -> str:
    known = {
        401: "GitHub does not accept the app's signature: is it this app's id and key, and is our clock right?",
        403: "GitHub does not allow it: the installation {installation} is suspended or the app was blocked",
        404: "GitHub knows no installation {installation} of this app: was it uninstalled?",
        422: "GitHub finds the request for installation {installation} wrong",
    }
    return known.get(status, f"GitHub answers with status {status}")


def _time(given: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(given))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
