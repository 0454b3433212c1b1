"""A tenant's key is rotated while its secrets are lent, a process is killed over it, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import msgspec
import pytest

from cli.fleet import settings_text
from foundation.errors import Code, Problem
from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.testing import until
from foundation.rpc import check_health, connect
from foundation.settings import Address, Secret
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.conftest import Client, Running, replica
from tests.services.credentials.test_service import (
    SECRET,
    lease,
    make_credential,
    make_grant,
    make_tenant,
    refusal,
)
from tieline.credentials.v1.credentials_pb2 import (
    PURPOSE_WEBHOOK_VERIFY,
    CreateCredentialRequest,
    CreateGrantRequest,
    Grant,
)
from tieline.credentials.v1.keys_pb2 import (
    GetTenantKeyRequest,
    RetireTenantKeyVersionsRequest,
    RotateTenantKeyRequest,
    TenantKey,
)
from tieline.credentials.v1.leases_pb2 import AcquireLeasesRequest
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret

KEY = "tenants/acme/key"
AT_ONCE = 16


async def read(client: Client) -> TenantKey:
    return await client.keys.GetTenantKey(GetTenantKeyRequest(name=KEY))


async def rotate(client: Client, etag: str | None = None) -> TenantKey:
    etag = (await read(client)).etag if etag is None else etag
    return await client.keys.RotateTenantKey(RotateTenantKeyRequest(name=KEY, etag=etag))


async def retire(client: Client, before: int) -> TenantKey:
    request = RetireTenantKeyVersionsRequest(name=KEY, before_version=before)
    return await client.keys.RetireTenantKeyVersions(request)


async def finished(client: Client) -> bool:
    return not (await read(client)).HasField("rewrap")


def versions(key: TenantKey) -> list[tuple[int, int, int]]:
    return [(one.version, one.state, one.data_keys) for one in key.versions]


def value_of(number: int) -> str:
    return f"the secret of number {number}"


async def fill(admin: Client, count: int) -> None:
    """Credentials of acme, each with a grant for the gateway."""

    async def make(number: int) -> None:
        value = SecretValue(webhook_secret=WebhookSecret(secret=value_of(number)))
        name = f"tenants/acme/credentials/c{number}"
        await admin.credentials.CreateCredential(
            CreateCredentialRequest(parent="tenants/acme", credential_id=f"c{number}", value=value)
        )
        grant = Grant(
            service="gateway",
            connection=f"tenants/acme/connections/c{number}",
            slot="webhook",
            purpose=PURPOSE_WEBHOOK_VERIFY,
        )
        await admin.credentials.CreateGrant(CreateGrantRequest(parent=name, grant=grant))

    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*map(make, range(start, min(start + AT_ONCE, count))))


async def borrow(gateway: Client, numbers: range) -> dict[int, bytes]:
    wanted = [
        AcquireLeasesRequest.LeaseRequest(
            subject=f"tenants/acme/connections/c{number}", slot="webhook", purpose=PURPOSE_WEBHOOK_VERIFY
        )
        for number in numbers
    ]
    answer = await gateway.leases.AcquireLeases(AcquireLeasesRequest(requests=wanted), timeout=60)
    return {
        number: outcome.secret.fields["secret"]
        for number, outcome in zip(numbers, answer.outcomes, strict=True)
    }


async def test_a_new_version_seals_what_is_written_and_the_old_one_opens_what_was(
    running: Running, admin: Client, gateway: Client
) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_grant(admin)
    before = await running.sql("select wrapped_key, sealed from credentials.credential_versions")
    first = await read(admin)
    assert versions(first) == [(1, TenantKey.STATE_CURRENT, 1)]
    assert not first.HasField("rewrap")
    rotated = await rotate(admin)
    assert [one.version for one in rotated.versions] == [2, 1]
    assert rotated.rewrap.total == 1
    await until(lambda: finished(admin), 30)
    assert versions(await read(admin)) == [(2, TenantKey.STATE_CURRENT, 1), (1, TenantKey.STATE_PREVIOUS, 0)]
    after = await running.sql("select wrapped_key, sealed from credentials.credential_versions")
    # The value is not touched, only what wraps its key.
    assert before[0]["sealed"] == after[0]["sealed"]
    assert before[0]["wrapped_key"] != after[0]["wrapped_key"]
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()
    await make_credential(admin, credential="second")
    assert versions(await read(admin))[0] == (2, TenantKey.STATE_CURRENT, 2)

    retired = await retire(admin, 2)
    assert versions(retired)[1] == (1, TenantKey.STATE_DESTROYED, 0)
    assert await retire(admin, 2) == retired
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()
    actions = await running.sql(
        "select action from credentials.audit_records where tenant = 'acme' and action like 'key.%' order by sequence"
    )
    assert [row["action"] for row in actions] == ["key.rotate", "key.rewrap", "key.retire"]


async def test_refusals_of_a_rotation_say_why(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    stale = (await read(admin)).etag
    assert await refusal(rotate(admin, "")) is Code.INVALID_ARGUMENT
    async with held(running, 1):
        await rotate(admin)
        assert await refusal(rotate(admin, stale)) is Code.CONFLICT
        with pytest.raises(Problem, match="1 data keys are still under versions before 2"):
            await retire(admin, 2)
    await until(lambda: finished(admin), 30)
    for before in (0, -1, 3):
        assert await refusal(retire(admin, before)) is Code.INVALID_ARGUMENT
    for name in ("tenants/none/key", "tenants/acme/keys"):
        wanted = admin.keys.GetTenantKey(GetTenantKeyRequest(name=name))
        assert await refusal(wanted) in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)


async def test_what_does_not_open_stays_as_it_is_and_holds_the_old_version(
    running: Running, admin: Client, gateway: Client
) -> None:
    await make_tenant(admin)
    await fill(admin, 3)
    await running.sql(
        "update credentials.credential_versions set wrapped_key = decode('00', 'hex') where credential = 'c1'"
    )
    await rotate(admin)

    async def the_others_are_done() -> bool:
        return (await read(admin)).rewrap.done == 2

    await until(the_others_are_done, 30)
    assert await refusal(retire(admin, 2)) is Code.STATE_REFUSES
    borrowed = await borrow(gateway, range(3))
    assert (borrowed[0], borrowed[2]) == (value_of(0).encode(), value_of(2).encode())


async def test_any_replica_carries_a_rotation_on(running: Running, admin: Client, gateway: Client) -> None:
    await make_tenant(admin)
    await fill(admin, 20)
    async with replica(running) as second:
        elsewhere = await second.as_("tl_gateway")
        for version in (2, 3):
            await rotate(admin)
            for client in (gateway, elsewhere):
                borrowed = await borrow(client, range(20))
                assert borrowed == {number: value_of(number).encode() for number in range(20)}
            await until(lambda: finished(admin), 30)
            assert versions(await read(admin))[0] == (version, TenantKey.STATE_CURRENT, 20)


@asynccontextmanager
async def held(running: Running, share: int) -> AsyncIterator[None]:
    """Every `share`th data key is held by another transaction; whoever wraps anew passes them over."""
    connection = await asyncpg.connect(running.admin_url)
    try:
        async with connection.transaction():
            await connection.execute(
                """select from credentials.credential_versions where (credential, version) in (
                       select credential, version from (
                           select credential, version, row_number() over (order by credential) as n
                           from credentials.credential_versions) numbered where n % $1 = 0)
                   for update""",
                share,
            )
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def process(settings: CredentialsSettings, directory: Path) -> AsyncIterator[Child]:
    """The service as it is really run."""
    file = directory / "credentials.toml"
    values = {
        name: value.reveal()
        if isinstance(value, Secret)
        else str(value)
        if isinstance(value, Address)
        else value
        for name, value in msgspec.structs.asdict(settings).items()
        if value is not None and not isinstance(value, bool | float)
    }
    file.touch(mode=0o600)
    file.write_text(settings_text("credentials", values))
    command = Command(
        name="credentials",
        argv=(sys.executable, "-m", "services.credentials", "--config", str(file)),
        grace=8,
    )
    child = await Child.spawn(command)
    try:
        async with connect(str(settings.listen)) as channel:

            async def healthy() -> bool:
                assert child.running, child.tail
                with suppress(Problem):
                    await check_health(channel, "credentials")
                    return True
                return False

            await until(healthy, 60)
        yield child
    finally:
        await child.stop()


@pytest.mark.proof
@pytest.mark.timeout(3600)
async def test_a_rotation_survives_kill_and_nobody_who_borrows_notices(
    settings: tuple[CredentialsSettings, str],
    tmp_path: Path,
    prove: Callable[[int, int], int],
    found: Callable[[str], None],
) -> None:
    """Half of the data keys wrapped anew, SIGKILL, a new start, the other half; borrowed all the while."""
    count = prove(200, 10_000)
    own, admin_url = settings
    async with AsyncExitStack() as stack:
        running = Running(str(own.listen), admin_url, own, stack)
        admin, gateway = await running.as_("tl_admin"), await running.as_("tl_gateway")
        borrowed = 0
        over = asyncio.Event()

        async def keep_borrowing() -> None:
            nonlocal borrowed
            while not over.is_set():
                for start in range(0, count, 20):
                    if over.is_set():
                        return
                    some = range(start, min(start + 20, count))
                    try:
                        got = await borrow(gateway, some)
                    except Problem:  # while there is no process
                        await asyncio.sleep(0.05)
                        continue
                    assert got == {number: value_of(number).encode() for number in some}
                    borrowed += len(got)

        async with process(own, tmp_path) as child:
            await make_tenant(admin)
            await fill(admin, count)
            values = await running.sql("select credential, sealed from credentials.credential_versions")
            borrowing = asyncio.create_task(keep_borrowing())
            async with held(running, 2):
                await rotate(admin)

                async def half_is_done() -> bool:
                    return (await read(admin)).rewrap.done == count - count // 2

                await until(half_is_done, 120)
                # Under the old version or the new one: both are lent.
                before = borrowed
                await until(lambda: borrowed >= before + 100, 120)
                child.signal(signal.SIGKILL)
                await child.wait()
        async with process(own, tmp_path):
            await until(lambda: finished(admin), 120)
            key = await read(admin)
            assert versions(key) == [
                (2, TenantKey.STATE_CURRENT, count),
                (1, TenantKey.STATE_PREVIOUS, 0),
            ]
            await retire(admin, 2)
            before = borrowed
            await until(lambda: borrowed >= before + 100, 120)
            over.set()
            await borrowing
            for start in range(0, count, 100):
                some = range(start, min(start + 100, count))
                assert await borrow(gateway, some) == {n: value_of(n).encode() for n in some}
        after = await running.sql("select credential, sealed from credentials.credential_versions")
        assert sorted(map(tuple, after)) == sorted(map(tuple, values))
        found(f"{count} data keys under a new tenant key across a kill; {borrowed} values borrowed meanwhile")
