"""What schedules are kept in."""

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    pass
