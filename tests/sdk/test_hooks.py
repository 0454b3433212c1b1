"""What a plugin may do besides transforming: translate old settings, and ask its provider about a credential."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tieline.common.v1.failure_pb2 import (
    FAILURE_KIND_AUTH_FAILED,
    FAILURE_KIND_UNSUPPORTED,
    CredentialVersion,
)
from tieline.plugin.v1 import instance_pb2
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.sdk import Credential, Failure, FailureKind, Input, Instance, Probe, Skip
from tieline.sdk._convert.service import Service


class Plain:
    def transform(self, instance: Instance, _: Input) -> Skip:
        return Skip(str(instance.settings))


class Able(Plain):
    def migrate(self, settings: Mapping[str, Any], from_version: str) -> Mapping[str, Any]:
        if "lost" in settings:
            raise Failure(FailureKind.INVALID_CONFIG, "LOST", "lost cannot be translated")
        return {"new": settings.get("old"), "was": from_version}

    async def probe(self, _: Instance, credential: Credential) -> Probe:
        if credential.fields["token"] == b"bad":
            raise Failure(FailureKind.AUTH_FAILED, "BAD", "401")
        return Probe(principal="robot", account_keys=["7"], missing_scopes=["write"])


def service(plugin: Any, version: str = "2.0.0") -> Service:
    return Service(plugin, Manifest(name="x", version=version), b"", lambda _: None)


def asked(settings: Any, version: str, **more: Any) -> instance_pb2.InitializeRequest:
    return instance_pb2.InitializeRequest(
        instance_id="i",
        config_revision=1,
        settings=json.dumps(settings).encode(),
        settings_version=version,
        **more,
    )


@pytest.mark.parametrize("look", [True, False])
async def test_older_settings_are_translated_and_others_are_not(look: bool) -> None:  # noqa: FBT001
    able = service(Able())
    told = await able.initialize(asked({"old": 1}, "1.9.0", validate_only=look))
    assert json.loads(told.migrated_settings) == {"new": 1, "was": "1.9.0"}
    for version in ("2.0.0", "2.1.0", "10.0.0", ""):
        same = await able.initialize(asked({"old": 1}, version, validate_only=look))
        assert not same.migrated_settings
    assert not (await service(Plain()).initialize(asked({"old": 1}, "1.0.0"))).migrated_settings
    with pytest.raises(Failure, match="cannot be translated"):
        await able.initialize(asked({"lost": 1}, "1.0.0", validate_only=look))


async def probed(plugin: Any, token: bytes) -> instance_pb2.AuthenticateResponse.Probe:
    playing = service(plugin)
    await playing.initialize(asked({}, "2.0.0"))
    material = instance_pb2.CredentialMaterial(version=CredentialVersion(slot="api", version=1))
    material.fields["token"] = token
    request = instance_pb2.AuthenticateRequest(instance_id="i", credential=material, probe=True)
    return (await playing.authenticate(request)).probe


async def test_a_probe_says_what_the_provider_said() -> None:
    good = await probed(Able(), b"good")
    assert (good.valid, good.principal, list(good.account_keys), list(good.missing_scopes)) == (
        True,
        "robot",
        ["7"],
        ["write"],
    )
    bad = await probed(Able(), b"bad")
    assert (bad.valid, bad.failure.kind) == (False, FAILURE_KIND_AUTH_FAILED)
    unasked = await probed(Plain(), b"good")
    assert (unasked.valid, unasked.failure.kind) == (False, FAILURE_KIND_UNSUPPORTED)
