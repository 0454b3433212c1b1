"""From the driver's errors to ours, by SQLSTATE.

PostgreSQL's DETAIL quotes rows, its messages about data quote values, and so do the driver's own; any of them
may be a secret. So only primary messages about anything else are taken over, and the chain to the original is
cut; its traceback is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from foundation.store.errors import (
    AccessRefused,
    ConstraintViolated,
    DataRefused,
    StatementFailed,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    TransactionConflict,
)

_UNAVAILABLE = ("08", "57P", "53")  # connection exceptions, shutdowns, resources used up
_TIMEOUTS = frozenset({"57014", "55P03", "25P03", "25P04"})
_CONFLICTS = frozenset({"40001", "40P01"})
_INSUFFICIENT_PRIVILEGE = "42501"
_INTEGRITY = "23"
_DATA = "22"
_BEYOND_AN_INDEX = "54000"  # a limit of the program; the one that data can reach is the size of a key


@contextmanager
def typed_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise translate(error).with_traceback(error.__traceback__) from None
    except PoolTimeout as error:
        raise StoreUnavailable("every connection of the pool is in use") from error


def translate(error: DBAPIError) -> StoreError:
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    # `orig` is SQLAlchemy's adaption; asyncpg's own exception, with its fields, is the cause.
    cause = error.orig.__cause__ if error.orig else None
    message = _message(cause or error.orig, sqlstate)
    if sqlstate in _TIMEOUTS:
        return StoreTimeout(message)
    if error.connection_invalidated or (sqlstate or "").startswith(_UNAVAILABLE):
        return StoreUnavailable(message)
    # A migration that passed under a connection spoils its cached plans. SQLAlchemy has thrown them away.
    if sqlstate in _CONFLICTS or isinstance(cause, asyncpg.InvalidCachedStatementError):
        return TransactionConflict(message)
    if sqlstate == _INSUFFICIENT_PRIVILEGE:
        return AccessRefused(message)
    if sqlstate and sqlstate.startswith(_INTEGRITY):
        return ConstraintViolated(message, getattr(cause, "constraint_name", None))
    about_data = sqlstate if (sqlstate or "").startswith((_DATA, _BEYOND_AN_INDEX)) else None
    return DataRefused(about_data) if about_data else StatementFailed(message, sqlstate)


def _message(error: BaseException | None, sqlstate: str | None) -> str:
    message = getattr(error, "message", None)
    if not isinstance(message, str) or (sqlstate or "").startswith(_DATA):
        return type(error).__name__
    return message
