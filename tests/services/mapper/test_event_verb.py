"""`tieline event` against a mapper."""

import asyncio
import json
import sys
from pathlib import Path

from tests.services.mapper.kit import GATEWAY, Installation, Mapper, deliveries, settled


def describe(installation: Installation, mapper: Mapper) -> Path:
    token = installation.directory / "admin-token"
    token.write_text("admin-token")
    endpoints = {
        "gateway": "http://127.0.0.1:9",
        "credentials": str(installation.address),
        "registry": str(installation.address),
        "mapper": str(mapper.settings.listen),
        "admin_token_file": str(token),
    }
    run = installation.directory / "run"
    run.mkdir()
    (run / "endpoints.json").write_text(json.dumps(endpoints))
    return installation.directory


async def begin(data: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli", "event", "--data", str(data), "--tenant", "acme", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def said(process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_list_and_show(installation: Installation, mapper: Mapper) -> None:
    data = describe(installation, mapper)
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(deliveries(range(3)))
    await settled(installation)
    listed = json.loads(await said(await begin(data, "--json", "list", "--limit", "2")))
    assert len(listed["items"]) == 2
    rest = await said(await begin(data, "list", "--page-token", listed["next_page_token"], "--limit", "2"))
    assert rest.count("github.push") == 1
    shown = await said(await begin(data, "show", listed["items"][0]["id"]))
    assert f"id            {listed['items'][0]['id']}" in shown
    assert "tenants/acme/connections/github" in shown
    none = await begin(data, "list", "--severity", "critical")
    assert await said(none) == ""


async def test_tail_shows_what_happens_from_now_on(installation: Installation, mapper: Mapper) -> None:
    process = await begin(describe(installation, mapper), "tail", "--limit", "2", "--type", "github.*")
    saying = asyncio.create_task(said(process))
    number = 0
    async with mapper.as_(GATEWAY) as gateway:
        while not saying.done():  # it begins a moment after it was asked for
            await gateway.accept(deliveries([number]))
            number += 1
            await asyncio.sleep(0.1)
    assert (await saying).count("github.push") == 2
