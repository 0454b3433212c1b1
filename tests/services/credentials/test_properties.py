"""What holds for any credential of any kind, whoever asks: over the API, and in the database as a superuser sees it."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import Code, Problem
from services.credentials.credential.kinds import KINDS, makes_sessions
from tests.services.credentials.conftest import Client, Running
from tests.services.credentials.values import BY_KIND
from tieline.common.v1 import options_pb2 as contract
from tieline.credentials.v1.credentials_pb2 import (
    PURPOSE_CALL,
    AddCredentialVersionRequest,
    CreateCredentialRequest,
    CreateGrantRequest,
    Credential,
    DeleteCredentialRequest,
    DeleteGrantRequest,
    GetCredentialRequest,
    Grant,
    ListCredentialsRequest,
    ListCredentialVersionsRequest,
    ListGrantsRequest,
    RevokeCredentialRequest,
    RotateCredentialRequest,
    UpdateCredentialRequest,
    ValidateCredentialRequest,
)
from tieline.credentials.v1.leases_pb2 import AcquireLeasesRequest, AcquireLeasesResponse, ListLeasesRequest
from tieline.credentials.v1.secrets_pb2 import ApiKey, SecretValue
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.credentials.v1.tokens_pb2 import ApiToken, CreateApiTokenRequest

EXAMPLES = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TABLES = ("credentials", "credential_versions", "grants", "leases", "audit_records", "notices")
_numbers = count(1)


def secrets_of(message: Message) -> set[bytes]:
    """Every value that the contract marks as sensitive, long enough to be recognised."""
    found: set[bytes] = set()
    for of, content in message.ListFields():
        if of.message_type is not None and not of.is_repeated:
            found |= secrets_of(content)
        elif of.GetOptions().Extensions[contract.sensitive]:
            found.add(content.encode() if isinstance(content, str) else content)
    return {secret for secret in found if len(set(secret)) >= 8}


async def dump(running: Running) -> bytes:
    """All that the database holds of credentials, as text and as bytes."""
    # A row as text writes its bytes in hex; the same bytes as they are stand beside it.
    query = " union all ".join(f"select t::text as row from credentials.{table} t" for table in TABLES)  # noqa: S608
    rows = [row["row"] for row in await running.sql(query)]
    raw = [bytes.fromhex(found) for row in rows for found in re.findall(r"\\x([0-9a-f]+)", row)]
    return b"\n".join([*(row.encode() for row in rows), *raw])


async def acquire(client: Client, connection: str) -> AcquireLeasesResponse.LeaseOutcome:
    wanted = AcquireLeasesRequest.LeaseRequest(
        subject=connection, slot="api", purpose=PURPOSE_CALL, plugin="github", plugin_version="1.0.0"
    )
    answer = await client.leases.AcquireLeases(AcquireLeasesRequest(requests=[wanted]))
    return answer.outcomes[0]


@pytest.fixture
async def acme(admin: Client) -> Client:
    await admin.tenants.CreateTenant(CreateTenantRequest(tenant_id="acme"))
    return admin


@EXAMPLES
@given(data=st.data(), kind=st.sampled_from(sorted(BY_KIND)))
async def test_every_kind_round_trips_is_stored_sealed_and_is_replaced(
    running: Running, acme: Client, data: st.DataObject, kind: str
) -> None:
    """Feature: integrations, Property 3: any value of any kind is stored sealed and comes back only as a lease.

    Kinds whose holders get a session never give the value itself; that their sessions are made and renewed
    stands in the tests of renewal.
    """
    registry = await running.as_("tl_registry")
    number = next(_numbers)
    connection, name = f"tenants/acme/connections/c{number}", f"tenants/acme/credentials/k{number}"
    values, shown = [data.draw(BY_KIND[kind], label="value") for _ in range(2)], list[str]()
    stored = await acme.credentials.CreateCredential(
        CreateCredentialRequest(parent="tenants/acme", credential_id=f"k{number}", value=values[0])
    )
    grant = Grant(plugin="github", connection=connection, slot="api", purpose=PURPOSE_CALL)
    await acme.credentials.CreateGrant(CreateGrantRequest(parent=name, grant=grant))
    for version, value in enumerate(values, 1):
        if version > 1:
            stored = await acme.credentials.AddCredentialVersion(
                AddCredentialVersionRequest(name=name, value=value)
            )
        assert stored.current_version == version
        shown += stored.attributes.values()
        if makes_sessions(kind.upper(), dict(stored.attributes)):
            continue  # whoever asked would make the vault ask a provider, and there is none here
        outcome = await acquire(registry, connection)
        part = getattr(value, kind)
        expected = {
            name: content.encode() if isinstance(content, str) else content
            for name in KINDS[kind.upper()].released
            if (content := getattr(part, name, b""))
        }
        assert dict(outcome.secret.fields) == expected
        assert outcome.secret.lease.version.version == version
    everything = await dump(running)
    for secret in secrets_of(values[0]) | secrets_of(values[1]):
        if any(secret in text.encode() for text in shown):
            continue  # it was drawn for a field that is no secret, too
        for form in (secret, base64.b64encode(secret), secret.hex().encode(), repr(secret)[2:-1].encode()):
            assert form not in everything
    await acme.credentials.DeleteCredential(DeleteCredentialRequest(name=name, force=True))


# isolation


@dataclass
class Worlds:
    """Two tenants with a credential and a grant each, and somebody of each role in each of them."""

    admin: Client
    clients: dict[tuple[str, str], Client] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def made(cls, running: Running) -> Worlds:
        worlds = cls(await running.as_("tl_admin"))
        for tenant in ("acme", "other"):
            await worlds.admin.tenants.CreateTenant(CreateTenantRequest(tenant_id=tenant))
            await worlds.fill(tenant)
            for role in ("TENANT_ADMIN", "OPERATOR", "VIEWER", "INGEST"):
                token = await worlds.admin.tokens.CreateApiToken(
                    CreateApiTokenRequest(
                        parent=f"tenants/{tenant}",
                        api_token=ApiToken(title=role, roles=[contract.Role.Value(f"ROLE_{role}")]),
                    )
                )
                worlds.clients[tenant, role] = await running.as_(token.secret)
        return worlds

    async def fill(self, tenant: str) -> None:
        await self.admin.credentials.CreateCredential(
            CreateCredentialRequest(
                parent=f"tenants/{tenant}",
                credential_id="key",
                value=SecretValue(api_key=ApiKey(key=f"the key of {tenant}")),
            )
        )
        grant = Grant(
            plugin="github", connection=f"tenants/{tenant}/connections/c", slot="api", purpose=PURPOSE_CALL
        )
        made = await self.admin.credentials.CreateGrant(
            CreateGrantRequest(parent=f"tenants/{tenant}/credentials/key", grant=grant)
        )
        self.grants[tenant] = made.name


@pytest.fixture
async def worlds(running: Running) -> Worlds:
    return await Worlds.made(running)


Try = Callable[[Client, str, str], Awaitable[Any]]
"""Somebody, the tenant that is meant, and the name of the grant there."""

VALUE = SecretValue(api_key=ApiKey(key="another key"))
READS: dict[str, Try] = {
    "get": lambda c, t, _: c.credentials.GetCredential(GetCredentialRequest(name=f"{t}/credentials/key")),
    "list": lambda c, t, _: c.credentials.ListCredentials(ListCredentialsRequest(parent=t)),
    "versions": lambda c, t, _: c.credentials.ListCredentialVersions(
        ListCredentialVersionsRequest(parent=f"{t}/credentials/key")
    ),
    "grants": lambda c, t, _: c.credentials.ListGrants(ListGrantsRequest(parent=f"{t}/credentials/-")),
    "leases": lambda c, t, _: c.leases.ListLeases(ListLeasesRequest(parent=f"{t}/credentials/-")),
}
WRITES: dict[str, Try] = {
    "create": lambda c, t, _: c.credentials.CreateCredential(
        CreateCredentialRequest(parent=t, credential_id=f"x{next(_numbers)}", value=VALUE)
    ),
    "update": lambda c, t, _: c.credentials.UpdateCredential(
        UpdateCredentialRequest(
            credential=Credential(name=f"{t}/credentials/key", title="mine"),
            update_mask=FieldMask(paths=["title"]),
        )
    ),
    "add version": lambda c, t, _: c.credentials.AddCredentialVersion(
        AddCredentialVersionRequest(name=f"{t}/credentials/key", value=VALUE)
    ),
    "rotate": lambda c, t, _: c.credentials.RotateCredential(
        RotateCredentialRequest(name=f"{t}/credentials/key")
    ),
    "revoke": lambda c, t, _: c.credentials.RevokeCredential(
        RevokeCredentialRequest(name=f"{t}/credentials/key")
    ),
    "delete": lambda c, t, _: c.credentials.DeleteCredential(
        DeleteCredentialRequest(name=f"{t}/credentials/key", force=True)
    ),
    "validate": lambda c, t, _: c.credentials.ValidateCredential(
        ValidateCredentialRequest(name=f"{t}/credentials/key")
    ),
    "grant": lambda c, t, _: c.credentials.CreateGrant(
        CreateGrantRequest(
            parent=f"{t}/credentials/key",
            grant=Grant(plugin="spy", connection=f"{t}/connections/c", slot="api", purpose=PURPOSE_CALL),
        )
    ),
    "take a grant back": lambda c, _, grant: c.credentials.DeleteGrant(DeleteGrantRequest(name=grant)),
}
ALL = READS | WRITES


@EXAMPLES
@given(
    operation=st.sampled_from(sorted(ALL)),
    role=st.sampled_from(["TENANT_ADMIN", "OPERATOR", "VIEWER", "INGEST"]),
    mine=st.sampled_from(["acme", "other"]),
)
async def test_nobody_reads_or_changes_what_is_another_tenants(
    running: Running, worlds: Worlds, operation: str, role: str, mine: str
) -> None:
    """Feature: integrations, Property 2: no credential operation of one tenant touches another one's."""
    theirs = "other" if mine == "acme" else "acme"
    before = await running.sql(SNAPSHOT, theirs)
    client = worlds.clients[mine, role]
    with pytest.raises(Problem) as refused:
        await ALL[operation](client, f"tenants/{theirs}", worlds.grants[theirs])
    assert refused.value.code in (Code.TENANT_FOREIGN, Code.ROLE_MISSING)
    assert f"the key of {theirs}" not in str(refused.value)
    assert await running.sql(SNAPSHOT, theirs) == before
    if operation in READS and role == "TENANT_ADMIN":
        answer = await ALL[operation](client, f"tenants/{mine}", worlds.grants[mine])
        assert f"tenants/{theirs}" not in str(answer)


