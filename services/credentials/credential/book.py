"""What happens to credentials: each change in one transaction, with its record and all that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.credential import kinds, renewing, states
from services.credentials.credential import store as queries
from services.credentials.credential.checks import Field
from services.credentials.credential.kinds import Accepted, Rules
from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.identities.standing import require_active
from services.credentials.keys.vault import Holding, Vault
from services.credentials.leases import store as leases
from services.credentials.renewal.port import Renewals, Validation
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED, Failure
from tieline.credentials.v1.credentials_pb2 import Credential
from tieline.credentials.v1.secrets_pb2 import SecretValue

BY_THE_CLOCK = "rotation"
"""The author of a version that nobody asked for at that moment."""


@dataclass(frozen=True, slots=True)
class Ref:
    """One credential, by the parts of its name."""

    tenant: str
    id: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/credentials/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a request is to be carried out."""

    author: str
    request_id: str = ""
    validate_only: bool = False


class Book:
    def __init__(
        self,
        store: Store,
        vault: Vault,
        journal: Journal,
        renewals: Renewals,
        clock: Clock,
        *,
        allow_http: bool,
    ) -> None:
        self._store = store
        self._vault = vault
        self._journal = journal
        self._renewals = renewals
        self._clock = clock
        self._allow_http = allow_http

    async def create(self, ref: Ref, given: Credential, value: SecretValue, wish: Wish) -> CredentialRow:
        now, accepted = self._clock.now(), self._accept(value)
        renewal = renewing.accepted(given.renewal if given.HasField("renewal") else None, accepted.kind)
        row = CredentialRow(
            tenant=ref.tenant,
            id=ref.id,
            title=_title(given.title) or ref.id,
            kind=accepted.kind,
            attributes=accepted.attributes,
            labels=_labels(given.labels),
            request_id=wish.request_id,
            expires_at=accepted.expires_at,
            renewal=renewal,
            state_at=now,
            created_at=now,
            updated_at=now,
        )
        row = replace(row, renews_at=renewing.next_time(row.kind, renewing.of(row), now, row.expires_at))
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            await require_active(work, ref.tenant)
            there = await queries.credential(work, ref.tenant, ref.id)
            if there is None and wish.validate_only:
                return row
            if there is None and await queries.add_credential(work, row):
                await self._add_version(work, row, accepted, wish)
                await self._record(work, ref, "credential.create", {"kind": row.kind, "version": "1"})
            stored = await queries.credential(work, ref.tenant, ref.id)
        if stored is None or (there is not None and not _same_request(there, wish)):
            raise Problem(Code.ALREADY_EXISTS, what=str(ref))
        return stored

    async def add_version(
        self, ref: Ref, value: SecretValue, overlap: timedelta, wish: Wish
    ) -> CredentialRow:
        """The value becomes the current version; the one before is accepted for `overlap` beside it."""
        accepted = self._accept(value)
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await self._changeable(work, ref)
            if accepted.kind != row.kind:
                why = f"it is of kind {accepted.kind.lower()}, and the credential of kind {row.kind.lower()}"
                raise Field("value").wrong(why)
            if wish.request_id and await queries.version_of_request(
                work, ref.tenant, ref.id, wish.request_id
            ):
                return row
            if wish.validate_only:
                return replace(row, expires_at=accepted.expires_at, attributes=accepted.attributes)
            return await self._replace(work, row, accepted, overlap, wish)

    async def rotate(self, ref: Ref, current_version: int, author: str) -> CredentialRow:
        """A new version that needs no person. Somebody did it already: the credential as it is."""
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await self._changeable(work, ref)
            if current_version not in (0, row.current_version):
                return row
            if row.kind == "WEBHOOK_SECRET":
                value = SecretValue()
                value.webhook_secret.SetInParent()  # empty: the vault makes one
                overlap = renewing.overlap_of(renewing.of(row))
                return await self._replace(work, row, self._accept(value), overlap, Wish(author=author))
        if not _renews(row):
            raise Problem(Code.ROTATION_BY_PERSON, credential=str(ref), kind=row.kind.lower())
        await self._renewals.renew_now(row)
        return await self.read(ref)

    async def update(self, ref: Ref, given: Credential, paths: list[str]) -> CredentialRow:
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await self._found(work, ref, locked=True)
            if given.etag != str(row.revision):
                raise Problem(Code.CONFLICT, why=f"{ref} is not as it was read")
            changes: dict[str, object] = {}
            for path in paths:
                if path == "title":
                    changes["title"] = _title(given.title) or ref.id
                elif path == "labels":
                    changes["labels"] = _labels(given.labels)
                elif path == "renewal":
                    wanted = given.renewal if given.HasField("renewal") else None
                    changes["renewal"] = renewing.accepted(wanted, row.kind)
                else:
                    why = f"{path[:100]!r} cannot be changed; title, labels and renewal can"
                    raise Field("update_mask").wrong(why)
            updated = replace(row, **changes)  # type: ignore[arg-type]  # each is checked above
            if "renewal" in changes:
                renews = renewing.next_time(row.kind, renewing.of(updated), self._clock.now(), row.expires_at)
                updated = replace(updated, renews_at=renews)
            await queries.update_credential(work, updated)
            await self._record(work, ref, "credential.update", {}, *sorted(changes))
            return await self._found(work, ref)

    async def revoke(self, ref: Ref, version: int, reason: str) -> CredentialRow:
        """Nobody gets it any more, and nobody can: its data keys are destroyed."""
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await self._found(work, ref, locked=True)
            if version == row.current_version:
                why = "it is the one in use; give it a new version first, or revoke all of it"
                raise Problem(
                    Code.STATE_REFUSES, what=f"version {version} of {ref}", wanted="revoked", why=why
                )
            if version and await queries.version(work, ref.tenant, ref.id, version) is None:
                raise Problem(Code.NOT_FOUND, what=f"version {version} of {ref}")
            await queries.destroy_versions(work, ref.tenant, ref.id, version or None)
            await leases.revoke_of_credential(work, ref.tenant, ref.id, version or None)
            if not version:
                row = await states.enter(work, row, "REVOKED", now=self._clock.now())
            details = {"version": str(version or "all"), "reason": reason}
            await self._record(work, ref, "credential.revoke", details)
            return await self._found(work, ref)

    async def delete(self, ref: Ref, etag: str, *, force: bool) -> None:
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await queries.credential(work, ref.tenant, ref.id, locked=True)
            if row is None:
                return
            if etag and etag != str(row.revision):
                raise Problem(Code.CONFLICT, why=f"{ref} is not as it was read")
            users = await queries.connections_of(work, ref.tenant, ref.id)
            if users and not force:
                why = f"{', '.join(users[:10])} use{'s' if len(users) == 1 else ''} it"
                raise Problem(Code.STATE_REFUSES, what=str(ref), wanted="deleted", why=why)
            await leases.revoke_of_credential(work, ref.tenant, ref.id)
            await queries.delete_credential(work, ref.tenant, ref.id)
            await queries.note_change(work)
            await self._record(work, ref, "credential.delete", {"connections": str(len(users))})

    async def read(self, ref: Ref) -> CredentialRow:
        async with self._store.unit_of_work(tenants=[ref.tenant], read_only=True) as work:
            return await self._found(work, ref)

    async def validate(self, ref: Ref) -> tuple[CredentialRow, Validation]:
        """Ask the provider, and store what it says."""
        row = await self.read(ref)
        if row.state in ("REVOKED", "EXPIRED"):
            why = f"it is {row.state.lower()}"
            raise Problem(Code.STATE_REFUSES, what=str(ref), wanted="tried", why=why)
        try:
            found = await self._renewals.validate(row)
        except Problem as problem:
            if problem.code is not Code.CREDENTIAL_UNUSABLE:
                raise
            failure = Failure(kind=FAILURE_KIND_AUTH_FAILED, reason="REFUSED", message=problem.sentence)
            await self._settle(ref, row.current_version, "REFUSED", failure)
            raise
        if found is None:
            why = f"a {row.kind.lower()} can only be tried by a plugin, when it next uses it"
            raise Problem(Code.STATE_REFUSES, what=str(ref), wanted="tried by the vault", why=why)
        return await self._settle(ref, row.current_version, "VALID", None, found.principal), found

    async def _settle(
        self, ref: Ref, version: int, state: str, failure: Failure | None, principal: str = ""
    ) -> CredentialRow:
        """What was found out about a version is true of the credential only while that version is in use."""
        now = self._clock.now()
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await self._found(work, ref, locked=True)
            if row.current_version == version and row.state != "REVOKED":
                if state == "VALID":
                    await queries.note_validation(work, row, principal, now)
                if not (state == "VALID" and row.state == "EXPIRING"):
                    await states.enter(work, row, state, failure, now=now)
                await self._record(work, ref, "credential.validate", {"state": state})
            return await self._found(work, ref)

    # within a transaction

    def _accept(self, value: SecretValue) -> Accepted:
        return kinds.accept(value, Rules(self._clock.now(), self._allow_http))

    async def _found(self, work: AsyncConnection, ref: Ref, *, locked: bool = False) -> CredentialRow:
        row = await queries.credential(work, ref.tenant, ref.id, locked=locked)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=str(ref))
        return row

    async def _changeable(self, work: AsyncConnection, ref: Ref) -> CredentialRow:
        """It may get something new. What takes it away does not ask: that goes for a suspended tenant too."""
        await require_active(work, ref.tenant)
        row = await self._found(work, ref, locked=True)
        if row.state == "REVOKED":
            why = "it was revoked, which is for good; create another one"
            raise Problem(Code.STATE_REFUSES, what=str(ref), wanted="given a new version", why=why)
        return row

    async def _replace(
        self, work: AsyncConnection, row: CredentialRow, accepted: Accepted, overlap: timedelta, wish: Wish
    ) -> CredentialRow:
        now, ref = self._clock.now(), Ref(row.tenant, row.id)
        number = await queries.next_version(work, row.tenant, row.id)
        renewed = replace(
            row,
            current_version=number,
            expires_at=accepted.expires_at,
            attributes=accepted.attributes,
            renews_at=renewing.next_time(row.kind, renewing.of(row), now, accepted.expires_at),
        )
        await queries.put_version_in_use(work, renewed, now + overlap)
        await self._add_version(work, renewed, accepted, wish)
        await leases.outdate(work, row.tenant, row.id, number)
        entered = await states.enter(work, renewed, "UNCHECKED", now=now)
        if entered.state == row.state:
            await queries.note_change(work)
        await self._record(work, ref, "credential.add_version", {"version": str(number)})
        return await self._found(work, ref)

    async def _add_version(
        self, work: AsyncConnection, row: CredentialRow, accepted: Accepted, wish: Wish
    ) -> None:
        what = Holding(row.tenant, row.id, row.current_version)
        sealed, key_version = await self._vault.seal(work, what, accepted.plain)
        version = VersionRow(
            tenant=row.tenant,
            credential=row.id,
            version=row.current_version,
            key_version=key_version,
            author=wish.author,
            wrapped_key=sealed.wrapped_key,
            sealed=sealed.value,
            expires_at=accepted.expires_at,
            request_id=wish.request_id,
        )
        await queries.add_version(work, version)

    async def _record(
        self, work: AsyncConnection, ref: Ref, action: str, details: Mapping[str, str], *fields: str
    ) -> None:
        entry = Entry(tenant=ref.tenant, action=action, resource=str(ref), details=details, fields=fields)
        await self._journal.append(work, entry)


def _renews(row: CredentialRow) -> bool:
    return row.kind == "OAUTH2_AUTHORIZATION_CODE" or kinds.makes_sessions(row.kind, row.attributes)


def _same_request(row: CredentialRow, wish: Wish) -> bool:
    return bool(wish.request_id) and row.request_id == wish.request_id


def _title(given: str) -> str:
    title = Field("credential.title")
    title.plain(given)
    title.one_line(given)
    if len(given) > 256:
        raise title.wrong("it has more than 256 characters")
    return given


def _labels(given: Mapping[str, str]) -> dict[str, str]:
    labels = Field("credential.labels")
    if len(given) > 32:
        raise labels.wrong("there are more than 32")
    for name, value in given.items():
        labels.like(name, r"[a-z][a-z0-9._/-]{0,62}", f"a label's name: {name[:70]!r}")
        if len(value) > 256 or "\0" in value:
            raise labels.wrong(f"the value of {name!r} has more than 256 characters, or a NUL byte")
    return dict(given)
