"""Kinds that nothing renews: the version in use is the one to give away."""

from __future__ import annotations

from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.credentials.credential import store as queries
from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.renewal.port import Advice, Answer, Validation
from tieline.common.v1.failure_pb2 import Failure


class Plain:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def usable(self, credential: CredentialRow, account: str) -> VersionRow:  # noqa: ARG002 - of one account
        async with self._store.unit_of_work(tenants=[credential.tenant], read_only=True) as work:
            version = await queries.version(
                work, credential.tenant, credential.id, credential.current_version
            )
        if version is None or version.sealed_value is None:
            why = "its version is destroyed"
            raise Problem(Code.CREDENTIAL_UNUSABLE, credential=credential.name, why=why)
        return version

    async def renew_now(self, credential: CredentialRow) -> VersionRow:
        raise Problem(Code.ROTATION_BY_PERSON, credential=credential.name, kind=credential.kind.lower())

    async def validate(self, credential: CredentialRow) -> Validation | None:  # noqa: ARG002 - nothing to ask
        return None

    async def refused(self, credential: CredentialRow, version: int, failure: Failure) -> Answer:  # noqa: ARG002
        newer = version < credential.current_version
        return Answer(Advice.REACQUIRE if newer else Advice.GIVE_UP)
