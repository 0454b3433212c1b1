"""Leases as the contract's messages."""

from __future__ import annotations

from collections.abc import Mapping

from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.leases.store import LeaseRow
from tieline.common.v1.credential_pb2 import CredentialKind
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.credentials.v1.credentials_pb2 import Purpose
from tieline.credentials.v1.leases_pb2 import AcquireLeasesResponse, Lease, LeasedSecret

Outcome = AcquireLeasesResponse.LeaseOutcome


def lease_message(row: LeaseRow) -> Lease:
    lease = Lease(
        name=row.name,
        grant=f"tenants/{row.tenant}/credentials/{row.credential}/grants/{row.grant_id}",
        holder=row.holder,
        subject=row.subject,
        purpose=Purpose.Value(f"PURPOSE_{row.purpose}"),
        state=Lease.State.Value(f"STATE_{row.state}"),
    )
    lease.version.slot, lease.version.entry, lease.version.version = row.slot, row.entry, row.version
    lease.expire_time.FromDatetime(row.expires_at)
    return lease


def refused(kind: FailureKind.ValueType, reason: str, message: str) -> Outcome:
    return Outcome(failure=Failure(kind=kind, reason=reason, message=message))


def leased_secret(
    lease: LeaseRow,
    credential: CredentialRow,
    version: VersionRow,
    fields: Mapping[str, bytes],
    previous: Mapping[int, bytes],
) -> Outcome:
    secret = LeasedSecret(
        lease=lease_message(lease),
        kind=CredentialKind.Value(f"CREDENTIAL_KIND_{credential.kind}"),
        fields=fields,
        attributes=credential.attributes,
        previous_secrets=previous.values(),
        previous_versions=previous.keys(),
    )
    if version.expires_at is not None:
        secret.expire_time.FromDatetime(version.expires_at)
    return Outcome(secret=secret)
