"""What the vault tells of leases, and what becomes of the secrets that are held."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.process.ports import Port
from foundation.process.testing import until
from tests.gateway.neighbours import CONNECTION, SECRET, Edge, edge
from tests.gateway.test_hooks import signed
from tieline.credentials.v1.leases_pb2 import Lease

NEW = b"the new secret"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Edge]:
    with Port() as port:
        async with edge(tmp_path, port.number) as running:
            yield running


async def post(running: Edge, secret: bytes, number: int = 0) -> int:
    return (await running.post(b"{}", signed(b"{}", f"d-{number}-{secret.hex()}", secret))).status_code


async def test_a_newer_secret_is_fetched_when_it_is_told(running: Edge) -> None:
    assert await post(running, SECRET) == 202
    running.leases.secrets[CONNECTION] = [NEW, SECRET]
    running.leases.tell(Lease.STATE_OUTDATED)

    async def accepted() -> bool:
        return await post(running, NEW) == 202

    await until(accepted, 30)
    assert await post(running, SECRET, 1) == 202
    assert running.leases.asked == 2
    assert running.inbox.deliveries[-2].secret_version == 2


async def test_a_revoked_secret_is_not_used_any_more(running: Edge) -> None:
    assert await post(running, SECRET) == 202
    running.leases.secrets.clear()
    running.leases.tell(Lease.STATE_REVOKED)

    async def refused() -> bool:
        return await post(running, SECRET, 1) == 401

    await until(refused, 30)


async def test_a_revoked_secret_is_wiped_though_the_vault_is_gone(running: Edge) -> None:
    assert await post(running, SECRET) == 202
    running.leases.tell(Lease.STATE_REVOKED)
    await until(running.leases.sent.is_set, 30)
    await running.servers["credentials"].__aexit__()

    async def unverifiable() -> bool:
        return await post(running, SECRET, 1) == 503

    await until(unverifiable, 30)


async def test_an_active_lease_is_left_alone(running: Edge) -> None:
    assert await post(running, SECRET) == 202
    running.leases.tell(Lease.STATE_ACTIVE)
    await until(running.leases.sent.is_set, 30)
    running.leases.tell(Lease.STATE_OUTDATED)
    await until(lambda: running.leases.asked == 2, 30)
    assert await post(running, SECRET, 1) == 202
    assert running.leases.asked == 2, "only what is outdated is asked for again"


async def test_what_is_told_while_asking_is_asked_for_again(running: Edge) -> None:
    """The answer under way may be from before the change."""
    assert await post(running, SECRET) == 202
    running.leases.hold.clear()
    running.leases.tell(Lease.STATE_OUTDATED)
    await until(lambda: running.leases.asked == 2, 30)
    running.leases.tell(Lease.STATE_OUTDATED)
    await until(running.leases.sent.is_set, 30)
    running.leases.hold.set()
    await until(lambda: running.leases.asked >= 3, 30)
    assert await post(running, SECRET, 1) == 202
