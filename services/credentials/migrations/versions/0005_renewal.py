"""Consent under way, and who asks a provider for something newer."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import tenant_table

revision = "0005"
down_revision = "0004"

TIME = sa.DateTime(timezone=True)


def text(name: str, **options: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **options)  # type: ignore[arg-type]


def upgrade() -> None:
    schema = context.config.attributes["schema"].name
    tenant_table(
        "refreshes",
        text("credential"),
        text("account"),
        # Grows with every claim: what comes of an older one is not stored any more.
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        # Whether the provider is being asked. Past its time the claim is anybody's, and so is the doubt.
        sa.Column("asking", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("claimed_until", TIME),
        # The version that the claim began from; another one is in use: what failed says nothing any more.
        sa.Column("made_from", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("not_before", TIME),
        text("why", server_default=""),
        # Whether it was the provider's no for this account, which is the same no until something changes there.
        sa.Column("refused", sa.Boolean, nullable=False, server_default=sa.false()),
        key=("credential", "account"),
        service=("select", "insert", "update", "delete"),
        worker=("select",),
    )
    tenant_table(
        "consents",
        sa.Column("ticket", sa.LargeBinary, nullable=False),
        # Both are null until a browser has come with the ticket.
        sa.Column("state", sa.LargeBinary),
        sa.Column("browser", sa.LargeBinary),
        text("credential"),
        text("return_path"),
        text("author"),
        sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("key_version", sa.BigInteger, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_at", TIME),
        key=("ticket",),
        service=("select", "insert", "update", "delete"),
        worker=("select",),
    )
    # Looked up before anybody knows whose it is.
    op.create_index("consents_of_ticket", "consents", ["ticket"], schema=schema)
    op.create_index("consents_of_state", "consents", ["state"], schema=schema)
