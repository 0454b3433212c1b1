"""Tenants and their keys, tokens and signing keys, credentials and who may have them, the audit of all of it."""

import sqlalchemy as sa

from foundation.store.tenancy import platform_table, tenant_table

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def text(name: str, **options: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **options)  # type: ignore[arg-type]


def created() -> sa.Column[object]:
    return sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    platform_table(
        "tenants",
        text("id", primary_key=True),
        text("title"),
        text("state"),
        text("request_id"),
        created(),
        sa.Column("updated_at", TIME, nullable=False, server_default=sa.func.now()),
        reason="the list of tenants itself",
        service=("select", "insert", "update"),
    )
    platform_table(
        "root_canary",
        text("fingerprint", primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        created(),
        reason="tells a wrong root key before anything is opened with it",
        service=("select", "insert"),
    )
    platform_table(
        "platform_secrets",
        text("name", primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        created(),
        reason="keys that the platform keeps for itself, sealed with the root key",
        service=("select", "insert"),
    )
    platform_table(
        "signing_keys",
        text("kid", primary_key=True),
        sa.Column("public", sa.LargeBinary, nullable=False),
        sa.Column("sealed_private", sa.LargeBinary, nullable=False),
        created(),
        reason="the platform signs with it for everybody",
        service=("select", "insert"),
    )
    platform_table(
        "api_tokens",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        text("id", unique=True),
        text("owner"),
        text("title"),
        text("principal"),
        text("kind"),
        sa.Column("roles", sa.ARRAY(sa.Text), nullable=False),
        text("hint"),
        created(),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        reason="looked up by its hash before anybody knows whose it is",
        service=("select", "insert", "update"),
    )
    tenant_table(
        "tenant_keys",
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        created(),
        key=("version",),
        service=("select", "insert"),
        worker=("select",),
    )
    tenant_table(
        "credentials",
        text("id"),
        text("title"),
        text("kind"),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        text("request_id"),
        sa.Column("current_version", sa.BigInteger, nullable=False),
        sa.Column("last_version", sa.BigInteger, nullable=False),
        text("state"),
        sa.Column("state_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("failure", sa.JSON),
        sa.Column("expires_at", TIME),
        text("provider_principal", server_default=""),
        sa.Column("validated_at", TIME),
        sa.Column("renewal", sa.JSON, nullable=False),
        sa.Column("renews_at", TIME),
        # Days before its end that people were told of last; null: of none.
        sa.Column("warned_days", sa.SmallInteger),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        created(),
        sa.Column("updated_at", TIME, nullable=False, server_default=sa.func.now()),
        key=("id",),
        service=("select", "insert", "update", "delete"),
        worker=("select",),
    )
    tenant_table(
        "credential_versions",
        text("credential"),
        sa.Column("version", sa.BigInteger, nullable=False),
        # A session that was made from a version (an installation token, an assumed role) names that version
        # and the account it is for. Its number is drawn from the same row of numbers.
        sa.Column("made_from", sa.BigInteger),
        text("account", server_default=""),
        # Both are null once the version is destroyed.
        sa.Column("wrapped_key", sa.LargeBinary),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("key_version", sa.BigInteger, nullable=False),
        text("author"),
        created(),
        sa.Column("expires_at", TIME),
        sa.Column("accepted_until", TIME),
        text("request_id", server_default=""),
        key=("credential", "version"),
        service=("select", "insert", "update", "delete"),
        worker=("select",),
    )
    tenant_table(
        "grants",
        text("id"),
        text("credential"),
        text("holder"),
        text("subject"),
        text("slot"),
        text("entry"),
        text("purpose"),
        text("plugin_versions"),
        sa.Column("fields", sa.ARRAY(sa.Text), nullable=False),
        text("account"),
        text("author"),
        created(),
        sa.Column("expires_at", TIME),
        sa.UniqueConstraint(
            "tenant", "credential", "holder", "subject", "slot", "entry", "purpose", name="grants_once"
        ),
        key=("id",),
        service=("select", "insert", "update", "delete"),
        worker=("select",),
    )
    tenant_table(
        "audit_heads",
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
        key=(),
        service=("select", "insert", "update"),
    )
    tenant_table(
        "audit_records",
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("time", TIME, nullable=False),
        text("principal"),
        text("on_behalf_of"),
        text("action"),
        text("resource"),
        sa.Column("fields", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("outcome", sa.SmallInteger, nullable=False),
        sa.Column("intent", sa.BigInteger, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
        key=("sequence",),
        service=("select", "insert"),
    )
