"""A plugin that is particular about settings, credentials and health, and words for what people do with connections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from foundation.process.testing import until
from tests.services.registry.conftest import ADMIN, MAPPER, Running
from tests.services.registry.plugins import make_plugin
from tieline.plugin.v1.transform_pb2 import TransformInput
from tieline.registry.v1 import broker_pb2, broker_pb2_grpc, connections_pb2_grpc
from tieline.registry.v1 import connections_pb2 as pb

SLOT = """
[[credential_slots]]
name = "api"

[[credential_slots.choices]]
kind = "bearer_token"
fields = ["token"]
scopes = [
    { name = "write", reason = "to answer where it was asked" },
    { name = "read", reason = "to look" },
    { name = "extra", reason = "for comfort", optional = true },
]
"""

CODE = """
import asyncio, os
from tieline.sdk import (
    Category, Diagnostic, Event, Failure, FailureKind, Health, Probe, serve,
)

class Plugin:
    def migrate(self, settings, from_version):
        {migrate}

    def configure(self, settings):
        if settings.get("{key}") == "broken":
            raise RuntimeError("a defect")
        if settings.get("{key}") == "forbidden":
            return [Diagnostic("that word is forbidden", "/{key}")]
        return []

    async def probe(self, instance, credential):
        token = credential.fields["token"]
        if token == b"refused":
            raise Failure(FailureKind.AUTH_FAILED, "BAD_TOKEN", "401: " + token.decode() + " is not known")
        missing = dict(narrow=["write", "read"], lax=["extra"]).get(token.decode(), [])
        return Probe(principal="robot", account_keys=["account of " + token.decode()], missing_scopes=missing)

    async def health(self, instance):
        word = instance.settings.get("{key}", "")
        if os.path.exists("mood"):
            return [Health("api", Health.State.FAILED, Failure(FailureKind.TRANSIENT, "MOOD", "not today"))]
        if word == "slow":
            await asyncio.sleep(3600)
        if word.startswith("sick"):
            kind = FailureKind.INVALID_CONFIG if word == "sick for good" else FailureKind.TRANSIENT
            return [Health("api", Health.State.FAILED, Failure(kind, "SICK", "it has a fever"))]
        return [Health("api")]

    def transform(self, instance, delivery):
        word = delivery.json().need_text("say")
        return Event(
            type="{name}.said", title=word + ":" + instance.settings.get("{key}", ""), external_key=word,
            category=Category.SYSTEM, attributes={{"instance": instance.id, "revision": instance.revision}},
        )

if __name__ == "__main__":
    serve(Plugin())
