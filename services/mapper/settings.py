from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from foundation.settings import Address, NatsUrl, PostgresUrl
from foundation.settings.common import RpcSettings


class MapperSettings(RpcSettings, frozen=True, kw_only=True):
    listen: Annotated[Address, Meta(description="Where the gRPC API is served.")] = Address("127.0.0.1", 7413)
    http: Annotated[Address, Meta(description="Where /healthz, /readyz and /metrics are served.")] = Address(
        "127.0.0.1", 7423
    )
    database_url: Annotated[
        PostgresUrl, Meta(description="PostgreSQL, as the role `tieline_mapper_service`: `postgresql://…`.")
    ]
    worker_database_url: Annotated[
        PostgresUrl,
        Meta(
            description="The same PostgreSQL, as the role `tieline_mapper_worker`: "
            "for what goes on across tenants, such as the relay."
        ),
    ]
    nats_url: Annotated[NatsUrl, Meta(description="NATS with JetStream: `nats://user:password@host:port`.")]
    credentials: Annotated[Address, Meta(description="The credentials service's gRPC API.")] = Address(
        "127.0.0.1", 7411
    )
    registry: Annotated[Address, Meta(description="The registry's gRPC API.")] = Address("127.0.0.1", 7412)
    token_file: Annotated[
        str, Meta(description="File, readable to nobody else, with the API token this process presents.")
    ]
    stream_bytes: Annotated[
        int,
        Meta(ge=1024 * 1024, description="What the stream of events may hold before the outbox has to wait."),
    ] = 4 * 1024**3
    stream_days: Annotated[
        float, Meta(gt=0, le=365, description="How long the stream keeps events for slow subscribers.")
    ] = 7
