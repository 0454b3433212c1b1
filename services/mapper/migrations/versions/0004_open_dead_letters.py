"""Dead letters that nobody has dealt with are counted all the time, and soon they are few among many."""

from alembic import context, op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    schema = context.config.attributes["schema"].name
    op.execute(f"create index dead_letters_open on {schema}.dead_letters (connection) where state = 1")
