"""From a delivery to an event that everybody was told: the inbox, the store, the outbox, the cursors.

* `deliveries` holds what arrived and is never changed. `inbox` holds how it stands, in rows so small that
  changing them often does no harm; it also recognises what comes again.
* The work is found in `inbox_waiting`, which has an entry only while something waits. The oldest entry of a
  connection is its head: when the head has to wait, its connection does, and nobody else.
* An event, its entities and the row that asks for its publication are written with the new state of the
  delivery it came from, or not at all.
"""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.identifiers import plain
from foundation.store.tenancy import tenant_table

revision = "0002"
down_revision = "0001"


def _text(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=False, **options)


def _time(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), **({"nullable": False} | options))


def _column(name: str, kind: type[sa.types.TypeEngine], **options: object) -> sa.Column:
    return sa.Column(name, kind, **({"nullable": False} | options))


def upgrade() -> None:
    _deliveries()
    _inbox()
    _events()
    _outbox()
    _subscriptions()
    _leases()


def _deliveries() -> None:
    tenant_table(
        "deliveries",
        _column("id", sa.Uuid),
        _text("connection"),
        _text("channel"),
        _text("key"),
        _text("event_type"),
        _text("content_type"),
        _text("query"),
        _column("headers", sa.LargeBinary),
        _column("body", sa.LargeBinary),
        _column("sha256", sa.LargeBinary),
        _time("received_at"),
        _column("verified", sa.Boolean),
        _column("secret_version", sa.BigInteger),
        _text("account_key"),
        _text("traceparent"),
        key=["id"],
        service=["select", "insert"],
        worker=["select"],
    )


def _inbox() -> None:
    tenant_table(
        "inbox",
        _column("delivery", sa.Uuid),
        _text("connection"),
        _text("channel"),
        _text("key"),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True)),
        _column("partition", sa.SmallInteger),
        _column("priority", sa.SmallInteger),
        _column("size", sa.Integer),
        _time("received_at"),
        _column("state", sa.SmallInteger, server_default="0"),
        _column("attempts", sa.SmallInteger, server_default="0"),
        _time("due_at", server_default=sa.func.now()),
        _time("finished_at", nullable=True),
        _text("reason", server_default=""),
        _column("events", sa.ARRAY(sa.Uuid), nullable=True),
        key=["delivery"],
        service=["select", "insert", "update"],
        worker=["select", "update"],
    )
    op.execute("create unique index inbox_repeats on inbox (tenant, connection, channel, key)")
    op.execute(
        "create index inbox_waiting on inbox (partition, tenant, connection, position) where state = 0"
    )
    tenant_table(
        "dead_letters",
        _column("delivery", sa.Uuid),
        _text("connection"),
        _text("channel"),
        _text("event_type"),
        _column("stage", sa.SmallInteger),
        _text("reason"),
        _column("failure", sa.LargeBinary),
        _column("diagnostics", sa.ARRAY(sa.LargeBinary)),
        _column("attempts", sa.SmallInteger),
        _text("plugin_version"),
        _column("state", sa.SmallInteger),
        _time("created_at", server_default=sa.func.now()),
        _time("tried_at", server_default=sa.func.now()),
        key=["delivery"],
        service=["select", "insert", "update"],
        worker=["select"],
    )


def _events() -> None:
    tenant_table(
        "events",
        _column("id", sa.Uuid),
        _text("connection"),
        _column("category", sa.SmallInteger),
        _text("type"),
        _column("severity", sa.SmallInteger),
        _time("occurred_at"),
        _time("stored_at"),
        _column("content", sa.LargeBinary),
        key=["id"],
        service=["select", "insert"],
        worker=["select"],
    )
    op.execute("create index events_by_time on events (tenant, occurred_at desc, id desc)")
    tenant_table(
        "entities",
        _text("kind"),
        _text("id"),
        _time("occurred_at"),
        _column("event", sa.Uuid),
        key=["kind", "id", "occurred_at", "event"],
        service=["select", "insert"],
    )


def _outbox() -> None:
    tenant_table(
        "outbox",
        _column("event", sa.Uuid),
        sa.Column("queued", sa.BigInteger, sa.Identity(always=True)),
        _text("traceparent"),
        _time("published_at", nullable=True),
        _column("number", sa.BigInteger, nullable=True),
        key=["event"],
        service=["select", "insert"],
        worker=["select", "update"],
    )
    op.execute("create index outbox_queued on outbox (queued) where published_at is null")
    op.execute("create index outbox_published on outbox (published_at) where published_at is not null")


def _subscriptions() -> None:
    tenant_table(
        "subscriptions",
        _text("id"),
        _text("title"),
        _column("filter", sa.LargeBinary),
        _text("request_id"),
        _time("created_at"),
        key=["id"],
        service=["select", "insert"],
    )
    # Apart, since a cursor moves all the time and its subscription hardly ever.
    tenant_table(
        "cursors",
        _text("subscription"),
        _column("number", sa.BigInteger),
        key=["subscription"],
        service=["select", "insert", "update"],
    )


def _leases() -> None:
    """Shares of the work, and who is there to take some. Nobody's rows, so there is no tenant."""
    op.execute("""
        create table leases (
            kind text collate "C" not null,
            number smallint not null,
            owner uuid not null,
            fence bigint not null default 1,
            expires_at timestamptz not null,
            primary key (kind, number)
        )
    """)
    op.execute("""
        create table members (
            owner uuid primary key,
            expires_at timestamptz not null
        )
    """)
    worker = context.config.attributes["schema"].worker
    for table, why in {
        "leases": "which process does which share of the work",
        "members": "who shares it",
    }.items():
        op.execute(f"comment on table {table} is 'platform: {why}'")
        op.execute(f"grant select, insert, update, delete on {table} to {plain(worker)}")
