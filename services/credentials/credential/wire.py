"""Rows as the contract's messages."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.json_format import ParseDict

from services.credentials.credential.store import CredentialRow, GrantRow, VersionRow
from tieline.common.v1.credential_pb2 import CredentialKind
from tieline.credentials.v1.credentials_pb2 import Credential, CredentialVersion, Grant, Purpose


def credential_message(row: CredentialRow) -> Credential:
    credential = Credential(
        name=row.name,
        title=row.title,
        kind=CredentialKind.Value(f"CREDENTIAL_KIND_{row.kind}"),
        state=Credential.State.Value(f"STATE_{row.state}"),
        current_version=row.current_version,
        attributes=dict(row.attributes),
        labels=dict(row.labels),
        principal=row.provider_principal,
        etag=str(row.revision),
    )
    if row.failure is not None:
        ParseDict(dict(row.failure), credential.failure)
    if row.renewal:
        ParseDict(dict(row.renewal), credential.renewal)
    for field, at in (
        (credential.state_time, row.state_at),
        (credential.expire_time, row.expires_at),
        (credential.validate_time, row.validated_at),
        (credential.create_time, row.created_at),
        (credential.update_time, row.updated_at),
    ):
        if at is not None:
            field.FromDatetime(at)
    if row.renews_at is not None:
        credential.renewal.next_time.FromDatetime(row.renews_at)
    return credential


def version_message(row: VersionRow, current: int, now: datetime) -> CredentialVersion:
    version = CredentialVersion(
        name=f"tenants/{row.tenant}/credentials/{row.credential}/versions/{row.version}",
        version=row.version,
        state=_state(row, current, now),
        author=row.author,
        tenant_key_version=row.key_version,
    )
    for field, at in (
        (version.create_time, row.created_at),
        (version.expire_time, row.expires_at),
        (version.overlap_end_time, row.accepted_until),
    ):
        if at is not None:
            field.FromDatetime(at)
    return version


def _state(row: VersionRow, current: int, now: datetime) -> CredentialVersion.State.ValueType:
    if row.sealed_value is None:
        return CredentialVersion.STATE_DESTROYED
    if row.version == current:
        return CredentialVersion.STATE_CURRENT
    if row.accepted_until is not None and row.accepted_until > now:
        return CredentialVersion.STATE_OVERLAPPING
    return CredentialVersion.STATE_RETIRED


def grant_message(row: GrantRow) -> Grant:
    collection, _, holder = row.holder.partition("/")
    grant = Grant(
        name=row.name,
        plugin_versions=row.plugin_versions,
        slot=row.slot,
        entry=row.entry,
        purpose=Purpose.Value(f"PURPOSE_{row.purpose}"),
        fields=row.fields,
        account=row.account,
        author=row.author,
    )
    if row.subject.startswith("apps/"):
        grant.app = row.subject
    else:
        grant.connection = row.subject
    if collection == "plugins":
        grant.plugin = holder
    else:
        grant.service = holder
    if row.created_at is not None:
        grant.create_time.FromDatetime(row.created_at)
    if row.expires_at is not None:
        grant.expire_time.FromDatetime(row.expires_at)
    return grant
