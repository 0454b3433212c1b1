"""What a service is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.fleet import MODULES, command_of, names_root_key


@pytest.mark.parametrize("service", MODULES)
def test_a_service_sees_no_others_secrets(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    for name in MODULES:
        monkeypatch.setenv(f"TIELINE_{name.upper()}_LOG_LEVEL", name)
    for name in ("TIELINE_DATABASE_URL", "TIELINE_NATS_URL", "TIELINE_TOKEN", "SOMEBODYS_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    command = command_of(service, [Path("/a.toml")])
    ours = {name: text for name, text in command.env.items() if name.startswith("TIELINE_")}
    assert ours == {f"TIELINE_{service.upper()}_LOG_LEVEL": service}
    assert "hunter2" not in command.env.values()
    assert "PATH" in command.env


def test_only_the_vault_is_told_who_we_are_at_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    told = {name for name in MODULES if "AWS_REGION" in command_of(name, []).env}
    assert told == {"credentials"}


def test_a_user_may_say_where_the_root_key_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[up]\n")
    assert not names_root_key([file])
    file.write_text("[credentials]\nroot_key_kms = 'alias/tieline'\n")
    assert names_root_key([file])
    monkeypatch.setenv("TIELINE_CREDENTIALS_ROOT_KEY_FILE", "/somewhere")
    assert names_root_key([])
