"""OAuth 2 token endpoints: how a client proves itself, what it asks, and how the answer is read (RFC 6749)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode

from foundation.clock import Clock
from services.credentials.renewal.asking import Lost, Refused, Unavailable
from services.credentials.renewal.provider import Answer, Provider

LONGEST = timedelta(days=3650)
_LATER = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_WORDS: Mapping[str, str] = {
    "invalid_grant": "the provider has ended the consent, or does not know it any more",
    "invalid_client": "the provider does not accept the client id and secret",
    "unauthorized_client": "the provider does not allow this client to ask in this way",
    "invalid_scope": "the provider does not give these scopes",
    "unsupported_grant_type": "the provider does not know this kind of grant",
    "invalid_target": "the provider does not know the audience",
    "invalid_request": "the provider finds the request wrong",
}


@dataclass(frozen=True, slots=True)
class Client:
    id: str
    secret: str = field(default="", repr=False)
    """Empty: a public client."""


@dataclass(frozen=True, slots=True)
class Tokens:
    access: str = field(repr=False)
    refresh: str = field(default="", repr=False)
    """Empty where the provider gives none: the one we have stays good."""
    life: timedelta | None = None
    scopes: Sequence[str] | None = None


class TokenEndpoint:
    def __init__(self, provider: Provider, clock: Clock) -> None:
        self._provider = provider
        self.clock = clock

    async def ask(self, url: str, client: Client | None, form: Mapping[str, str]) -> Tokens:
        """Raises `Trouble`."""
        answer = await self._post(url, *_proven(client, form, in_body=False))
        if client and client.secret and _error(answer) == "invalid_client":
            # The standard's way is the header; some know only the body. Nothing was granted yet, so the
            # second try costs nothing that is good once.
            answer = await self._post(url, *_proven(client, form, in_body=True))
        return _read(answer)

    async def _post(self, url: str, headers: Mapping[str, str], form: Mapping[str, str]) -> Answer:
        typed = {"content-type": "application/x-www-form-urlencoded"}
        return await self._provider.ask("POST", url, {**typed, **headers}, urlencode(form).encode())


def _proven(
    client: Client | None, form: Mapping[str, str], *, in_body: bool
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    if client is None:
        return {}, form
    if not client.secret:
        return {}, {**form, "client_id": client.id}
    if in_body:
        return {}, {**form, "client_id": client.id, "client_secret": client.secret}
    # Servers disagree on whether a plus is a space, and all read %20 as one.
    pair = f"{quote(client.id, safe='')}:{quote(client.secret, safe='')}"
    return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, form


def _read(answer: Answer) -> Tokens:
    if answer.status in (200, 201):
        return _tokens(_json(answer))
    error = _error(answer)
    if error in _WORDS:
        raise Refused(_WORDS[error], consent=error == "invalid_grant")
    if error in _LATER or answer.status in (408, 425, 429, 500, 503):
        raise Unavailable("the provider asks for patience", _patience(answer))
    if answer.status >= 500:
        # A proxy before it has given up; what it had heard by then nobody knows.
        raise Lost(f"the provider answers with status {answer.status}")
    if 300 <= answer.status < 400:
        raise Refused("the token endpoint sends us elsewhere, and we do not go")
    raise Refused(f"the token endpoint answers with status {answer.status}")


def _tokens(said: Mapping[str, Any] | None) -> Tokens:
    if said is None:
        raise Lost("the provider's answer is no JSON object")
    if said.get("error") in _WORDS:  # some say so with status 200
        raise Refused(_WORDS[said["error"]], consent=said["error"] == "invalid_grant")
    access, refresh, scope = said.get("access_token"), said.get("refresh_token"), said.get("scope")
    if not isinstance(access, str) or not access:
        raise Lost("the provider's answer holds no access token")
    return Tokens(
        access=access,
        refresh=refresh if isinstance(refresh, str) else "",
        life=_life(said.get("expires_in")),
        scopes=scope.split() if isinstance(scope, str) else None,
    )


def _life(given: object) -> timedelta | None:
    """None where it is not said, or is no number: then the token is used until it is refused."""
    try:
        seconds = int(given)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return timedelta(seconds=seconds) if 0 < seconds <= LONGEST.total_seconds() else None


def _error(answer: Answer) -> str:
    said = _json(answer) if 400 <= answer.status < 500 else None
    error = said.get("error") if said else None
    return error if isinstance(error, str) else ""


def _json(answer: Answer) -> Mapping[str, Any] | None:
    media = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        return None
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _patience(answer: Answer) -> timedelta:
    after = answer.headers.get("retry-after", "")
    return timedelta(seconds=min(int(after), 3600)) if after.isascii() and after.isdigit() else timedelta(0)
