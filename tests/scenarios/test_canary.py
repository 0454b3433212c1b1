"""Secrets are planted in a whole installation, things go wrong with them, and then they are looked for everywhere."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from foundation.process.testing import until
from tests.scenarios.path import Receiver, push, receiving
from tests.scenarios.suite import Suite, tieline, up
from tests.services.credentials.values import other_keys, pem

WORD = "canary7Qx9"
"""In every secret of this test, and in nothing else."""

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Traces:
    """An OTLP collector that keeps what it gets as bytes."""

    port: int = 0
    heard: bytearray = field(default_factory=bytearray)

    @asynccontextmanager
    async def collecting(self) -> AsyncIterator[Traces]:
        async def export(request: bytes, _: Any) -> bytes:
            self.heard.extend(request)
            return ExportTraceServiceResponse().SerializeToString()

        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(export)
        service, method = EXPORT[1:].split("/")
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


def forms(secret: bytes) -> Iterator[bytes]:
    """As it is, and as something may have written it down."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    # Base64 depends on where in a text it stands; the middle of each of the three ways is the same everywhere.
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + secret)
        yield encoded[4 if before else 0 : len(encoded) - 4]


class Planted:
    """Every way in there is, with good values and bad ones; keeps what the command line said."""

    def __init__(self, suite: Suite, files: Path) -> None:
        self._suite = suite
        self._files = files
        self.said: list[str] = []
        files.mkdir()

    async def tell(self, *arguments: str) -> int:
        code, out, err = await tieline("--data", str(self._suite.data), "--tenant", "acme", *arguments)
        self.said += [out, err]
        return code

    def file(self, name: str, content: str) -> str:
        path = self._files / name
        path.write_text(content)
        return str(path)

    async def plant(self, name: str, kind: str, expected: int = 0, **fields: str) -> None:
        options = [f"--field={key}={self.file(f'{name}-{key}', text)}" for key, text in fields.items()]
        assert await self.tell("credential", "put", name, "--kind", kind, *options) == expected, self.said[-1]


@pytest.mark.timeout(600)
async def test_a_planted_secret_is_found_nowhere(short_dir: Path) -> None:
    traces, data = Traces(), short_dir / "data"
    async with traces.collecting():
        services = ("CREDENTIALS", "REGISTRY", "MAPPER", "GATEWAY")
        env = {f"TIELINE_{name}_LOG_LEVEL": "debug" for name in services}
        env |= {f"TIELINE_{name}_OTLP_ENDPOINT": f"http://127.0.0.1:{traces.port}" for name in services}
        async with up(data, env=os.environ | env) as suite, receiving(suite) as acme:
            planted = Planted(suite, short_dir / "files")
            await _live(planted)
            await _rotate_webhook(acme, planted)
            await _go_wrong(suite, planted)
            # While a service is away nothing else may blurt out what it was asked for.
            suite.child("services.credentials").kill()
            assert (await acme.send(push(1), "d-1")).status_code in (202, 503)
            assert (await acme.send(push(2), "d-2", secret="a wrong secret of 16")).status_code in (
                401,
                503,
            )
            await until(lambda: _answers(suite, "credentials"), 60)
            assert await planted.tell("credential", "show", "key") == 0
            await _look_everywhere(suite, planted, traces)


async def _live(planted: Planted) -> None:
    key = pem(other_keys()["P-256"], f"{WORD} of a passphrase")
    await planted.plant("key", "api_key", key=f"{WORD} key")
    await planted.plant("login", "basic", username="ada", password=f"{WORD} password")
    await planted.plant("pem", "private_key", private_key=key, passphrase=f"{WORD} of a passphrase")
    await planted.plant(
        "oauth",
        "oauth2_authorization_code",
        client_id="tieline",
        client_secret=f"{WORD}-client",
        authorization_url="https://provider.example/authorize",
        token_url="https://provider.example/token",
        refresh_token=f"{WORD}-refresh",
        access_token=f"{WORD}-access",
    )
    new = planted.file("new", f"{WORD} next key")
    assert await planted.tell("credential", "rotate", "key", f"--field=key={new}", "--overlap", "1h") == 0
    for verb in ("show", "versions"):
        assert await planted.tell("credential", verb, "key", "--json") == 0


