"""What leases ask of renewal: a version that can be given away now, and what to do about one that was refused."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from services.credentials.credential.store import CredentialRow, VersionRow
from tieline.common.v1.failure_pb2 import Failure


class Advice(enum.IntEnum):
    """As the contract numbers them."""

    REACQUIRE = 1
    WAIT = 2
    GIVE_UP = 3


@dataclass(frozen=True, slots=True)
class Answer:
    advice: Advice
    retry_after: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Validation:
    """What a provider said of a credential that it accepts."""

    principal: str = ""
    granted_scopes: Sequence[str] = ()
    missing_scopes: Sequence[str] = ()


class Renewals(Protocol):
    async def usable(self, credential: CredentialRow, account: str) -> VersionRow:
        """The version to give away: of a kind that ends or makes sessions, one that is good for a while yet.

        Renews where it must; many callers at once, in any replica, cause one request to the provider. Called
        outside of any transaction. Raises `CREDENTIAL_UNUSABLE` where a person has to act, and
        `CREDENTIAL_REFRESHING` where somebody is at it and the caller should come again.
        """

    async def renew_now(self, credential: CredentialRow) -> VersionRow:
        """Make a new version or session, whether or not the present one is still good."""

    async def validate(self, credential: CredentialRow) -> Validation | None:
        """Ask the provider, for kinds that the vault can try by itself; None for the others.

        Raises `CREDENTIAL_UNUSABLE` where the provider refuses it and `PROVIDER_UNAVAILABLE` where it is silent.
        """

    async def refused(self, credential: CredentialRow, version: int, failure: Failure) -> Answer:
        """A holder says that the provider refused this version."""
