"""Queries of the audit. Each takes the transaction it runs in; none begins or ends one."""

from __future__ import annotations

# ruff: noqa: S608  only the names of our own columns are put together
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.audit.chain import Head, Record
from services.credentials.audit.entry import Actor, Entry, Outcome
from services.credentials.rows import columns, every, one, run


@dataclass(frozen=True, slots=True)
class HeadRow:
    """The end of a chain as it is stored, which need not be as we wrote it."""

    sequence: int
    hash: bytes
    mac: bytes

    @property
    def head(self) -> Head:
        return Head(self.sequence, self.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRow:
    """A record as it is stored, which need not be as we wrote it."""

    tenant: str
    sequence: int
    time: datetime
    principal: str
    on_behalf_of: str
    action: str
    resource: str
    fields: list[str]
    details: Any
    outcome: int
    intent: int
    previous_hash: bytes
    hash: bytes
    mac: bytes

    def record(self) -> Record:
        """Raises ValueError where it holds what we never write."""
        if not isinstance(self.details, dict):
            raise ValueError("its details are no mapping")
        entry = Entry(
            tenant=self.tenant,
            action=self.action,
            resource=self.resource,
            outcome=Outcome(self.outcome),
            fields=self.fields,
            details=self.details,
            intent=self.intent,
            actor=Actor(self.principal, self.on_behalf_of),
        )
        return Record(self.sequence, self.time, entry, self.previous_hash, self.hash, self.mac)


# writing


async def lock_head(work: AsyncConnection, tenant: str, mac_of_none: bytes) -> HeadRow:
    """The end of the chain, held until this transaction ends: whoever appends next waits."""
    found = await _locked_head(work, tenant)
    if found is None:
        await run(
            work,
            """insert into audit_heads (tenant, sequence, hash, mac) values (:tenant, 0, :hash, :mac)
               on conflict do nothing""",
            tenant=tenant,
            hash=Head().hash,
            mac=mac_of_none,
        )
        found = await _locked_head(work, tenant)
    assert found is not None, "nobody deletes the end of a chain"  # noqa: S101
    return found


async def _locked_head(work: AsyncConnection, tenant: str) -> HeadRow | None:
    return await one(
        work,
        HeadRow,
        "select sequence, hash, mac from audit_heads where tenant = :tenant for update",
        tenant=tenant,
    )


async def append(work: AsyncConnection, records: Sequence[Record], mac_of_last: bytes) -> None:
    """Records of one chain, in their order; the head moves with them."""
    rows = [
        {
            "tenant": record.entry.tenant,
            "sequence": record.sequence,
            "time": record.time,
            "principal": record.entry.actor.principal,
            "on_behalf_of": record.entry.actor.on_behalf_of,
            "action": record.entry.action,
            "resource": record.entry.resource,
            "fields": list(record.entry.fields),
            "details": json.dumps(dict(record.entry.details)),
            "outcome": int(record.entry.outcome),
            "intent": record.entry.intent,
            "previous_hash": record.previous_hash,
            "hash": record.hash,
            "mac": record.mac,
        }
        for record in records
    ]
    await work.execute(
        text("""
            insert into audit_records (tenant, sequence, time, principal, on_behalf_of, action, resource, fields,
                details, outcome, intent, previous_hash, hash, mac)
            values (:tenant, :sequence, :time, :principal, :on_behalf_of, :action, :resource, :fields,
                cast(:details as json), :outcome, :intent, :previous_hash, :hash, :mac)
        """),
        rows,
    )
    last = records[-1]
    await run(
        work,
        "update audit_heads set sequence = :sequence, hash = :hash, mac = :mac where tenant = :tenant",
        tenant=last.entry.tenant,
        sequence=last.sequence,
        hash=last.hash,
        mac=mac_of_last,
    )


# reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records; what is empty is not asked for."""

    tenant: str
    since: datetime | None = None
    until: datetime | None = None
    principal: str = ""
    action: str = ""
    """A trailing `.*` covers all below."""
    resource: str = ""
    """And all below it."""


async def newest_first(
    work: AsyncConnection, wanted: Wanted, before: int | None, limit: int
) -> list[RecordRow]:
    family = wanted.action.removesuffix("*") if wanted.action.endswith(".*") else ""
    return await every(
        work,
        RecordRow,
        f"""select {columns(RecordRow)} from audit_records
            where tenant = :tenant and sequence < coalesce(cast(:before as bigint), 9223372036854775807)
              and (cast(:since as timestamptz) is null or time >= :since)
              and (cast(:until as timestamptz) is null or time < :until)
              and (:principal = '' or principal = :principal or on_behalf_of = :principal)
              and (:action = '' or action = :action or (:family <> '' and starts_with(action, :family)))
              and (:resource = '' or resource = :resource or starts_with(resource, :resource || '/'))
            order by sequence desc limit :limit""",
        **(asdict(wanted) | {"before": before, "family": family, "limit": limit}),
    )


async def in_order(work: AsyncConnection, tenant: str, after: int, up_to: int, limit: int) -> list[RecordRow]:
    return await every(
        work,
        RecordRow,
        f"""select {columns(RecordRow)} from audit_records
            where tenant = :tenant and sequence > :after and sequence <= :up_to
            order by sequence limit :limit""",
        tenant=tenant,
        after=after,
        up_to=up_to,
        limit=limit,
    )


@dataclass(frozen=True, slots=True)
class _Extent:
    newest: int
    sequence: int | None
    hash: bytes | None
    mac: bytes | None


async def extent(work: AsyncConnection, tenant: str) -> tuple[int, HeadRow | None]:
    """The newest sequence that is stored and the end of the chain, both as of the same moment."""
    found = await one(
        work,
        _Extent,
        """select (select coalesce(max(sequence), 0) from audit_records where tenant = :tenant) as newest,
                  h.sequence, h.hash, h.mac
           from (select 1) as always left join audit_heads h on h.tenant = :tenant""",
        tenant=tenant,
    )
    assert found is not None, "a row of nulls is a row"  # noqa: S101
    if found.sequence is None or found.hash is None or found.mac is None:
        return found.newest, None
    return found.newest, HeadRow(found.sequence, found.hash, found.mac)


# requests of other services


@dataclass(frozen=True, slots=True)
class RequestRow:
    content: bytes
    sequences: list[int]


async def begin_request(
    work: AsyncConnection, caller: str, request_id: str, content: bytes
) -> RequestRow | None:
    """None where it is new; what was answered where it is not. Whoever sends it twice at once waits here."""
    new = await run(
        work,
        """insert into audit_requests (caller, request_id, content, sequences)
           values (:caller, :request_id, :content, '{}')
           on conflict (caller, request_id) do update
           set content = excluded.content, sequences = '{}', created_at = now()
           where audit_requests.created_at < now() - interval '1 day'""",
        caller=caller,
        request_id=request_id,
        content=content,
    )
    if new:
        return None
    return await one(
        work,
        RequestRow,
        "select content, sequences from audit_requests where caller = :caller and request_id = :request_id",
        caller=caller,
        request_id=request_id,
    )


async def answer_request(
    work: AsyncConnection, caller: str, request_id: str, sequences: Sequence[int]
) -> None:
    await run(
        work,
        "update audit_requests set sequences = :sequences where caller = :caller and request_id = :request_id",
        caller=caller,
        request_id=request_id,
        sequences=list(sequences),
    )


async def forget_requests(work: AsyncConnection) -> int:
    """For a worker."""
    return await run(work, "delete from audit_requests where created_at < now() - interval '1 day'")
