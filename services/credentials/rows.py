"""How a query's rows become the dataclasses that name their columns."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

Row = TypeVar("Row")


def columns(row: type[Any]) -> str:
    return ", ".join(field.name for field in fields(row))


async def one(work: AsyncConnection, row: type[Row], sql: str, **values: Any) -> Row | None:
    found = (await work.execute(text(sql), values)).mappings().one_or_none()
    return None if found is None else row(**found)


async def every(work: AsyncConnection, row: type[Row], sql: str, **values: Any) -> list[Row]:
    return [row(**found) for found in (await work.execute(text(sql), values)).mappings()]


async def run(work: AsyncConnection, sql: str, **values: Any) -> int:
    """How many rows it touched."""
    return (await work.execute(text(sql), values)).rowcount


def parameters(row: Any) -> dict[str, Any]:
    """A row's columns as parameters; what is a mapping goes in as JSON."""
    return {
        name: json.dumps(value) if isinstance(value, dict) else value for name, value in asdict(row).items()
    }
