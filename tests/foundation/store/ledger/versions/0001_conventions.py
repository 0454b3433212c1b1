from foundation.store.tenancy import lay_conventions

revision = "0001"
down_revision = None


def upgrade() -> None:
    lay_conventions()
