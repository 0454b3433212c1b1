"""Room for calls: so many at a time, or one and nobody beside it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.registry.host.capacity import Capacity
from services.registry.host.crashes import redacted
from services.registry.host.secrets import Secrets


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=20), st.data())
async def test_never_too_many_and_never_anybody_beside_one_that_is_alone(
    size: int, wishes: list[bool], data: st.DataObject
) -> None:
    capacity = Capacity(size)
    inside: list[bool] = []

    async def call(alone: bool, turns: int) -> None:  # noqa: FBT001 - drawn
        async with capacity.all() if alone else capacity.one():
            inside.append(alone)
            try:
                for _ in range(turns):
                    assert len(inside) <= size
                    assert not any(inside) or len(inside) == 1
                    assert capacity.in_use == len(inside)
                    await asyncio.sleep(0)
            finally:
                inside.remove(alone)

    turns = st.integers(0, 4)
    tasks = [asyncio.create_task(call(alone, data.draw(turns))) for alone in wishes]
    gone = data.draw(st.sets(st.integers(0, len(tasks) - 1))) if tasks else set()
    await asyncio.sleep(0)
    for number in gone:
        tasks[number].cancel()
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert capacity.in_use == 0, "who was cancelled left its room"
    async with asyncio.timeout(30), capacity.all():
        pass


def test_what_looks_like_a_secret_is_covered() -> None:
    said = (
        "login postgres://ada:hunter2@db/x failed; Authorization: Bearer abc.def.ghi\n"
        "api_key='k-123456' token=tl_secret, cookie: a=b\n"
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n"
        "the value is s3cr3t-value here, and harmless text stays"
    )
    covered = redacted(said, Secrets(b"s3cr3t-value", b"x"))
    for secret in ("hunter2", "abc.def.ghi", "k-123456", "tl_secret", "MHcCAQEE", "s3cr3t-value"):
        assert secret not in covered
    assert "harmless text stays" in covered
    assert "db/x" in covered
