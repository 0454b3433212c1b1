"""Each part of the path killed with SIGKILL under load: what got a yes is stored once and heard."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from foundation.process.testing import until as eventually
from tests.scenarios.path import Receiver, push, receiving
from tests.scenarios.suite import Standing, tieline, up

CONNECTIONS = 16
PARTS = {
    "plugin": "plugin",  # the registry's child
    "mapper": "services.mapper",
    "registry": "services.registry",
    "gateway": "gateway",
    "postgres": "bin/postgres",
    "nats": "nats-server",
}
VAULT = "services.credentials"


def find(suite: Standing, part: str) -> psutil.Process | None:
    """The process, if it is there at this moment."""
    word = PARTS.get(part, part)
    for process in suite.descendants():
        try:
            if part == "plugin":
                found = process.cmdline()[-2:] == ["-m", word]
            else:
                found = any(word in argument for argument in process.cmdline())
            if found:
                return process
        except psutil.NoSuchProcess:
            continue
    return None


async def send_all(receiver: Receiver, numbers: range) -> None:
    """Each delivery over one of so many connections, again and again until somebody says yes."""
    waiting = iter(numbers)

    async def one_connection() -> None:
        for number in waiting:
            while not await _sent(receiver, number):
                await asyncio.sleep(0.05)

    await asyncio.gather(*(one_connection() for _ in range(CONNECTIONS)))


async def _sent(receiver: Receiver, number: int) -> bool:
    try:
        answer = await receiver.send(push(number), f"d-{number}")
    except httpx.TransportError:
        return False
    assert answer.status_code in (200, 202, 503), answer.text
    return answer.status_code != 503


async def kill_each(suite: Standing, parts: list[str], rounds: int) -> int:
    """One after another, each as soon as it is there again."""
    kills = 0
    for _ in range(rounds):
        for part in parts:
            async with asyncio.timeout(60):
                while (process := find(suite, part)) is None:
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            kills += 1
            await asyncio.sleep(0.3)
    return kills


async def accounted(receiver: Receiver, count: int) -> set[str]:
    events = await receiver.stored(count, within=90)
    ids = {event.id for event in events}
    assert len(events) == len(ids) == count
    return ids


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
async def test_what_got_a_yes_survives_the_death_of(mortal: Standing, tenant: str, part: str) -> None:
    async with receiving(mortal, tenant) as acme, await acme.subscribe("ops") as ops:
        sending = asyncio.create_task(send_all(acme, range(200)))
        await acme.stored(20)
        await kill_each(mortal, [part], 1)
        await asyncio.wait_for(sending, 120)
        await ops.hear(await accounted(acme, 200), within=90)


@pytest.mark.timeout(600)
async def test_without_the_vault_the_path_goes_on_and_status_says_in_a_line_what_does_not(
    mortal: Standing, tenant: str
) -> None:
    async def limits() -> list[str]:
        _, out, _ = await tieline("status", "--data", str(mortal.data))
        return [line for line in out.splitlines() if line.startswith(("limited: ", "connections: not known"))]

    async with receiving(mortal, tenant) as acme:
        await send_all(acme, range(10))
        await acme.stored(10)
        vault = find(mortal, VAULT)
        assert vault is not None
        vault.send_signal(signal.SIGSTOP)
        try:
            await send_all(acme, range(30))
            await acme.stored(30, within=90)
            limited, unknown = await limits()
            assert limited.startswith("limited: credentials: ")
            assert "nothing can be changed" in limited
            assert unknown == "connections: not known: credentials cannot be asked"
        finally:
            vault.send_signal(signal.SIGCONT)

        async def works_again() -> bool:
            return not await limits()

        await eventually(works_again, 90)


@pytest.mark.timeout(600)
async def test_what_got_a_yes_survives_the_death_of_everything(short_dir: Path) -> None:
    async with up(short_dir / "data") as suite, receiving(suite) as acme:
        await send_all(acme, range(100))
        await suite.end(signal.SIGKILL)
    async with up(short_dir / "data") as suite, receiving(suite) as acme:
        await accounted(acme, 100)
        await send_all(acme, range(50, 150))
        await accounted(acme, 150)


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_a_thousand_deliveries_under_fire(
    short_dir: Path, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    """Distinct signed pushes over 16 connections while plugin, worker and registry are killed in turn."""
    count, rounds = prove(200, 1000), prove(1, 5)
    async with up(short_dir / "data") as suite, receiving(suite) as acme:
        async with await acme.subscribe("ops") as ops, await acme.subscribe("audit") as audit:
            sending = asyncio.create_task(send_all(acme, range(count)))
            killing = asyncio.create_task(kill_each(suite, ["plugin", "mapper", "registry"], rounds))
            kills = await killing
            await asyncio.wait_for(sending, 600)
            ids = await accounted(acme, count)
            for listener in (ops, audit):
                await listener.hear(ids, within=120)
        repeats = len(ops.heard) - len(ids)
    found(
        f"{count} deliveries, {kills} kills: {len(ids)} events stored, each heard by 2, {repeats} heard again"
    )
