"""One GitHub App, one secret, two tenants: each installation's deliveries reach their own tenant, and nothing else does."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import httpx

from foundation.identity.session import Session
from foundation.process.testing import until
from foundation.rpc import connect
from tests.scenarios.path import SECRET, Receiver, push
from tests.scenarios.suite import Standing
from tests.scenarios.test_connection_verbs import Desk


async def test_two_installations_of_one_app_reach_two_tenants(
    shared: Standing, tenant: str, short_dir: Path
) -> None:
    desks = [Desk(shared, one) for one in (tenant, f"{tenant}-1", f"{tenant}-2")]
    owner, *others = desks
    for desk, name in zip(desks, (tenant, f"{tenant}-1", f"{tenant}-2"), strict=True):
        await desk.ask("tenant", "create", name)
    (short_dir / "secret").write_text(SECRET)
    await owner.ask(
        "credential", "put", "app-hook", "--kind", "webhook_secret", "--field", f"secret={short_dir}/secret"
    )
    made = await owner.ask(
        *("app", "create", tenant, "--plugin", "github", "--owner", tenant),
        *("--credential", "webhook=app-hook", "--unmatched", "discard"),
    )
    changed = await owner.ask("app", "update", tenant, "--title", "Ours", "--unmatched", "dead-letter")
    assert changed["webhook_urls"] == made["webhook_urls"]
    assert changed["name"] in {one["name"] for one in (await owner.ask("app", "list"))["items"]}
    for number, desk in enumerate(others, 1):
        await desk.ask(
            *("connection", "create", "github", "--plugin", "github", "--app", tenant),
            *("--account-key", f"10{number}", "--account-key", "300"),
        )
        approved = await owner.ask("app", "approve", f"{tenant}-{number}/github", f"10{number}")
        assert [one["claim"] for one in approved["account_keys"]] == ["CLAIM_APPROVED", "CLAIM_CLAIMED"]
    code, _, complaint = await owner.try_("app", "approve", f"{tenant}-2/github", "101")
    assert code == 1
    assert "-2/connections/github names" in complaint
    assert (await owner.ask("app", "show", tenant)) == changed

    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        token = Path(shared.endpoints["admin_token_file"]).read_text().strip()
        session = Session(await open_(connect(shared.endpoints["credentials"])), token)
        mapper = await open_(connect(shared.endpoints["mapper"], session.token))
        client = await open_(httpx.AsyncClient(timeout=30))
        [hook] = made["webhook_urls"].values()
        theirs, one, two = (
            Receiver(f"tenants/{name}", hook, SECRET, client, mapper)
            for name in (tenant, f"{tenant}-1", f"{tenant}-2")
        )
        probes = count()

        async def is_routed(account: int, receiver: Receiver) -> bool:
            """What comes before the gateway knows of the account is its owner's."""
            answer = await one.send(
                push(0) | {"installation": {"id": account}}, f"probe-{account}-{next(probes)}"
            )
            assert answer.status_code == 202, answer.text
            return bool(await receiver.events())

        await until(lambda: is_routed(101, one), 60)
        await until(lambda: is_routed(102, two), 60)
        answers = await asyncio.gather(
            *(
                one.send(push(n, f"r{n % 2}/x") | {"installation": {"id": 101 + n % 2}}, f"d-{n}")
                for n in range(1, 21)
            )
        )
        assert {answer.status_code for answer in answers} == {202}
        assert (await one.send(push(99) | {"installation": {"id": 300}}, "unclaimed")).status_code == 202
        forged = await one.send(push(98) | {"installation": {"id": 101}}, "forged", secret="another")
        assert forged.status_code == 401
        for receiver, mine in ((one, "r0/x"), (two, "r1/x")):
            found = await receiver.stored(11)
            about = [event for event in found if "acme/shop" not in str(event.entities)]
            assert len(about) == 10
            assert all(mine in str(event.entities) for event in about)
            assert all(event.connection == f"{receiver.name}/connections/github" for event in found)
        assert await theirs.events() == [], "what nobody has is a dead letter, and no event"

    assert (await owner.try_("app", "delete", tenant))[0] == 1, "it is used"
    for desk in others:
        await desk.ask("connection", "delete", "github")

    async def is_removed() -> bool:
        return (await owner.try_("app", "delete", tenant))[0] == 0

    await until(is_removed, 60)
    assert (await owner.try_("app", "show", tenant))[0] == 1
