from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from foundation.settings import Address, NatsUrl, PostgresUrl
from foundation.settings.common import RpcSettings


class RegistrySettings(RpcSettings, frozen=True, kw_only=True):
    listen: Annotated[Address, Meta(description="Where the gRPC API is served.")] = Address("127.0.0.1", 7412)
    http: Annotated[Address, Meta(description="Where /healthz, /readyz and /metrics are served.")] = Address(
        "127.0.0.1", 7422
    )
    credentials: Annotated[Address, Meta(description="The credentials service's gRPC API.")] = Address(
        "127.0.0.1", 7411
    )
    mapper: Annotated[
        Address,
        Meta(description="The mapper's gRPC API, where what is polled goes and what waits is counted."),
    ] = Address("127.0.0.1", 7413)
    nats_url: Annotated[
        NatsUrl | None,
        Meta(description="NATS with JetStream, where notices are told: `nats://…`. None: they wait."),
    ] = None
    database_url: Annotated[
        PostgresUrl, Meta(description="PostgreSQL, as the role `tieline_registry_service`: `postgresql://…`.")
    ]
    worker_database_url: Annotated[
        PostgresUrl,
        Meta(
            description="PostgreSQL, as the role `tieline_registry_worker`, which sees every tenant's connections."
        ),
    ]
    token_file: Annotated[
        str,
        Meta(description="File with the API token of `services/registry`, readable by nobody else."),
    ]
    public_url: Annotated[
        str,
        Meta(description="Where providers reach the gateway; the URLs of webhooks begin with it."),
    ] = "http://127.0.0.1:8080"
    plugins: Annotated[
        tuple[str, ...],
        Meta(description="Directories in which plugins are looked for, beside those that come with Tieline."),
    ] = ()
    environments: Annotated[
        str,
        Meta(description="Directory for the environments of plugins that bring dependencies of their own."),
    ] = "~/.cache/tieline/environments"
    egress_loopback: Annotated[
        bool,
        Meta(
            description="Whether plugins may call this machine where a connection's settings say so: for trying"
            " things out, never in production."
        ),
    ] = False
    egress_networks: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks inside the organisation in which plugins may call the hosts of their manifests:"
            " `10.1.0.0/16`. Other addresses that are not public are refused, whoever names them."
        ),
    ] = ()
    sandbox: Annotated[
        Literal["auto", "none", "confined"],
        Meta(
            description="What keeps plugins in. `confined`: namespaces of their own, without which none is started;"
            " `auto`: confined where this machine allows it; `none`: a process of its own, and the proxy."
        ),
    ] = "auto"
    private_directories: Annotated[
        tuple[str, ...],
        Meta(
            description="Directories that no confined plugin sees, beside people's homes, `/run` and the installation."
        ),
    ] = ()
    installation: Annotated[
        str | None,
        Meta(description="The data directory of a whole installation, which `tieline up` names."),
    ] = None
    alarm_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long a connection must be down before people are told."),
    ] = 10.0
    calm_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long it must be well again before they are told that."),
    ] = 30.0
    lag_seconds: Annotated[
        float,
        Meta(gt=0, le=86400, description="How long the oldest delivery may wait before its connection lags."),
    ] = 300.0
    join_listen: Annotated[
        Address | None,
        Meta(description="Where plugins that run elsewhere join, over TLS. Unset: none may."),
    ] = None
    authority_file: Annotated[
        str | None,
        Meta(
            description="File with the key of the authority that vouches for plugins that join; made where there is"
            " none. All replicas share it, and nobody else may read it."
        ),
    ] = None
    certificate_seconds: Annotated[
        float,
        Meta(
            ge=1, le=604800, description="How long a plugin's certificate is good; renewed at half of that."
        ),
    ] = 86400.0
    announce_seconds: Annotated[
        float,
        Meta(
            ge=0.1, le=60, description="How often a plugin that joined says where it is; three missed: lost."
        ),
    ] = 10.0
    operation_days: Annotated[
        float,
        Meta(
            ge=7,
            le=3650,
            description="How long an operation that has ended can still be read; what is ambiguous stays until a"
            " person resolves it.",
        ),
    ] = 30
    operation_lease_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=600,
            description="After how long without a sign of life a replica's operations are taken over by another.",
        ),
    ] = 30.0
