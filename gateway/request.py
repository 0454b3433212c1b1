"""A delivery as it arrived, and how a webhook's description finds things in it.

Everything is read from the raw bytes. What is not there is absent, never empty; what cannot be parsed has
nothing in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from tieline.plugin.v1.webhook_pb2 import Body, Extractor

FORM_FIELDS = 1000


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    query: str
    headers: Sequence[tuple[str, bytes]]
    """Names in lower case, in the order in which they came."""
    body: bytes
    form: Body

    @cached_property
    def fields(self) -> dict[str, str]:
        """The body as a URL-encoded form, where the webhook says it is one; the first of each name."""
        if self.form.form not in (Body.FORM_FORM, Body.FORM_FORM_WITH_JSON):
            return {}
        return _pairs(self.body.decode("utf-8", "replace"))

    @cached_property
    def document(self) -> bytes | None:
        """The JSON text inside, wherever the webhook says it is."""
        if self.form.form in (Body.FORM_UNSPECIFIED, Body.FORM_JSON):
            return self.body
        if self.form.form == Body.FORM_FORM_WITH_JSON and self.form.field in self.fields:
            return self.fields[self.form.field].encode()
        return None

    @cached_property
    def json(self) -> Any:
        """The parsed document; None where there is none, or none that can be parsed."""
        try:
            return None if self.document is None else json.loads(self.document)
        except (ValueError, RecursionError):
            return None

    def header(self, name: str) -> str | None:
        wanted = name.lower()
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    def find(self, extractor: Extractor) -> str | None:
        """The one value that an extractor finds, or None."""
        return next(self.candidates(extractor), None)

    def candidates(self, extractor: Extractor) -> Iterator[str]:
        """Every value that an extractor finds: more than one only where it splits its text."""
        text = self._source(extractor)
        if text is None:
            return
        for part in text.split(extractor.separator) if extractor.separator else [text]:
            candidate = part.strip() if extractor.separator else part
            if candidate.startswith(extractor.prefix):
                yield candidate.removeprefix(extractor.prefix)

    def _source(self, extractor: Extractor) -> str | None:
        match extractor.WhichOneof("source"):
            case "header":
                return self.header(extractor.header)
            case "json":
                return _text(_resolve(self.json, extractor.json))
            case "form":
                return self.fields.get(extractor.form)
            case "query":
                return _pairs(self.query).get(extractor.query)
            case _:
                return None


def _pairs(encoded: str) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for name, value in parse_qsl(encoded, keep_blank_values=True, max_num_fields=FORM_FIELDS):
            found.setdefault(name, value)
    except ValueError:
        return {}
    return found


def _resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) points to, or None."""
    if pointer and not pointer.startswith("/"):
        return None
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isascii() and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return str(value)
