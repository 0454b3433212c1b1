"""What this process holds for whom: a cache that any restart may take, and the host fills again."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from tieline.common.v1 import failure_pb2
from tieline.plugin.v1 import instance_pb2
from tieline.sdk.core import Credential, Failure, FailureKind, Instance

_Slot = tuple[str, str]


class Instances:
    def __init__(self) -> None:
        self._held: dict[str, Instance] = {}

    def put(self, instance: Instance) -> None:
        """Hold these settings from now on; credentials stay, because they are handed over by themselves."""
        before = self._held.get(instance.id)
        if before is not None:
            instance = replace(instance, credentials=before.credentials)
        self._held[instance.id] = instance

    def get(self, context: instance_pb2.InstanceContext) -> Instance:
        """Exactly what the call relies on, or NOT_PREPARED."""
        instance = self._get(context.instance_id)
        if instance.revision != context.config_revision:
            raise _not_prepared("REVISION_MISMATCH", f"revision {instance.revision} is held")
        for wanted in context.credentials:
            held = instance.credentials.get(_slot(wanted))
            if held is None or held.version < wanted.version:
                raise _not_prepared("CREDENTIAL_MISSING", f"the credential of slot {wanted.slot}")
        return instance

    def forget(self, instance_id: str) -> None:
        self._held.pop(instance_id, None)

    def authenticate(self, request: instance_pb2.AuthenticateRequest) -> instance_pb2.AuthenticateResponse:
        instance = self._get(request.instance_id)
        if request.HasField("withdrawn"):
            return self._withdraw(instance, request.withdrawn)
        return self._accept(instance, request.credential)

    def held(self, request: instance_pb2.AuthenticateRequest) -> tuple[Instance, Credential]:
        """The instance of an answered request, and what it holds in that place now."""
        instance = self._get(request.instance_id)
        return instance, instance.credentials[_slot(request.credential.version)]

    def _accept(
        self, instance: Instance, given: instance_pb2.CredentialMaterial
    ) -> instance_pb2.AuthenticateResponse:
        held = instance.credentials.get(_slot(given.version))
        if held is not None and held.version > given.version.version:
            return instance_pb2.AuthenticateResponse(held_version=held.version, stale=True)
        credential = Credential(
            slot=given.version.slot,
            entry=given.version.entry,
            version=given.version.version,
            fields=MappingProxyType(dict(given.fields)),
            attributes=MappingProxyType(dict(given.attributes)),
        )
        self._change(instance, {**instance.credentials, _slot(given.version): credential})
        return instance_pb2.AuthenticateResponse(held_version=credential.version)

    def _withdraw(
        self, instance: Instance, gone: failure_pb2.CredentialVersion
    ) -> instance_pb2.AuthenticateResponse:
        held = instance.credentials.get(_slot(gone))
        if held is None:
            return instance_pb2.AuthenticateResponse()
        if held.version > gone.version:
            return instance_pb2.AuthenticateResponse(held_version=held.version, stale=True)
        self._change(
            instance, {slot: kept for slot, kept in instance.credentials.items() if slot != _slot(gone)}
        )
        return instance_pb2.AuthenticateResponse()

    def _change(self, instance: Instance, credentials: dict[_Slot, Credential]) -> None:
        self._held[instance.id] = replace(instance, credentials=MappingProxyType(credentials))

    def _get(self, instance_id: str) -> Instance:
        instance = self._held.get(instance_id)
        if instance is None:
            raise _not_prepared("INSTANCE_NOT_INITIALIZED", "this instance is not held")
        return instance


def _slot(version: failure_pb2.CredentialVersion) -> _Slot:
    return version.slot, version.entry


def _not_prepared(reason: str, message: str) -> Failure:
    return Failure(FailureKind.NOT_PREPARED, reason, message)
