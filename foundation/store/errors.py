"""What can go wrong with the database, one type for each thing a caller would do about it.

Those that a caller of ours has to know about are problems of the catalogue, and reach it as such. The others
are faults of ours, or something that the code around the statement expects and handles.
"""

from foundation.errors import Code, Problem

# ruff: noqa: N818  a name says what happened; that it is an error, its base says


class StoreError(Exception):
    """The base of all of them."""


class StoreUnavailable(StoreError, Problem):
    """There is no connection to be had, or the one in use broke. Whether a commit arrived is then unknown."""

    def __init__(self, why: str) -> None:
        Problem.__init__(self, Code.DEPENDENCY_UNAVAILABLE, dependency="PostgreSQL", why=why)


class LoginRefused(StoreUnavailable):
    """PostgreSQL answers, but not to this user, password or database: waiting will not help."""


class TransactionConflict(StoreError, Problem):
    """Another transaction was in the way (deadlock, serialization, a changed table). Run the unit again."""

    def __init__(self, why: str) -> None:
        Problem.__init__(self, Code.CONFLICT, why=why)


class StoreTimeout(StoreUnavailable):
    """A statement, a lock or an idle transaction took longer than this process allows."""


class AccessRefused(StoreError):
    """A row of a foreign tenant, or a right that this role was never granted."""


class ConstraintViolated(StoreError):
    """The data contradict a constraint; `constraint` is its name, where it has one."""

    def __init__(self, message: str, constraint: str | None) -> None:
        super().__init__(message)
        self.constraint = constraint


class StatementFailed(StoreError):
    """Any other refusal of a statement: a fault of ours, with its SQLSTATE."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(f"{message} (SQLSTATE {sqlstate or 'unknown'})")
        self.sqlstate = sqlstate


class DataRefused(StatementFailed, Problem):
    """A value that no column can keep: a NUL in a text, a number or a time out of its range, a key too long.

    What we make ourselves is kept within bounds, so this came with the request, and whoever sent it is told.
    """

    def __init__(self, sqlstate: str) -> None:
        why = (
            f"the database cannot keep a value of it (SQLSTATE {sqlstate}): a NUL, or something out of bounds"
        )
        Problem.__init__(self, Code.INVALID_ARGUMENT, field="request", why=why)
        self.sqlstate = sqlstate


class StoreMisconfigured(StoreError):
    """A URL, a password or a set of migrations that cannot be right."""


class BootstrapRefused(StoreError):
    """This database or its roles are not in a state that we may take over."""


class MigrationFailed(StoreError):
    """A migration was refused by the database. Nothing of it remains."""
