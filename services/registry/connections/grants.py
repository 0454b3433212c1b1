"""Grants: what lets a part of the platform use a credential for a connection. The vault decides, by the caller's right."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Protocol

from grpc.aio import Channel

from foundation.errors import Code, Problem
from foundation.rpc.call import on_behalf_of_caller
from tieline.credentials.v1 import credentials_pb2, credentials_pb2_grpc
from tieline.registry.v1.connections_pb2 import SlotBinding

_NAMESPACE = uuid.UUID("0b1c6f2e-6f3a-4f5c-9a55-2f4d3c1e7a90")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A credential that the gateway shall verify a connection's webhooks with."""

    connection: str
    binding: SlotBinding
    fields: tuple[str, ...]

    @property
    def request_id(self) -> str:
        """The same for the same wish, so that repeating a creation repeats no grant."""
        parts = (self.connection, self.binding.slot, self.binding.entry, self.binding.credential)
        return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


class Grants(Protocol):
    async def give(self, wish: Wish) -> None:
        """Make the grant with the right of whoever asked us; raises the problem that the vault raised."""


class VaultGrants:
    """We act for whoever asked us: the vault decides by their right, and its record names both."""

    def __init__(self, credentials: Channel) -> None:
        self._stub = credentials_pb2_grpc.CredentialServiceStub(credentials)

    async def give(self, wish: Wish) -> None:
        grant = credentials_pb2.Grant(
            service="gateway",
            connection=wish.connection,
            slot=wish.binding.slot,
            entry=wish.binding.entry,
            purpose=credentials_pb2.PURPOSE_WEBHOOK_VERIFY,
            fields=wish.fields,
        )
        request = credentials_pb2.CreateGrantRequest(
            parent=wish.binding.credential, grant=grant, request_id=wish.request_id
        )
        try:
            await self._stub.CreateGrant(request, metadata=on_behalf_of_caller())
        except Problem as problem:
            if problem.code is not Code.ALREADY_EXISTS:
                raise
