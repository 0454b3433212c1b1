from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from foundation.settings import Address, ServiceSettings


class GatewaySettings(ServiceSettings, frozen=True, kw_only=True):
    http: Annotated[
        Address, Meta(description="Where the HTTP edge listens: webhooks, operations, later people.")
    ] = Address("127.0.0.1", 8080)
    body_seconds: Annotated[
        float,
        Meta(
            gt=0, description="How long the body of a delivery may take to come; slower senders are refused."
        ),
    ] = 30.0
    public_url: Annotated[
        str,
        Meta(description="Where browsers reach the gateway; with https, its cookies are sent over TLS only."),
    ] = "http://127.0.0.1:8080"
    token_file: Annotated[
        str,
        Meta(
            description="A file, readable to nobody else, with the API token this process proves itself with."
        ),
    ]
    credentials: Annotated[Address, Meta(description="The credentials service's gRPC API.")] = Address(
        "127.0.0.1", 7411
    )
    registry: Annotated[Address, Meta(description="The registry's gRPC API.")] = Address("127.0.0.1", 7412)
    mapper: Annotated[Address, Meta(description="The mapper's gRPC API.")] = Address("127.0.0.1", 7413)
