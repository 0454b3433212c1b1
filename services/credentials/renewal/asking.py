"""What renewal asks of each mechanism: one request to a provider, and one of four answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.credentials.credential.store import CredentialRow
from services.credentials.renewal.port import Validation
from tieline.credentials.v1.secrets_pb2 import SecretValue


@dataclass(frozen=True, slots=True)
class Asked:
    credential: CredentialRow
    value: SecretValue
    account: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """It went well. The plain bytes never leave this process unsealed."""

    plain: bytes
    """A session as holders get it; for a kind that makes none, the value that takes the old one's place."""
    expires_at: datetime | None = None
    scopes: Sequence[str] | None = None
    """Those that were given, where the provider says so."""

    def __repr__(self) -> str:
        return f"Made(expires_at={self.expires_at})"


class Trouble(Exception):  # noqa: N818 - one of three things that may happen, none of them ours
    """What went wrong, in words that hold no secret and nothing a stranger chose."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Refused(Trouble):
    """The provider has said no, and will again: a person has to act."""

    def __init__(self, why: str, *, consent: bool = False, account_only: bool = False) -> None:
        super().__init__(why)
        self.consent = consent
        """It is the consent that has ended: giving it again helps."""
        self.account_only = account_only
        """It is this account that cannot be had; for others the credential may be good."""


class Unavailable(Trouble):
    """The provider has changed nothing: it was not reached, or has said so itself."""

    def __init__(self, why: str, retry_after: timedelta = timedelta(0)) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Lost(Trouble):
    """The request went out and no answer came that one could read: the provider may have done what we asked."""


class Mechanism(Protocol):
    async def renew(self, asked: Asked) -> Made:
        """Raises `Trouble`, and nothing else."""


class Trial(Protocol):
    async def validate(self, asked: Asked) -> Validation:
        """What the provider says of it, and nothing is stored. Raises `Trouble`."""
