"""Plugins made on the spot, on the real SDK, each with one thing it does or does wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from foundation.clock import SystemClock
from foundation.process.cgroups import Cgroups
from foundation.process.restart import RestartPolicy
from services.registry.broker.serving import Served
from services.registry.catalogue.catalogue import Catalogue
from services.registry.catalogue.installing import Installer
from services.registry.catalogue.ledger import HeldLedger, Ledger
from services.registry.host.host import Host
from services.registry.host.sandbox import Sandbox
from services.registry.host.socket_room import socket_room
from services.registry.host.watchdog import Patience
from tieline.plugin.v1.transform_pb2 import TransformInput
from tieline.registry.v1 import broker_pb2

GITHUB = Path(__file__).parents[3] / "services" / "plugins" / "github"
QUICK = RestartPolicy(base=0.05, cap=0.1)

MANIFEST = """
name = "{name}"
version = "{version}"
contract = 1
status = "active"
title = "{name}"
capabilities = ["release"]
{top}
[runtime.process]
command = ["python", "-m", "plugin"]
install = {{ none = true }}

[settings_schema]
type = "object"
additionalProperties = false
properties = {{ word = {{ type = "string" }} }}

[[credential_slots]]
name = "webhook"
uses = ["verify"]
min_entries = 1
choices = [{{ kind = "webhook_secret", fields = ["secret"] }}]

[[webhooks]]
name = "events"
signature = {{ hmac = {{ signature = {{ header = "x-signature" }} }} }}

[[event_types]]
type = "{name}.said"
description = "Somebody said something."
category = "system"
severity = "warning"
{rest}
"""

CODE = """
import os, signal, sys, time
from tieline.sdk import Category, Diagnostic, Event, Failure, FailureKind, InvalidInput, Skip, serve

class Plugin:
    def configure(self, settings):
        if settings.get("word") == "forbidden":
            return [Diagnostic("that word is forbidden", "/word")]
        return []

    def transform(self, instance, delivery):
        body = delivery.json()
        word = body.need_text("say")
        match word:
            case "die": os.kill(os.getpid(), signal.SIGKILL)
            case "skip": return Skip("SILENCE")
            case "raise": raise RuntimeError("secret-canary")
            case "wait": time.sleep(0.5)
            case "other": return Event(type="other.type", title="t", external_key="k", category=Category.SYSTEM)
        return Event(
            type="{name}.said", title=word + instance.settings.get("word", ""), external_key=body.text("id") or word,
            category=Category.SYSTEM, attributes={{"pid": os.getpid(), "instance": instance.id}},
        )

if __name__ == "__main__":
    {before}
    serve(Plugin())
"""


def make_plugin(
    below: Path,
    name: str,
    *,
    top: str = "",
    rest: str = "",
    before: str = "pass",
    code: str = CODE,
    version: str = "1.0.0",
    folder: str = "",
) -> Path:
    where = below / (folder or name)
    where.mkdir(parents=True)
    (where / "plugin.py").write_text(code.format(name=name, before=before))
    (where / "plugin.toml").write_text(MANIFEST.format(name=name, version=version, top=top, rest=rest))
    return where


@asynccontextmanager
async def hosting(
    *directories: Path,
    policy: RestartPolicy = QUICK,
    below: Path | None = None,
    sandbox: Sandbox | None = None,
    patience: Patience | None = None,
    look_seconds: float = 0.1,
    ledger: Ledger | None = None,
    cgroups: Cgroups | None = None,
) -> AsyncIterator[Host]:
    """A host of what lies in these directories, which it watches; only a given ledger outlasts it."""
    ledger = ledger or HeldLedger(SystemClock())
    with socket_room(below) as room, TemporaryDirectory() as environments:
        async with (
            Catalogue(
                directories, ledger, Installer(Path(environments)), look_seconds=look_seconds
            ) as catalogue,
            Host(
                catalogue,
                ledger,
                room,
                policy=policy,
                sandbox=sandbox,
                patience=patience,
                cgroups=cgroups,
            ) as host,
        ):
            yield host


def served(
    plugin: str,
    number: int = 1,
    settings: bytes = b"{}",
    revision: int = 1,
    *,
    version_range: str = "",
    cell: str = "",
) -> Served:
    return Served(
        connection=f"tenants/acme/connections/{plugin}-{number}",
        plugin=plugin,
        instance=f"instance-{plugin}-{number}",
        revision=revision,
        settings=settings,
        version_range=version_range,
        cell=cell,
    )


def group(one: Served, *payloads: bytes | str, event_type: str = "") -> broker_pb2.TransformDataRequest.Group:
    return broker_pb2.TransformDataRequest.Group(
        ref=broker_pb2.ConnectionRef(connection=one.connection),
        inputs=[
            TransformInput(
                input_id=f"{one.instance}/{index}",
                webhook="events",
                payload=_payload(item),
                event_type=event_type,
            )
            for index, item in enumerate(payloads)
        ],
    )


def _payload(item: bytes | str) -> bytes:
    return item if isinstance(item, bytes) else f'{{"say": "{item}"}}'.encode()


def titles(result: broker_pb2.TransformDataResponse.Result) -> Sequence[str]:
    return [draft.title for outcome in result.outcomes for draft in outcome.events.drafts]
