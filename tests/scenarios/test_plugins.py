"""Plugins as an operator meets them: dropped in while everything runs, shown, broken, mended, upgraded, removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from foundation.process.testing import until
from tests.scenarios.suite import tieline, up
from tests.services.registry.plugins import CODE, make_plugin


class Operator:
    def __init__(self, data: Path) -> None:
        self._data = data

    async def plugin(self, *words: str, code: int = 0) -> Any:
        """What `tieline plugin` says, as JSON where it does what was asked, else as text."""
        ended, out, err = await tieline("plugin", *words, "--json", "--data", str(self._data))
        assert ended == code, (words, out, err)
        return err if code else json.loads(out)

    async def state(self, name: str) -> str:
        told = await self.plugin("show", name)
        states = [process["state"] for process in told["processes"]]
        return str(states[0]) if states else ""

    async def comes_to(self, name: str, state: str) -> Any:
        async def there() -> bool:
            return await self.state(name) == f"STATE_{state}"

        await until(there, 90)
        return (await self.plugin("show", name))["processes"][0]

    async def names(self) -> list[str]:
        return [item["name"] for item in (await self.plugin("list"))["items"]]


@pytest.mark.timeout(600)
async def test_the_life_of_a_plugin_from_the_command_line(short_dir: Path) -> None:
    plugins = short_dir / "plugins"
    make_plugin(plugins, "broken", before="sys.exit('no luck today')")
    async with up(short_dir / "data", "--http", "127.0.0.1:0", "--plugins", str(plugins)):
        operator = Operator(short_dir / "data")
        assert await operator.names() == ["plugins/broken", "plugins/github"]

        folder = make_plugin(plugins, "greeter")
        (make_plugin(plugins, "wrong") / "plugin.toml").write_text('name = "wrong"\nversion = "1"\n')
        await until(lambda: _knows(operator, "greeter"), 60)
        process = await operator.comes_to("greeter", "READY")
        assert process["plugin_version"] == "1.0.0"
        assert process["sandbox"] in {"SANDBOX_CONFINED", "SANDBOX_NONE"}
        (problem,) = (await operator.plugin("problems"))["items"]
        assert (Path(problem["file"]).parent.name, problem["line"]) == ("wrong", 2)
        shutil.rmtree(plugins / "wrong")

        restarted = (await operator.plugin("restart", "greeter"))["items"][0]
        assert restarted["name"] == process["name"]
        assert (await operator.comes_to("greeter", "READY"))["pid"] != process["pid"]

        # A version that cannot start: refused before anybody is touched, and explained.
        make_plugin(plugins, "greeter", version="1.1.0", folder="greeter-1.1", before="sys.exit('no luck')")
        await until(lambda: _has(operator, "1.1.0"), 60)
        begun = await operator.plugin("upgrade", "greeter", "--to", "1.1.0", "--observe", "1s")
        ended = await _over(operator, begun)
        assert ended["state"] == "STATE_ROLLED_BACK"
        assert "no luck" in ended["failure"]["message"]

        make_plugin(plugins, "greeter", version="1.2.0", folder="greeter-1.2", code=CODE)
        await until(lambda: _has(operator, "1.2.0"), 60)
        begun = await operator.plugin("upgrade", "greeter", "--to", "1.2.0", "--observe", "1s")
        assert (await _over(operator, begun))["state"] == "STATE_DONE"
        assert (await operator.plugin("show", "greeter"))["default_version"] == "1.2.0"

        assert "There is no version 7.0.0" in await operator.plugin(
            "upgrade", "greeter", "--to", "7.0.0", code=1
        )
        assert "There is no plugin nobody" in await operator.plugin("show", "nobody", code=1)
        assert "no process of plugin nobody" in (await operator.plugin("restart", "nobody", code=1)).lower()

        shutil.rmtree(folder)
        for more in ("greeter-1.1", "greeter-1.2"):
            shutil.rmtree(plugins / more)
        await until(lambda: _gone(operator), 60)

        await _about_a_broken_one(operator, short_dir / "data")


async def _about_a_broken_one(operator: Operator, data: Path) -> None:
    """Meanwhile another one has died as often as is borne."""
    process = await operator.comes_to("broken", "QUARANTINED")
    assert "no luck today" in process["explanation"]
    assert len(process["crashes"]) == 5
    assert process["crashes"][0]["exit_code"] == 1
    assert "no luck today" in process["crashes"][0]["output_tail"]
    ended, out, _ = await tieline("plugin", "show", "broken", "--data", str(data))
    assert ended == 0
    assert "quarantined" in out
    assert "| no luck today" in out
    ended, out, _ = await tieline("doctor", "--data", str(data))
    assert ended == 1
    assert "BAD plugin broken: in quarantine" in out
    (released,) = (await operator.plugin("release", "broken"))["items"]
    assert released["state"] == "STATE_STARTING"
    decided = await operator.plugin("status", "broken", "1.0.0", "inactive")
    assert decided["status"] == "STATUS_INACTIVE"
    await until(lambda: _idle(operator), 60)


async def _knows(operator: Operator, name: str) -> bool:
    return f"plugins/{name}" in await operator.names()


async def _gone(operator: Operator) -> bool:
    return not await _knows(operator, "greeter")


async def _has(operator: Operator, version: str) -> bool:
    told = await operator.plugin("show", "greeter")
    versions = {one["name"].rpartition("/")[2]: one for one in told["plugin_versions"]}
    return version in versions and versions[version]["installation"] == "INSTALLATION_READY"


async def _idle(operator: Operator) -> bool:
    return await operator.state("broken") == ""


async def _over(operator: Operator, begun: Any) -> Any:
    told = begun

    async def over() -> bool:
        nonlocal told
        told = await operator.plugin("rollout", "greeter", begun["name"].rpartition("/")[2])
        return told["state"] in {"STATE_DONE", "STATE_ROLLED_BACK"}

    await until(over, 120)
    return told