async def _rotate_webhook(acme: Receiver, planted: Planted) -> None:
    """From now on the provider signs with a canary; for an hour the secret before is accepted too."""
    new = f"{WORD} of a webhook"
    file = planted.file("hook", new)
    assert (
        await planted.tell("credential", "rotate", "github-hook", f"--field=secret={file}", "--overlap=1h")
        == 0
    )
    numbers = iter(range(10, 10_000))

    async def taken() -> bool:
        number = next(numbers)
        return (await acme.send(push(number), f"d-{number}", secret=new)).status_code == 202

    await until(taken, 30)
    assert (await acme.send(push(5), "d-5")).status_code == 202


async def _go_wrong(suite: Suite, planted: Planted) -> None:
    """Bad input is refused in words that hold nothing of it."""
    bad = f"-----BEGIN PRIVATE KEY-----\n{base64.b64encode(WORD.encode()).decode()}\n-----END PRIVATE KEY-----\n"
    key = pem(other_keys()["P-256"], "the right one")
    await planted.plant("bad-pem", "private_key", 1, private_key=bad)
    await planted.plant("bad-pass", "private_key", 1, private_key=key, passphrase=f"{WORD} wrong")
    await planted.plant("bad-line", "api_key", 1, key=f"{WORD}\nsecond line")
    await planted.plant(
        "bad-url", "oauth2_client_credentials", 1, client_id="x", client_secret=WORD, token_url="x"
    )
    await planted.plant(
        "bad-doc", "service_account", 1, document=f'{{"private_key": "{WORD}"}}', scopes="read"
    )
    await planted.plant("key", "api_key", 1, key=f"{WORD} of one that is there already")
    database = await suite.database()
    try:
        # What the store refuses itself must not come back in its error.
        await database.execute(
            "alter table credentials.credential_versions add constraint no check (false) not valid"
        )
        await planted.plant("unstored", "api_key", 1, key=f"{WORD} unstored")
        await database.execute("alter table credentials.credential_versions drop constraint no")
    finally:
        await database.close()
    async with httpx.AsyncClient(base_url=suite.endpoints["gateway"]) as client:
        headers = {"x-hub-signature-256": f"sha256={WORD}", "authorization": f"Bearer {WORD}"}
        assert (await client.post("/hooks/none", content=b"{}", headers=headers)).status_code == 404


async def _look_everywhere(suite: Suite, planted: Planted, traces: Traces) -> None:
    word = WORD.encode()
    needles = {form for form in forms(word) if len(form) >= 8}

    def clean(where: str, content: bytes) -> None:
        for needle in needles:
            at = content.find(needle)
            assert at < 0, f"{where}: {content[max(0, at - 80) : at + 40]!r}"

    clean("what the command line said", "\n".join(planted.said).encode())
    for running in [psutil.Process(suite.process.pid), *suite.descendants()]:
        with suppress(psutil.NoSuchProcess):
            clean(f"arguments of {running.name()}", "\0".join(running.cmdline()).encode())
            clean(f"environment of {running.name()}", str(running.environ()).encode())
    async with httpx.AsyncClient() as client:
        for name, process in suite.processes.items():
            clean(f"metrics of {name}", (await client.get(f"http://{process['http']}/metrics")).content)
    await until(lambda: b"credentials" in traces.heard, 60)
    clean("traces", bytes(traces.heard))
    await _database_is_written(suite)
    room = Path((suite.data / "postgres/socket").read_text().strip())
    assert await suite.end() < 60
    clean("output", bytes(suite.output))
    # The files of the engines too, as whoever has the disk finds them; the pages that were freed included.
    searched = 0
    for path in [*suite.data.rglob("*"), *room.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            with suppress(FileNotFoundError, PermissionError):
                clean(str(path), path.read_bytes())
                searched += 1
        assert not path.name.startswith("core"), path
    assert searched > 100


async def _answers(suite: Suite, name: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://{suite.processes[name]['http']}/readyz")).is_success
    except httpx.TransportError:
        return False


async def _database_is_written(suite: Suite) -> None:
    """Everything that is in memory only is on the disk, where it is looked for."""
    database = await suite.database()
    try:
        await database.execute("checkpoint")
        assert await database.fetchval("select count(*) from credentials.credential_versions") >= 5
    finally:
        await database.close()
