"""How old a schema is, compared with what this code knows. Cheap: neither Alembic nor SQLAlchemy.

Migrations are files `versions/NNNN_title.py`, one line of them, so the newest number is the head. A number
used twice is two people's work that must be put in order, and is refused.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from foundation.store.errors import StoreMisconfigured
from foundation.store.identifiers import plain
from foundation.store.schemas import VERSION_TABLE, Schema

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.py")
_FLOOR = re.compile(r"oldest code: (\d{4})")


def head(migrations: Path) -> str:
    numbers = Counter(
        match[1] for path in (migrations / "versions").glob("*.py") if (match := _FILE.fullmatch(path.name))
    )
    if not numbers or max(numbers.values()) > 1:
        raise StoreMisconfigured(f"{migrations / 'versions'}: every migration needs a number of its own")
    return max(numbers)


@dataclass(frozen=True, slots=True)
class SchemaAge:
    """What a service asks before it calls itself ready.

    A newer schema is fine by default, because a migration must leave the previous code working (expand first;
    contract in a later release). One that cannot says so with `tenancy.oldest_code`, and is obeyed here.
    """

    schema: str
    known: str
    actual: str | None
    oldest_code: str | None = None

    @property
    def is_old(self) -> bool:
        return self.actual is None or self.actual < self.known

    @property
    def serves(self) -> bool:
        return not self.is_old and (self.oldest_code is None or self.known >= self.oldest_code)

    def __str__(self) -> str:
        if self.is_old:
            have = "has never been migrated" if self.actual is None else f"is at {self.actual}"
            return f"schema {self.schema} {have}, this code needs {self.known}: run the migrations"
        if not self.serves:
            return (
                f"schema {self.schema} is at {self.actual} and needs code that knows {self.oldest_code}, "
                f"this code knows {self.known}: start a newer release"
            )
        return f"schema {self.schema} is at {self.actual}"


def age_query(schema: Schema) -> str:
    table = f"{plain(schema.name)}.{plain(VERSION_TABLE)}"
    return f"select version_num, obj_description('{table}'::regclass, 'pg_class') from {table}"  # noqa: S608  plain


def age(schema: Schema, row: tuple[str, str | None] | None) -> SchemaAge:
    """From the query's row, or None where there is no table yet."""
    actual, comment = row or (None, None)
    floor = _FLOOR.fullmatch(comment or "")
    return SchemaAge(schema.name, head(schema.migrations), actual, floor[1] if floor else None)
