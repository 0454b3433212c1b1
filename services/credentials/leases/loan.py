"""What will be given for one request, and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.credentials.audit.entry import Entry
from services.credentials.audit.entry import Outcome as Ending
from services.credentials.credential import kinds, states
from services.credentials.credential.store import CredentialRow, GrantRow, Use, VersionRow
from services.credentials.leases.asking import Wanted, denied
from services.credentials.leases.ranges import covers
from services.credentials.leases.store import LeaseRow
from services.credentials.leases.wire import Outcome, refused
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED

ACTION = "lease.acquire"
VERIFY = "WEBHOOK_VERIFY"


@dataclass(frozen=True, slots=True)
class Loan:
    """What will be given for one request, if nothing comes in between."""

    use: Use
    grant: GrantRow
    credential: CredentialRow
    version: VersionRow | None = None
    beside: Sequence[VersionRow] = ()
    """For verifying webhooks: the other versions that are still accepted."""
    lease: LeaseRow | None = None
    """The one that the holder has for this already, where it is good for a while."""
    intent: int = 0

    @property
    def fields(self) -> frozenset[str]:
        """Those that the kind releases and the grant does not leave out."""
        released = frozenset(kinds.KINDS[self.credential.kind].released)
        return released & frozenset(self.grant.fields) if self.grant.fields else released

    @property
    def details(self) -> Mapping[str, str]:
        said = {
            "holder": self.use.holder,
            "subject": self.use.subject,
            "slot": self.use.slot,
            "entry": self.use.entry,
            "purpose": self.use.purpose,
            "grant": self.grant.id,
            "account": self.grant.account,
            "version": str(self.version.version) if self.version else "",
            "beside": ",".join(str(row.version) for row in self.beside),
        }
        return {name: text for name, text in said.items() if text}

    def entry(self, outcome: Ending, **details: str) -> Entry:
        return Entry(
            tenant=self.use.tenant,
            action=ACTION,
            resource=self.credential.name,
            outcome=outcome,
            fields=sorted(self.fields),
            details={**self.details, **details},
            intent=self.intent,
        )


def objection(loan: Loan, wanted: Wanted) -> Outcome | None:
    """Why the grant does not allow it after all, or why nobody gets the credential now."""
    if wanted.plugin and not covers(loan.grant.plugin_versions, wanted.plugin_version):
        return denied("PLUGIN_VERSION_REFUSED", f"the grant is for versions {loan.grant.plugin_versions}")
    if loan.use.purpose == VERIFY and loan.credential.kind != "WEBHOOK_SECRET":
        return denied("KIND_REFUSED", "webhooks are verified with a webhook secret")
    if not loan.fields:
        return denied("FIELDS_REFUSED", "the grant allows no field of it")
    state = loan.credential.state
    if state not in states.USABLE:
        words = f"{loan.credential.name} is {state.lower().replace('_', ' ')}"
        return refused(FAILURE_KIND_AUTH_FAILED, f"CREDENTIAL_{state}", words)
    return None
