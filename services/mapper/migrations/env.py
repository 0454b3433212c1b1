"""Alembic looks for this file; what it does is the same for every service."""

from foundation.store.environment import run

run()