SNAPSHOT = """
    select md5(string_agg(row::text, '|' order by row::text)) from (
        select to_jsonb(c) as row from credentials.credentials c where tenant = $1
        union all select to_jsonb(v) from credentials.credential_versions v where tenant = $1
        union all select to_jsonb(g) from credentials.grants g where tenant = $1
        union all select to_jsonb(l) from credentials.leases l where tenant = $1
    ) rows
"""


@EXAMPLES
@given(
    subject=st.sampled_from(["tenants/acme/connections/c", "tenants/other/connections/c"]),
    slot=st.sampled_from(["api", "webhook", ""]),
    holder=st.tuples(
        st.sampled_from(["tl_registry", "tl_gateway", "tl_mapper"]), st.sampled_from(["github", "spy", ""])
    ),
)
async def test_a_lease_is_given_for_exactly_what_a_grant_names(
    running: Running, worlds: Worlds, subject: str, slot: str, holder: tuple[str, str]
) -> None:
    """Feature: integrations, Property 2: a lease carries the key of the tenant that it is asked for, or nothing."""
    who, plugin = holder
    client = await running.as_(who)
    wanted = AcquireLeasesRequest.LeaseRequest(
        subject=subject,
        slot=slot,
        purpose=PURPOSE_CALL,
        plugin=plugin,
        plugin_version="1.0.0" if plugin else "",
    )
    answer = await client.leases.AcquireLeases(AcquireLeasesRequest(requests=[wanted]))
    [outcome] = answer.outcomes
    tenant = subject.split("/")[1]
    if (slot, plugin, who) == ("api", "github", "tl_registry"):
        assert dict(outcome.secret.fields) == {"key": f"the key of {tenant}".encode()}
    else:
        assert outcome.HasField("failure")
    assert worlds.grants
