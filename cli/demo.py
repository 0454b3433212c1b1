"""`tieline demo`: a small story through the real path, for a newcomer to watch.

A tenant `demo` with a GitHub connection is made where there is none. Then GitHub's part is played: a push, its
deployment, and the deployment's failure, each signed and posted to the gateway as GitHub would. What comes
out are real events, which stay.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx

from cli.client import Client, client
from foundation.errors import Code, Problem
from tieline.credentials.v1 import credentials_pb2_grpc, tenants_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import CreateCredentialRequest
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest, Tenant
from tieline.event.v1.content_pb2 import Severity
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1 import events_pb2_grpc
from tieline.mapper.v1.events_pb2 import ListEventsRequest
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, SlotBinding

TENANT = "tenants/demo"
REPOSITORY = "demo/shop"
WITHIN = 30.0

Delivery = tuple[str, dict[str, Any]]


async def demo(options: argparse.Namespace) -> None:
    # A connection of its own each time: the secret is known only while it is made.
    run = secrets.token_hex(4)
    secret = secrets.token_hex(32)
    async with client(options) as installation:
        await _tenant(installation)
        hook = await _connection(installation, run, secret)
        print(f"connected {TENANT}/connections/github-{run}; GitHub would post to {hook}")
        async with httpx.AsyncClient(timeout=WITHIN) as http:
            for name, payload in _story(run):
                answer = await http.post(hook, **_signed(name, payload, secret))
                print(f"posted {name:<18} {answer.status_code} {answer.text.strip()}")
                answer.raise_for_status()
        for event in await _events(installation, run, 3):
            _tell(event)
    print(f"\nLook again with `tieline event list --tenant {TENANT.partition('/')[2]}`.")


async def _tenant(installation: Client) -> None:
    request = CreateTenantRequest(tenant_id="demo", tenant=Tenant(title="A tenant to look at"))
    try:
        await tenants_pb2_grpc.TenantServiceStub(installation.credentials).CreateTenant(request)
    except Problem as problem:
        if problem.code is not Code.ALREADY_EXISTS:
            raise


async def _connection(installation: Client, run: str, secret: str) -> str:
    credential = f"github-{run}"
    await credentials_pb2_grpc.CredentialServiceStub(installation.credentials).CreateCredential(
        CreateCredentialRequest(
            parent=TENANT,
            credential_id=credential,
            value=SecretValue(webhook_secret=WebhookSecret(secret=secret)),
            request_id=str(uuid.uuid4()),
        )
    )
    made = await connections_pb2_grpc.ConnectionServiceStub(installation.registry).CreateConnection(
        CreateConnectionRequest(
            parent=TENANT,
            connection_id=f"github-{run}",
            connection=Connection(
                plugin="plugins/github",
                settings=b"{}",
                credentials=[SlotBinding(slot="webhook", credential=f"{TENANT}/credentials/{credential}")],
            ),
            request_id=str(uuid.uuid4()),
        )
    )
    [hook] = made.webhook_urls.values()
    return hook


def _story(run: str) -> Iterator[Delivery]:
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    url = f"https://github.com/{REPOSITORY}"
    sha = hashlib.sha1(run.encode(), usedforsecurity=False).hexdigest()
    number = int(run, 16)
    repository = {
        "id": 1,
        "name": "shop",
        "full_name": REPOSITORY,
        "html_url": url,
        "default_branch": "main",
        "owner": {"login": "demo", "id": 1},
    }
    ada = {"login": "ada", "id": 2, "html_url": "https://github.com/ada"}
    author = {"name": "Ada", "email": "ada@demo.example", "username": "ada"}
    commit = {
        "id": sha,
        "message": "Retry payments twice",
        "timestamp": now,
        "url": f"{url}/commit/{sha}",
        "author": author,
        "committer": author,
        "added": [],
        "removed": [],
        "modified": ["payments.py"],
        "distinct": True,
    }
    common = {"repository": repository, "sender": ada}
    yield (
        "push",
        common
        | {
            "ref": "refs/heads/main",
            "before": "0" * 39 + "1",
            "after": sha,
            "created": False,
            "deleted": False,
            "forced": False,
            "compare": f"{url}/compare/000000000001...{sha[:12]}",
            "commits": [commit],
            "head_commit": commit,
            "pusher": {"name": "ada", "email": "ada@demo.example"},
        },
    )
    deployment = {
        "id": number,
        "sha": sha,
        "ref": "main",
        "task": "deploy",
        "environment": "production",
        "original_environment": "production",
        "production_environment": True,
        "description": "Deploy shop",
        "creator": ada,
        "created_at": now,
        "updated_at": now,
        "payload": {},
        "url": f"https://api.github.com/repos/{REPOSITORY}/deployments/{number}",
        "statuses_url": f"https://api.github.com/repos/{REPOSITORY}/deployments/{number}/statuses",
    }
    yield "deployment", common | {"action": "created", "deployment": deployment}
    status = {
        "id": number + 1,
        "state": "failure",
        "environment": "production",
        "description": "Payments answer 500 since the deployment",
        "target_url": f"{url}/actions/runs/{number}",
        "log_url": f"{url}/actions/runs/{number}",
        "environment_url": "https://shop.demo.example",
        "creator": ada,
        "created_at": now,
        "updated_at": now,
        "url": f"https://api.github.com/repos/{REPOSITORY}/deployments/{number}/statuses/{number + 1}",
    }
    yield (
        "deployment_status",
        common | {"action": "created", "deployment": deployment, "deployment_status": status},
    )


def _signed(name: str, payload: dict[str, Any], secret: str) -> dict[str, Any]:
    body = json.dumps(payload).encode()
    headers = {
        "content-type": "application/json",
        "x-github-delivery": str(uuid.uuid4()),
        "x-github-event": name,
        "x-hub-signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }
    return {"content": body, "headers": headers}


async def _events(installation: Client, run: str, count: int) -> list[Event]:
    """What became of them, in the order in which it happened."""
    stub = events_pb2_grpc.EventServiceStub(installation.mapper)
    request = ListEventsRequest(parent=TENANT, connection=f"{TENANT}/connections/github-{run}")
    async with asyncio.timeout(WITHIN):
        while True:
            page = await stub.ListEvents(request)
            if len(page.events) >= count:
                return sorted(page.events, key=lambda event: event.received_at.ToNanoseconds())
            await asyncio.sleep(0.05)


def _tell(event: Event) -> None:
    severity = Severity.Name(event.severity).removeprefix("SEVERITY_").lower()
    print(f"\n{severity:<8} {event.type:<28} {event.title}")
    for entity in event.entities:
        print(f"         {entity.kind}: {entity.id}")
    for evidence in event.evidence:
        print(f"         see {evidence.url}")
