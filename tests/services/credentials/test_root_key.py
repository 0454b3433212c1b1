"""The root key: who may keep it, and how one takes the place of another while everything goes on."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import msgspec
import pytest

from foundation.errors import Code, Problem
from foundation.process.testing import until
from services.credentials.keys.aws_kms import aws_kms
from services.credentials.keys.envelope import Unopenable, place
from services.credentials.keys.key_file import KeyFile
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.aws import Aws
from tests.services.credentials.conftest import Client, Running, replica, started
from tests.services.credentials.test_service import (
    SECRET,
    lease,
    make_credential,
    make_grant,
    make_tenant,
    refusal,
)
from tests.services.credentials.test_tenant_keys import process
from tieline.credentials.v1.keys_pb2 import GetRootKeyRequest, RootKey, RotateRootKeyRequest

Settings = tuple[CredentialsSettings, str]


def changed(settings: Settings, **values: str | None) -> Settings:
    return msgspec.structs.replace(settings[0], **values), settings[1]


async def read(client: Client) -> RootKey:
    return await client.keys.GetRootKey(GetRootKeyRequest())


async def rotate(client: Client, fingerprint: str | None = None) -> RootKey:
    staged = (await read(client)).staged_fingerprint if fingerprint is None else fingerprint
    return await client.keys.RotateRootKey(RotateRootKeyRequest(staged_fingerprint=staged))


async def all_copied(running: Running, client: Client) -> bool:
    """Everything that the root key seals has a copy under the staged one."""
    key = await read(client)
    name = bytes.fromhex(key.staged_fingerprint)
    others = await running.sql(
        """select substring(sealed_other from 3 for 8) as name from credentials.platform_secrets
           union all select substring(sealed_other from 3 for 8) from credentials.signing_keys"""
    )
    return key.tenants_done == key.tenants_total and all(row["name"] == name for row in others)


async def with_secret(admin: Client, gateway: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_grant(admin)
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()


async def opens(running: Running) -> bool:
    outcome = await lease(await running.as_("tl_gateway"))
    return bool(outcome.secret.fields["secret"] == SECRET.encode())


@pytest.fixture
def both(settings: Settings, tmp_path: Path) -> Settings:
    """With the next root key in a file beside the present one."""
    return changed(settings, root_key_next_file=str(tmp_path / "next-root-key"))


@pytest.fixture
def after(settings: Settings, tmp_path: Path) -> Settings:
    """With the next root key as the root key."""
    return changed(settings, root_key_file=str(tmp_path / "next-root-key"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"root_key_file": None}, "one of them must be set"),
        ({"root_key_kms": "alias/x"}, "a key has one keeper"),
        ({"root_key_next_file": "x", "root_key_next_kms": "alias/x"}, "a key has one keeper"),
    ],
)
async def test_a_root_key_has_exactly_one_keeper(
    settings: Settings, values: dict[str, str | None], words: str
) -> None:
    with pytest.raises(Problem, match=words) as refused:
        async with started(*changed(settings, **values)):
            pass
    assert refused.value.meaning.exit == 2


async def test_from_one_root_key_to_the_next_without_a_pause(
    settings: Settings, both: Settings, after: Settings
) -> None:
    old, new = KeyFile(Path(settings[0].root_key_file or "")), KeyFile(Path(after[0].root_key_file or ""))
    async with started(*settings) as plain:
        admin = await plain.as_("tl_admin")
        await with_secret(admin, await plain.as_("tl_gateway"))
        key = await read(admin)
        assert (key.keeper, key.fingerprint, key.staged_fingerprint) == ("file", old.fingerprint, "")
        assert await refusal(rotate(admin, new.fingerprint)) is Code.STATE_REFUSES

        # A second process knows of the next one; that alone changes nothing.
        async with replica(plain, root_key_next_file=both[0].root_key_next_file) as second:
            staging = await second.as_("tl_admin")
            assert (await read(staging)).staged_fingerprint == new.fingerprint
            assert await refusal(rotate(staging, "0" * 16)) is Code.INVALID_ARGUMENT
            await rotate(staging)
            await rotate(staging)
            await make_tenant(admin, "later")
            await until(lambda: all_copied(plain, staging), 30)
            assert (await read(staging)).tenants_total == 2
            assert await opens(plain)
            assert await opens(second)

            # The first process that starts with it as the root key makes it that; the others go on.
            async with replica(plain, root_key_file=after[0].root_key_file) as third:
                key = await read(await third.as_("tl_admin"))
                assert (key.fingerprint, key.previous_fingerprint) == (new.fingerprint, old.fingerprint)
                assert key.staged_fingerprint == ""
                assert (key.tenants_done, key.tenants_total) == (2, 2)
                for running in (plain, second, third):
                    assert await opens(running)
                # Who holds both keys makes tenants, who holds only the old one says what to do.
                await make_tenant(staging, "with-both")
                await make_tenant(await third.as_("tl_admin"), "with-new")
                with pytest.raises(Problem, match=f"{new.fingerprint} is current now.*start it anew"):
                    await make_tenant(admin, "with-old")
    async with started(*after) as later:
        assert await opens(later)
        actions = await later.sql(
            "select action from credentials.audit_records where action like 'root_key.%' order by sequence"
        )
        assert [row["action"] for row in actions] == ["root_key.rotate", "root_key.promote"]
    words = f"it holds the key {old.fingerprint}, which was replaced by {new.fingerprint}"
    with pytest.raises(Problem, match=words) as refused:
        async with started(*settings):
            pass
    assert refused.value.meaning.exit == 2


async def test_a_root_key_that_does_not_open_everything_yet_is_not_taken(
    both: Settings, after: Settings
) -> None:
    async with started(*both) as running:
        admin = await running.as_("tl_admin")
        await with_secret(admin, await running.as_("tl_gateway"))
        holder = await asyncpg.connect(running.admin_url)
        try:
            async with holder.transaction():
                await holder.execute("select from credentials.tenant_keys for update")
                await rotate(admin)
                new = KeyFile(Path(after[0].root_key_file or ""))
                words = f"it holds the key {new.fingerprint}, under which 0 of 1 keys of tenants are so far"
                with pytest.raises(Problem, match=words):
                    async with replica(
                        running, root_key_file=after[0].root_key_file, root_key_next_file=None
                    ):
                        pass
        finally:
            await holder.close()
    # Stopped in the middle; whoever starts next goes on, and nothing was without its key.
    async with started(*both) as running:
        assert await opens(running)
        admin = await running.as_("tl_admin")
        await until(lambda: all_copied(running, admin), 30)
    async with started(*after) as running:
        assert await opens(running)
    # Old settings that name the new key as the next are as good as new ones.
    async with started(*both) as running:
        assert await opens(running)


async def test_a_change_of_the_root_key_survives_kill(
    both: Settings, after: Settings, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        running = Running(str(both[0].listen), both[1], both[0], stack)
        admin, gateway = await running.as_("tl_admin"), await running.as_("tl_gateway")
        async with process(both[0], tmp_path) as child:
            await with_secret(admin, gateway)
            for number in range(20):
                await make_tenant(admin, f"tenant-{number}")
            holder = await asyncpg.connect(running.admin_url)
            try:
                async with holder.transaction():
                    await holder.execute(
                        "select from credentials.tenant_keys where tenant = 'tenant-3' for update"
                    )
                    await rotate(admin)

                    async def some_are_done() -> bool:
                        return (await read(admin)).tenants_done > 0

                    await until(some_are_done, 30)
                    child.signal(signal.SIGKILL)
                    await child.wait()
            finally:
                await holder.close()
        async with process(both[0], tmp_path):
            await until(lambda: all_copied(running, admin), 30)
            key = await read(admin)
            assert (key.tenants_done, key.tenants_total) == (21, 21)
        async with process(after[0], tmp_path):
            assert (await read(admin)).fingerprint == key.staged_fingerprint
            assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()


async def test_one_previous_copy_is_kept_and_no_more(
    settings: Settings, both: Settings, after: Settings, tmp_path: Path
) -> None:
    third = str(tmp_path / "third-root-key")
    async with started(*both) as running:
        admin = await running.as_("tl_admin")
        await with_secret(admin, await running.as_("tl_gateway"))
        await rotate(admin)
        await until(lambda: all_copied(running, admin), 30)
    async with started(*changed(after, root_key_next_file=third)) as running:
        admin = await running.as_("tl_admin")
        await rotate(admin)

        async def done() -> bool:
            key = await read(admin)
            return (
                key.tenants_done == key.tenants_total
                and key.staged_fingerprint == KeyFile(Path(third)).fingerprint
            )

        await until(done, 30)
        assert await opens(running)
    async with started(*changed(settings, root_key_file=third)) as running:
        assert await opens(running)
        names = await running.sql(
            """select encode(substring(sealed from 3 for 8), 'hex') as one,
                      encode(substring(sealed_other from 3 for 8), 'hex') as other from credentials.tenant_keys"""
        )
        kept = {KeyFile(Path(path or "")).fingerprint for path in (after[0].root_key_file, third)}
        assert all({row["one"], row["other"]} == kept for row in names)


async def test_a_row_of_another_tenant_opens_under_no_root_key(
    running: Running, admin: Client, gateway: Client
) -> None:
    await with_secret(admin, gateway)
    await make_tenant(admin, "other")
    async with replica(running) as fresh:
        swap = """update credentials.tenant_keys k set sealed = o.sealed from credentials.tenant_keys o
                  where k.tenant = 'acme' and o.tenant = 'other'"""
        await running.sql(swap)
        assert not (await lease(await fresh.as_("tl_gateway"))).secret.fields


# AWS KMS


async def test_kms_keeps_a_root_key(aws: Aws) -> None:
    arn, other = await aws.new_key("alias/tieline"), await aws.new_key()
    where = place("tenant key", "acme", 1)
    async with (
        aws_kms("alias/tieline", aws.url, "root_key_kms") as by_alias,
        aws_kms(arn, aws.url, "root_key_kms") as by_arn,
        aws_kms(other, aws.url, "root_key_kms") as stranger,
    ):
        for key in (by_alias, by_arn, stranger):
            await key.prepare()
        # The same key however it is named; another one is told apart.
        assert by_alias.fingerprint == by_arn.fingerprint != stranger.fingerprint
        sealed = await by_alias.seal(b"a key", where)
        assert b"a key" not in sealed
        assert await by_arn.unseal(sealed, where) == b"a key"
        with pytest.raises(Unopenable, match="names the key"):
            await stranger.unseal(sealed, where)
        with pytest.raises(Unopenable, match="another place"):
            await by_arn.unseal(sealed, place("tenant key", "other", 1))
        for broken in (b"", sealed[:10], sealed[:-1], sealed[:-1] + bytes((sealed[-1] ^ 1,))):
            with pytest.raises(Unopenable):
                await by_arn.unseal(broken, where)


async def test_without_the_extra_it_is_said_what_to_install() -> None:
    program = """