"""


def make_choosy(
    below: Path,
    name: str = "choosy",
    *,
    version: str = "1.0.0",
    key: str = "word",
    migrate: str = "return settings",
    folder: str = "",
) -> Path:
    code = CODE.replace("{key}", key)
    code = code.replace("{migrate}", migrate.replace("{", "{{").replace("}", "}}"))
    where = make_plugin(below, name, rest=SLOT, code=code, version=version, folder=folder)
    manifest = where / "plugin.toml"
    manifest.write_text(manifest.read_text().replace("min_entries = 1\n", "").replace("word =", f"{key} ="))
    return where


def settings(word: str = "", key: str = "word") -> bytes:
    return json.dumps({key: word} if word else {}, separators=(",", ":")).encode()


def bound(slot: str, credential: str, tenant: str = "acme") -> pb.SlotBinding:
    return pb.SlotBinding(slot=slot, credential=f"tenants/{tenant}/credentials/{credential}")


@dataclass
class People:
    """Somebody at the API."""

    stub: Any
    running: Running
    tenant: str = "acme"

    def name(self, id_: str) -> str:
        return f"tenants/{self.tenant}/connections/{id_}"

    async def make(
        self, id_: str = "main", word: str = "", *bindings: pb.SlotBinding, **more: Any
    ) -> pb.Connection:
        """Made, and as it is once that is decided."""
        wanted = pb.Connection(plugin="plugins/choosy", settings=settings(word), credentials=bindings, **more)
        request = pb.CreateConnectionRequest(
            parent=f"tenants/{self.tenant}", connection_id=id_, connection=wanted
        )
        await self.stub.CreateConnection(request)
        return await self.decided(id_)

    async def get(self, id_: str = "main") -> pb.Connection:
        found: pb.Connection = await self.stub.GetConnection(pb.GetConnectionRequest(name=self.name(id_)))
        return found

    async def update(
        self,
        before: pb.Connection,
        mask: Sequence[str],
        *,
        request_id: str = "",
        validate_only: bool = False,
        **fields: Any,
    ) -> pb.Connection:
        given = pb.Connection(name=before.name, etag=before.etag, **fields)
        request = pb.UpdateConnectionRequest(
            connection=given,
            update_mask=FieldMask(paths=mask),
            request_id=request_id,
            validate_only=validate_only,
        )
        answer: pb.Connection = await self.stub.UpdateConnection(request)
        return answer

    async def say(self, before: pb.Connection, word: str, **more: Any) -> pb.Connection:
        return await self.update(before, ["settings"], settings=settings(word), **more)

    async def rollback(self, before: pb.Connection, revision: int, **more: Any) -> pb.Connection:
        request = pb.RollbackConnectionRequest(name=before.name, etag=before.etag, revision=revision, **more)
        answer: pb.Connection = await self.stub.RollbackConnection(request)
        return answer

    async def decided(self, id_: str = "main") -> pb.Connection:
        """Once its newest revision serves, or was refused, or was tried in vain at least once."""

        async def is_so() -> bool:
            found = await self.get(id_)
            return found.application != pb.Connection.APPLICATION_APPLYING and (
                found.application != pb.Connection.APPLICATION_PENDING
                or found.HasField("application_failure")
            )

        await until(is_so, 60)
        return await self.get(id_)

    async def applied(self, id_: str = "main") -> pb.Connection:
        async def is_so() -> bool:
            return (await self.get(id_)).application == pb.Connection.APPLICATION_APPLIED

        await until(is_so, 60)
        return await self.get(id_)

    async def history(self, id_: str = "main") -> list[pb.ConnectionRevision]:
        request = pb.ListConnectionRevisionsRequest(parent=self.name(id_))
        return list((await self.stub.ListConnectionRevisions(request)).connection_revisions)

    async def delete(self, id_: str = "main", etag: str = "") -> None:
        await self.stub.DeleteConnection(pb.DeleteConnectionRequest(name=self.name(id_), etag=etag))

    async def gone(self, id_: str = "main") -> None:
        async def is_so() -> bool:
            page = await self.stub.ListConnections(
                pb.ListConnectionsRequest(parent=f"tenants/{self.tenant}", page_size=1000)
            )
            return self.name(id_) not in {one.name for one in page.connections}

        await until(is_so, 60)

    async def titles(self, id_: str = "main", word: str = "hello") -> list[str]:
        """What a delivery becomes; the reason where it becomes nothing."""
        result = await transform(self.running, self.name(id_), word)
        if result.HasField("failure"):
            return [result.failure.reason]
        return [draft.title for outcome in result.outcomes for draft in outcome.events.drafts]


async def transform(
    running: Running, connection: str, word: str = "hello"
) -> broker_pb2.TransformDataResponse.Result:
    payload = json.dumps({"say": word}).encode()
    group = broker_pb2.TransformDataRequest.Group(
        ref=broker_pb2.ConnectionRef(connection=connection),
        inputs=[TransformInput(input_id="1", webhook="events", payload=payload)],
    )
    async with running.as_(MAPPER) as channel:
        stub: Any = broker_pb2_grpc.BrokerServiceStub(channel)
        answer = await stub.TransformData(broker_pb2.TransformDataRequest(groups=[group]))
    result: broker_pb2.TransformDataResponse.Result = answer.results[0]
    return result


@asynccontextmanager
async def people(running: Running, principal: Any = ADMIN, tenant: str = "acme") -> AsyncIterator[People]:
    async with running.as_(principal) as channel:
        yield People(connections_pb2_grpc.ConnectionServiceStub(channel), running, tenant)
