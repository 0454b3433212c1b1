from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from foundation.settings import Address, NatsUrl, PostgresUrl
from foundation.settings.common import RpcSettings


class CredentialsSettings(RpcSettings, frozen=True, kw_only=True):
    listen: Annotated[Address, Meta(description="Where the gRPC API is served.")] = Address("127.0.0.1", 7411)
    http: Annotated[Address, Meta(description="Where /healthz, /readyz and /metrics are served.")] = Address(
        "127.0.0.1", 7421
    )
    database_url: Annotated[
        PostgresUrl,
        Meta(description="PostgreSQL, as the role `tieline_credentials_service`: `postgresql://…`."),
    ]
    worker_database_url: Annotated[
        PostgresUrl,
        Meta(
            description="PostgreSQL, as the role `tieline_credentials_worker`, which sees when any tenant's"
            " credentials renew and end; their values it cannot open."
        ),
    ]
    nats_url: Annotated[
        NatsUrl | None,
        Meta(description="NATS with JetStream, where notices are told: `nats://…`. None: they wait."),
    ] = None
    root_key_file: Annotated[
        str | None,
        Meta(
            description="The root key, outside the database: a file, mode 0600, made if there is none."
            " Lost, nothing can be opened any more: back it up apart from the database."
        ),
    ] = None
    root_key_kms: Annotated[
        str | None,
        Meta(
            description="The root key, kept by AWS KMS instead: the key's ARN, or its id or alias."
            " Exactly one of `root_key_file` and `root_key_kms` is set."
        ),
    ] = None
    root_key_next_file: Annotated[
        str | None,
        Meta(description="The root key that is to come next; `tieline key rotate --root` begins to use it."),
    ] = None
    root_key_next_kms: Annotated[
        str | None, Meta(description="The same, where AWS KMS keeps the next one.")
    ] = None
    aws_endpoint_url: Annotated[
        str | None,
        Meta(description="Where AWS is asked, if not at its public addresses: a private endpoint's URL."),
    ] = None
    tenant_directory: Annotated[
        str | None,
        Meta(
            description="A JSON file that another system keeps, as the source of tenants:"
            ' `[{"id": "acme", "title": "Acme", "directory_id": "4711", "labels": {}}]`. Read again when it'
            " changes; who leaves it is suspended, never deleted."
        ),
    ] = None
    allow_http_providers: Annotated[
        bool,
        Meta(
            description="Whether providers on this machine may be reached without TLS: for trying things out,"
            " never in production."
        ),
    ] = False
    provider_networks: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks inside the organisation in which providers may be reached: `10.1.0.0/16`."
            " Others that are not public are refused, whoever names them."
        ),
    ] = ()
    public_url: Annotated[
        str,
        Meta(
            description="Where browsers reach the gateway. Providers of OAuth 2 are told `<public_url>/oauth/callback`"
            " as the redirect URI, exactly."
        ),
    ] = "http://127.0.0.1:8080"
    start_tokens: Annotated[
        str | None,
        Meta(
            description="A JSON file that names the tokens an installation is born with, by their hashes:"
            " the administrator's and one for each process."
        ),
    ] = None