import asyncio, sys
sys.modules["aioboto3"] = None  # as where it is not installed
from services.credentials.keys.aws_kms import aws_kms
async def main():
    async with aws_kms("alias/tieline", None, "root_key_kms"):
        pass
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode
    assert b"`root_key_kms`: AWS KMS needs the extra `aws`" in err


async def test_the_service_lives_with_its_root_key_in_kms(settings: Settings, aws: Aws) -> None:
    await aws.new_key("alias/tieline")
    kms = changed(settings, root_key_file=None, root_key_kms="alias/tieline", aws_endpoint_url=aws.url)
    async with started(*kms) as running:
        admin = await running.as_("tl_admin")
        await with_secret(admin, await running.as_("tl_gateway"))
        assert (await read(admin)).keeper == "aws-kms"
    async with started(*kms) as running:
        assert await opens(running)
        # Away: what is known goes on, what needs it says so.
        await aws.stop()
        assert await opens(running)
        with pytest.raises(Problem, match="AWS KMS cannot be reached") as refused:
            await make_tenant(await running.as_("tl_admin"), "later")
        assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE


async def test_the_service_waits_for_kms(settings: Settings, absent_aws: Aws) -> None:
    kms = changed(settings, root_key_file=None, root_key_kms="alias/tieline", aws_endpoint_url=absent_aws.url)
    starting = asyncio.create_task(_lives(kms))
    await absent_aws.start()
    assert not starting.done()
    await absent_aws.new_key("alias/tieline")
    assert await starting


async def _lives(settings: Settings) -> bool:
    async with started(*settings) as running:
        admin = await running.as_("tl_admin")
        await with_secret(admin, await running.as_("tl_gateway"))
        return await opens(running)


async def test_a_root_key_moves_from_a_file_to_kms(settings: Settings, aws: Aws) -> None:
    arn = await aws.new_key()
    both = changed(settings, root_key_next_kms=arn, aws_endpoint_url=aws.url)
    async with started(*both) as running:
        admin = await running.as_("tl_admin")
        await with_secret(admin, await running.as_("tl_gateway"))
        await rotate(admin)
        await until(lambda: all_copied(running, admin), 30)
    Path(settings[0].root_key_file or "").unlink()
    kms = changed(settings, root_key_file=None, root_key_kms=arn, aws_endpoint_url=aws.url)
    async with started(*kms) as running:
        assert await opens(running)
        assert (await read(await running.as_("tl_admin"))).keeper == "aws-kms"
