"""Reads a chain from end to end and names the first record that is not as it was written.

Everything that a reader is shown is recomputed from the columns that hold it. What somebody with all rights in
the database, and without the audit key, can do, and how it shows:

    change a record                       EDITED: its content does not fit its hash
    change it and its hash                FORGED: the MAC cannot be made
    delete one, or the first ones         MISSING
    insert one, reorder, move             EDITED or FORGED, since a record holds its place and its tenant
    put a record back from another past   BROKEN_LINK: it is ours, and follows another one
    cut off the newest                    TRUNCATED: the end of the chain says how far it goes
    cut them off and change the end too   FORGED: the end has a MAC of its own
    put back the end, leave the records   ROLLED_BACK
    delete all, and let it begin anew     ROLLED_BACK: a tenant's chain begins with the tenant
    put back the end and the records      nothing, but against a checkpoint kept elsewhere: TRUNCATED or ROLLED_BACK

The last line is why checkpoints are signed: a whole database that is put back is a true one, only an old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foundation.store.unit_of_work import Store
from services.credentials.audit import store as queries
from services.credentials.audit.chain import Head, fits, hash_of, mac_of, mac_of_head
from services.credentials.audit.store import HeadRow, RecordRow
from tieline.credentials.v1.audit_pb2 import VerifyAuditResponse

Defect = VerifyAuditResponse.Defect
EDITED = VerifyAuditResponse.DEFECT_EDITED
FORGED = VerifyAuditResponse.DEFECT_FORGED
MISSING = VerifyAuditResponse.DEFECT_MISSING
BROKEN_LINK = VerifyAuditResponse.DEFECT_BROKEN_LINK
TRUNCATED = VerifyAuditResponse.DEFECT_TRUNCATED
ROLLED_BACK = VerifyAuditResponse.DEFECT_ROLLED_BACK

PAGE = 500
BEFORE_ALL = -(2**63)


Checkpoints = Mapping[int, set[bytes]]
"""Hashes by the sequence that they must be found at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong with a chain."""

    sequence: int
    defect: VerifyAuditResponse.Defect.ValueType
    explanation: str


class Verifier:
    """Feed it the records of a chain in their order, then its end. Knows no database."""

    def __init__(self, tenant: str, key: bytes, checkpoints: Checkpoints, begins_with: str = "") -> None:
        self._tenant = tenant
        self._key = key
        self._checkpoints = checkpoints
        self._begins_with = begins_with
        """The action of its first record, where there must be one."""
        self._last = Head()

    @property
    def checked(self) -> int:
        return self._last.sequence

    def check(self, row: RecordRow) -> Finding | None:
        """Whether the next record is what must come next."""
        finding = self._displaced(row) or self._changed(row)
        if finding is None:
            self._last = Head(row.sequence, row.hash)
        return finding

    def end(self, newest: int, end: HeadRow | None) -> Finding | None:
        """Whether nothing is missing after the last record."""
        due = self.checked + 1
        promised = max(self._checkpoints, default=0)
        if end is not None and end.sequence > self.checked:
            return Finding(due, TRUNCATED, f"the end of the chain is written as {end.sequence}")
        if promised > self.checked:
            return Finding(due, TRUNCATED, f"a checkpoint covers records up to {promised}")
        if self._begins_with and self.checked == 0:
            return Finding(due, TRUNCATED, "the record of how it began is not there")
        if end is None:
            return Finding(due, MISSING, "where the chain ends is not written any more") if newest else None
        return self._moved(end)

    def _displaced(self, row: RecordRow) -> Finding | None:
        due = self.checked + 1
        if row.sequence > due:
            return Finding(due, MISSING, f"after {self.checked} comes {row.sequence}")
        if row.sequence < due:
            return Finding(row.sequence, BROKEN_LINK, "no chain of ours begins like this")
        return None

    def _changed(self, row: RecordRow) -> Finding | None:
        due = row.sequence
        if not _fits_its_hash(row):
            return Finding(due, EDITED, "its content does not fit its hash")
        if not fits(row.mac, mac_of(self._key, self._tenant, row.hash)):
            return Finding(due, FORGED, "its MAC was not made with the audit key")
        if row.previous_hash != self._last.hash:
            return Finding(due, BROKEN_LINK, f"it does not follow record {self.checked}")
        if due == 1 and self._begins_with not in ("", row.action):
            return Finding(
                due, ROLLED_BACK, f"a chain begins with {self._begins_with}: this one was begun anew"
            )
        if self._checkpoints.get(due, {row.hash}) != {row.hash}:
            return Finding(
                due, ROLLED_BACK, "a checkpoint says otherwise: the chain was rewritten up to here"
            )
        return None

    def _moved(self, end: HeadRow) -> Finding | None:
        if not fits(end.mac, mac_of_head(self._key, self._tenant, end.head)):
            why = "where the chain ends was not written by us: what came after it may be cut off"
            return Finding(max(1, end.sequence), FORGED, why)
        if end.sequence < self.checked:
            return Finding(end.sequence + 1, ROLLED_BACK, f"the chain is written to end at {end.sequence}")
        if end.hash != self._last.hash:
            return Finding(max(1, end.sequence), ROLLED_BACK, "the chain is written to end in another record")
        return None


def _fits_its_hash(row: RecordRow) -> bool:
    try:
        return hash_of(row.record()) == row.hash
    except (ValueError, TypeError, OverflowError):
        return False  # it holds what we never write


async def verify(
    store: Store, tenant: str, key: bytes, checkpoints: Checkpoints, begins_with: str = ""
) -> tuple[int, Finding | None]:
    """How many records are as they were written, and what is wrong with the next one, if anything is.

    Goes page by page, each in a transaction of its own: records do not change, so what is appended meanwhile is
    simply not looked at.
    """
    async with store.unit_of_work(tenants=[tenant], read_only=True) as work:
        newest, end = await queries.extent(work, tenant)
    verifier, after = Verifier(tenant, key, checkpoints, begins_with), BEFORE_ALL
    while True:
        async with store.unit_of_work(tenants=[tenant], read_only=True) as work:
            page = await queries.in_order(work, tenant, after, newest, PAGE)
        for row in page:
            if finding := verifier.check(row):
                return verifier.checked, finding
            after = row.sequence
        if len(page) < PAGE:
            return verifier.checked, verifier.end(newest, end)
