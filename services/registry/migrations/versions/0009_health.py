"""What people are told about their connections, and how each connection is."""

from foundation.notices.table import notices_table

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    notices_table()
