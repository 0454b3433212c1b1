"""How records hold on to each other.

Each record carries the SHA-256 of itself and of the one before, and a MAC over that hash which only the holder
of the audit key can make. What was changed no longer fits its hash; who makes the hash fit breaks the link to
the next; who rewrites all that follows cannot make the MACs.

The end of a chain stands in a row of its own, with a MAC as well: who cuts records off cannot make an end that
fits. Only an end that was kept from before fits again, together with the records up to it. That is a rollback
of the whole, and shows against a checkpoint that is kept elsewhere and against nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import datetime

from services.credentials.audit.entry import Entry
from services.credentials.keys.envelope import place
from tieline.credentials.v1.audit_pb2 import AuditRecord

START = bytes(hashlib.sha256().digest_size)
"""What the first record follows."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a chain."""

    sequence: int = 0
    hash: bytes = START


@dataclass(frozen=True, slots=True)
class Record:
    """One entry in its place."""

    sequence: int
    time: datetime
    entry: Entry
    previous_hash: bytes
    hash: bytes = b""
    mac: bytes = b""

    @property
    def content(self) -> AuditRecord:
        """All of it but what is computed from it."""
        entry = self.entry
        record = AuditRecord(
            sequence=self.sequence,
            tenant=f"tenants/{entry.tenant}" if entry.tenant else "",
            principal=entry.actor.principal,
            on_behalf_of=entry.actor.on_behalf_of,
            action=entry.action,
            resource=entry.resource,
            fields=entry.fields,
            details=dict(entry.details),
            outcome=AuditRecord.Outcome.Value(f"OUTCOME_{entry.outcome.name}"),
            intent_sequence=entry.intent,
            previous_hash=self.previous_hash,
        )
        record.time.FromDatetime(self.time)
        return record


def hash_of(record: Record) -> bytes:
    return hashlib.sha256(record.content.SerializeToString(deterministic=True)).digest()


def mac_of(key: bytes, tenant: str, content_hash: bytes) -> bytes:
    return hmac.digest(key, place("audit", tenant) + content_hash, "sha256")


def mac_of_head(key: bytes, tenant: str, head: Head) -> bytes:
    return hmac.digest(key, place("audit head", tenant, head.sequence) + head.hash, "sha256")


def fits(mac: bytes, wanted: bytes) -> bool:
    return hmac.compare_digest(mac, wanted)


def follow(head: Head, entry: Entry, time: datetime, key: bytes) -> Record:
    """The entry as the record that comes after `head`."""
    record = Record(head.sequence + 1, time, entry, head.hash)
    content_hash = hash_of(record)
    return replace(record, hash=content_hash, mac=mac_of(key, entry.tenant, content_hash))
