"""JSON that goes to a plugin or comes from it, held against the schemas of its manifest."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NoReturn

import jsonschema_rs

FAULTS_TOLD = 5
BYTES = 1024 * 1024


class Unfit(ValueError):  # noqa: N818 - it does not fit
    """What is wrong with a document, without its values: they may hold what the tenant would call secret."""


def canonical(raw: bytes, schema: bytes, limit: int = BYTES) -> bytes:
    """The same object always as the same bytes; nothing at all is the empty object. Unfit if it cannot be."""
    if len(raw) > limit:
        raise Unfit(f"it is larger than {limit} bytes")
    try:
        document: Any = json.loads(raw or b"{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Unfit("it is not a JSON object")
    faults = list(_validator(schema).iter_errors(document)) if schema else []
    if faults:
        raise Unfit("; ".join(map(_told, faults[:FAULTS_TOLD])))
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@lru_cache(maxsize=1000)
def _validator(schema: bytes) -> Any:
    return jsonschema_rs.validator_for(json.loads(schema), mask="the value")


def _told(fault: Any) -> str:
    place = "".join(f"/{part}" for part in fault.instance_path)
    return f"{place or '/'}: {fault.message}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
