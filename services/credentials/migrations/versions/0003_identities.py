"""People, memberships, tokens of the platform, the life of keys and tenants."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import platform_table, tenant_table

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)


def text(name: str, **options: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **options)  # type: ignore[arg-type]


def number(name: str, default: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=default)


def created() -> sa.Column[object]:
    return sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now())


def add(table: str, *columns: sa.Column[object]) -> None:
    schema = context.config.attributes["schema"]
    for column in columns:
        op.add_column(table, column, schema=schema.name)


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    # tenants: why one is suspended, where one comes from, and whether what it had is gone
    add(
        "tenants",
        text("reason", server_default=""),
        sa.Column("labels", sa.JSON, nullable=False, server_default="{}"),
        text("directory", server_default=""),
        text("directory_id", server_default=""),
        number("revision", "1"),
        sa.Column("removed_at", TIME),
    )
    platform_table(
        "tenant_turns",
        sa.Column("only_row", sa.Boolean, primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.CheckConstraint("only_row"),
        reason="one number that grows with every change of any tenant",
        service=("select", "update"),
    )
    op.bulk_insert(
        sa.table("tenant_turns", sa.column("only_row"), sa.column("generation"), schema=schema.name),
        [{"only_row": True, "generation": 0}],
    )
    # people
    platform_table(
        "users",
        text("id", primary_key=True),
        text("title"),
        text("email"),
        text("subject"),
        sa.Column("platform_roles", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        text("request_id"),
        number("revision", "1"),
        created(),
        reason="a person exists once, whatever tenants it is a member of",
        service=("select", "insert", "update", "delete"),
    )
    for column in ("subject", "request_id"):
        op.create_index(
            f"users_{column}",
            "users",
            [column],
            unique=True,
            schema=schema.name,
            postgresql_where=sa.text(f"{column} <> ''"),
        )
    tenant_table(
        "memberships",
        text("user_id"),
        sa.Column("roles", sa.ARRAY(sa.Text), nullable=False),
        text("group_name"),
        number("revision", "1"),
        created(),
        key=("user_id",),
        service=("select", "insert", "update", "delete"),
        worker=("select",),
    )
    op.create_index("memberships_of_user", "memberships", ["user_id"], schema=schema.name)
    # tokens: the user whose they are, where it is one that can be disabled and removed
    add("api_tokens", sa.Column("user_id", sa.Text))
    op.create_index("api_tokens_of_user", "api_tokens", ["user_id"], schema=schema.name)
    op.execute(f"grant delete on {schema.name}.api_tokens to {schema.service}")
    # signing keys: listed before they sign, and until the last token they signed has ended
    add("signing_keys", sa.Column("signs_at", TIME, nullable=False, server_default=sa.func.now()))
    op.execute(f"grant update, delete on {schema.name}.signing_keys to {schema.service}")
    platform_table(
        "retired_signing_keys",
        sa.Column("kid", sa.Text, primary_key=True),
        sa.Column("public", sa.LargeBinary, nullable=False),
        reason="verifies what the platform has signed for good, such as checkpoints of the audit",
        service=("select", "insert"),
    )
    # keys of tenants: a version is destroyed by emptying it; what is being wrapped anew
    op.alter_column("tenant_keys", "sealed", nullable=True, schema=schema.name)
    op.execute(f"grant update on {schema.name}.tenant_keys to {schema.service}")
    tenant_table(
        "rewraps",
        sa.Column("started_at", TIME, nullable=False, server_default=sa.func.now()),
        key=(),
        service=("select", "insert", "delete"),
        worker=("select",),
    )
    op.create_index(
        "credential_versions_of_key", "credential_versions", ["tenant", "key_version"], schema=schema.name
    )
    # the root key: which one is current, staged, previous; what it seals, under a second one too
    add("root_canary", text("state", server_default="CURRENT"), text("keeper", server_default="file"))
    for table in ("tenant_keys", "signing_keys", "platform_secrets"):
        add(table, sa.Column("sealed_other", sa.LargeBinary))
    op.execute(f"grant update, delete on {schema.name}.root_canary to {schema.service}")
    op.execute(f"grant update on {schema.name}.platform_secrets to {schema.service}")
    op.execute(f"grant select on {schema.name}.tenants to {schema.worker}")
