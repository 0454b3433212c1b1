"""Every credential that a grant covers, as the registry is told of it: now, and again after each change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from google.protobuf.json_format import ParseDict

from foundation.store.unit_of_work import Store
from foundation.store.watched import Snapshot, Watched
from services.credentials.credential import store as queries
from services.credentials.credential.store import Covered
from tieline.credentials.v1.credentials_pb2 import Credential, WatchCredentialStatesResponse

LOOK_SECONDS = 0.5

States = Sequence[Covered]


class Cover(Watched[States]):
    def __init__(self, worker: Store) -> None:
        self._worker = worker
        super().__init__("covered credentials", self._covered, (), look_seconds=LOOK_SECONDS)

    async def tell(self) -> AsyncIterator[WatchCredentialStatesResponse]:
        async for snapshot in self.watch():
            yield WatchCredentialStatesResponse(
                states=map(_state, snapshot.content), generation=snapshot.generation
            )

    async def _covered(self, known: int) -> Snapshot[States] | None:
        async with self._worker.across_tenants() as work:
            generation = await queries.generation(work)
            if generation == known:
                return None
            return Snapshot(generation, await queries.covered(work))


def _state(row: Covered) -> WatchCredentialStatesResponse.CredentialState:
    state = WatchCredentialStatesResponse.CredentialState(
        credential=f"tenants/{row.tenant}/credentials/{row.id}",
        state=Credential.State.Value(f"STATE_{row.state}"),
        current_version=row.current_version,
        connections=row.subjects,
    )
    state.state_time.FromDatetime(row.state_at)
    if row.failure is not None:
        ParseDict(dict(row.failure), state.failure)
    return state
