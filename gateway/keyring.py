"""The secrets that endpoints are verified with: borrowed from the vault, held in memory, given to nobody.

A gateway that runs survives an outage of the vault; one that has no secret yet cannot verify and says 503, so
that the provider sends again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from grpc.aio import Channel

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.leasing import Borrowed, Place
from gateway.verification import Secret
from tieline.common.v1.failure_pb2 import FAILURE_KIND_TRANSIENT
from tieline.credentials.v1.credentials_pb2 import PURPOSE_WEBHOOK_VERIFY
from tieline.credentials.v1.leases_pb2 import LeasedSecret
from tieline.registry.v1.endpoints_pb2 import Endpoint


class Keyring:
    """`async with` it."""

    def __init__(self, credentials: Channel, clock: Clock) -> None:
        self._borrowed = Borrowed(credentials, clock)

    async def secrets(self, endpoint: Endpoint, subject: str = "") -> Sequence[Secret]:
        """Every active version, newest first; none where the vault refuses.

        Those of the endpoint's owner, unless another subject is named: a connection that signs for itself.
        """
        place = Place(
            subject=subject or endpoint.connection or endpoint.app,
            slot=endpoint.webhook.slot or "webhook",
            purpose=PURPOSE_WEBHOOK_VERIFY,
            credential=endpoint.credential,
        )
        [held] = await self._borrowed.get([place])
        if held.failure is None:
            return _versions(held.secret)
        if held.failure.kind == FAILURE_KIND_TRANSIENT:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="vault", why=held.failure.message)
        return ()

    async def __aenter__(self) -> Self:
        await self._borrowed.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._borrowed.__aexit__()


def _versions(secret: LeasedSecret) -> Sequence[Secret]:
    numbers = [secret.lease.version.version, *secret.previous_versions]
    values = [secret.fields["secret"], *secret.previous_secrets]
    return tuple(Secret(number, value) for number, value in zip(numbers, values, strict=True))
