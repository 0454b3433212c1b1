"""What the OAuth tests stand on: a real provider, a wire one can look at and cut, a browser, and replicas."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs

import httpx
from prometheus_client import CollectorRegistry

from foundation.clock import SystemClock
from foundation.process.ports import Port
from foundation.store.opening import open_store
from foundation.store.schemas import CREDENTIALS
from foundation.store.unit_of_work import Store
from services.credentials.audit.journal import Journal
from services.credentials.credential import store as credentials
from services.credentials.credential.store import CredentialRow
from services.credentials.keys.keepers import open_root_keys
from services.credentials.keys.vault import Vault
from services.credentials.renewal.claims import Claims
from services.credentials.renewal.consent import Consents
from services.credentials.renewal.opening import open_renewal
from services.credentials.renewal.renewals import Renewing
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.canaille_server import CLIENT_ID, CLIENT_SECRET, PASSWORD, USER
from tieline.credentials.v1.secrets_pb2 import Oauth2AuthorizationCode, SecretValue

SERVER = Path(__file__).with_name("canaille_server.py")


@dataclass(frozen=True)
class Canaille:
    url: str
    redirect_uri: str


@contextmanager
def canaille(redirect_uri: str, manner: str) -> Iterator[Canaille]:
    with Port() as port:
        command = [sys.executable, str(SERVER), str(port.number), redirect_uri, manner]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:  # leaving closes its stdin, which it takes as the end
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield Canaille(f"http://{port.host}:{port.number}", redirect_uri)


@dataclass
class Tap:
    """The wire to a provider: it writes down what is asked, and does with answers as it is told."""

    upstream: str
    asked: list[dict[str, str]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    before_answer: Callable[[], Awaitable[bool]] | None = None
    """Runs when the provider has answered; False: the answer is lost on the way."""
    url: str = ""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def grants(self, kind: str) -> list[dict[str, str]]:
        return [form for form in self.asked if form.get("grant_type") == kind]

    async def __aenter__(self) -> Self:
        self._http = await self._stack.enter_async_context(httpx.AsyncClient(timeout=60))
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        await self._stack.enter_async_context(server)
        host, port = server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target = head.split(" ", 2)[:2]
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            lower = {name.lower(): text for name, text in headers.items()}
            body = await reader.readexactly(int(lower.get("content-length", "0")))
            self.asked.append({name: texts[0] for name, texts in parse_qs(body.decode()).items()})
            kept = {n: t for n, t in lower.items() if n in ("authorization", "content-type", "accept")}
            answer = await self._http.request(method, self.upstream + target, headers=kept, content=body)
            self.answered.append(answer.status_code)
            if self.before_answer is not None and not await self.before_answer():
                return
            kind = answer.headers.get("content-type", "")
            lead = f"HTTP/1.1 {answer.status_code} x\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n"
            writer.write(lead.encode() + answer.content)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # who asked has died, which some tests are about
        finally:
            writer.close()


def value(provider: Canaille, tap: Tap) -> SecretValue:
    part = Oauth2AuthorizationCode(
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        authorization_url=f"{provider.url}/oauth/authorize?prompt=consent",
        token_url=f"{tap.url}/oauth/token",
        scopes=["openid", "profile"],
    )
    return SecretValue(oauth2_authorization_code=part)


async def browse(url: str, *, answer: str = "accept", until: str) -> tuple[httpx.Response, list[str]]:
    """Open a page as a person would: follow, log in, answer the consent page; stop at a URL with `until` in it."""
    seen = [url]
    async with httpx.AsyncClient(timeout=60) as browser:
        page = await browser.get(url)
        for _ in range(15):
            if page.is_redirect:
                target = str(page.url.join(page.headers["location"]))
                seen.append(target)
                page = await browser.get(target)
            elif page.url.path == until or not (token := _csrf(page.text)):
                return page, seen
            else:
                form = {"csrf_token": token} | _filled(page.text, answer)
                page = await browser.post(str(page.url), data=form)
    raise AssertionError(f"it leads in circles: {seen}")


def _csrf(text: str) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', text)
    return found[1] if found else ""


def _filled(text: str, answer: str) -> dict[str, str]:
    if 'name="login"' in text:
        return {"login": USER}
    if 'name="password"' in text:
        return {"password": PASSWORD}
    return {"answer": answer}


@dataclass
class Replica:
    """The renewal of one more process, on connections of its own."""

    store: Store
    vault: Vault
    claims: Claims
    renewals: Renewing
    consents: Consents

    async def row(self, credential: str = "oauth", tenant: str = "acme") -> CredentialRow:
        async with self.store.unit_of_work(tenants=[tenant], read_only=True) as work:
            row = await credentials.credential(work, tenant, credential)
        assert row is not None
        return row

    async def value(self, credential: str = "oauth") -> Oauth2AuthorizationCode:
        opened = await self.claims.value(await self.row(credential))
        return opened.oauth2_authorization_code


@asynccontextmanager
async def replica(settings: CredentialsSettings) -> AsyncIterator[Replica]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        roots = await open_root_keys(settings, stack)
        store = await stack.enter_async_context(open_store(settings.database_url, CREDENTIALS))
        worker = await stack.enter_async_context(open_store(settings.worker_database_url, CREDENTIALS))
        vault = Vault(roots, store)
        journal = Journal(vault, clock)
        await journal.load()
        renewals, consents = await stack.enter_async_context(
            open_renewal(settings, store, worker, vault, journal, clock=clock, registry=CollectorRegistry())
        )
        yield Replica(store, vault, Claims(store, vault, journal, clock), renewals, consents)
