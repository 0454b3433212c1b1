"""Whether the provider sent it: computed over the raw bytes, in constant time, with every active secret.

Closed by default. A scheme that is not known here, a secret that is missing, a part of the signed text that
is not there: each refuses. A refusal says which of these it was to the log, never to the sender.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.request import Request
from tieline.plugin.v1.webhook_pb2 import (
    ENCODING_BASE64,
    ENCODING_BASE64URL,
    ENCODING_HEX,
    ENCODING_UNSPECIFIED,
    HASH_SHA1,
    HASH_SHA256,
    HASH_SHA512,
    HASH_UNSPECIFIED,
    TIME_FORMAT_RFC3339,
    TIME_FORMAT_UNIX_MILLIS,
    Signature,
    SignedPart,
)

_HASHES: dict[int, Callable[[], Any]] = {
    HASH_UNSPECIFIED: hashlib.sha256,
    HASH_SHA256: hashlib.sha256,
    HASH_SHA1: hashlib.sha1,
    HASH_SHA512: hashlib.sha512,
}
DEFAULT_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Secret:
    """One active version of an endpoint's secret."""

    version: int
    value: bytes

    def __repr__(self) -> str:
        return f"Secret(version={self.version})"


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """The request is not what it claims to be; the text is for our log."""


def verify(signature: Signature, secrets: Sequence[Secret], request: Request, now: datetime) -> int:
    """The version of the secret that fitted; a `Refusal` in every other case."""
    if not secrets:
        raise Refusal("the endpoint has no secret")
    match signature.WhichOneof("scheme"):
        case "hmac":
            version = _verify_hmac(signature.hmac, secrets, request)
        case "token":
            version = _verify_token(signature.token, secrets, request)
        case scheme:
            raise Refusal(f"the scheme {scheme or 'none'} is not served")
    if signature.HasField("timestamp"):
        _verify_time(signature.timestamp, request, now)
    return version


def _verify_hmac(scheme: Signature.Hmac, secrets: Sequence[Secret], request: Request) -> int:
    given = [raw for text in request.candidates(scheme.signature) if (raw := _decode(text, scheme.encoding))]
    if not given:
        raise Refusal("there is no signature")
    if scheme.hash not in _HASHES:
        raise Refusal("the hash is not served")
    signed = _signed(scheme.signed, request)
    # Every version is computed and every candidate compared, so that time tells nothing about either.
    fitting = 0
    for secret in secrets:
        key = _key(scheme, secret.value)
        if not key:
            continue
        wanted = hmac.new(key, signed, _HASHES[scheme.hash]).digest()
        for candidate in given:
            if hmac.compare_digest(wanted, candidate):
                fitting = max(fitting, secret.version)
    if not fitting:
        raise Refusal("the signature does not fit")
    return fitting


def _verify_token(scheme: Signature.Token, secrets: Sequence[Secret], request: Request) -> int:
    fitting = 0
    for text in request.candidates(scheme.token):
        for secret in secrets:
            if secret.value and hmac.compare_digest(secret.value, text.encode("latin-1", "replace")):
                fitting = max(fitting, secret.version)
    if not fitting:
        raise Refusal("the token does not fit")
    return fitting


def _verify_time(timestamp: Signature.Timestamp, request: Request, now: datetime) -> None:
    text = request.find(timestamp.at)
    try:
        at = _moment(text or "", timestamp.format)
    except (ValueError, OverflowError, OSError):
        raise Refusal("it does not say when it was signed") from None
    tolerance = timestamp.tolerance.ToTimedelta() if timestamp.HasField("tolerance") else DEFAULT_TOLERANCE
    if abs(now - at) > tolerance:
        raise Refusal("it was signed too long ago, or by a clock that is wrong")


def _moment(text: str, form: int) -> datetime:
    if form == TIME_FORMAT_RFC3339:
        at = datetime.fromisoformat(text)
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    seconds = int(text) / (1000 if form == TIME_FORMAT_UNIX_MILLIS else 1)
    return datetime.fromtimestamp(seconds, UTC)


def _signed(parts: Iterable[SignedPart], request: Request) -> bytes:
    pieces = [_piece(part, request) for part in parts]
    return b"".join(pieces) if pieces else request.body


def _piece(part: SignedPart, request: Request) -> bytes:
    match part.WhichOneof("part"):
        case "literal":
            return part.literal.encode()
        case "value":
            found = request.find(part.value)
            if found is None:
                raise Refusal("a part of what was signed is not there")
            return found.encode()
        case "body":
            return request.body
        case "url":
            return request.url.encode()
        case other:
            raise Refusal(f"the signed part {other or 'none'} is not served")


def _key(scheme: Signature.Hmac, secret: bytes) -> bytes | None:
    bare = secret.removeprefix(scheme.key_prefix.encode())
    if scheme.key_encoding == ENCODING_UNSPECIFIED:
        return bare
    return _decode(bare.decode("latin-1"), scheme.key_encoding)


def _decode(text: str, encoding: int) -> bytes | None:
    """Bytes written as text; None where they are not."""
    try:
        if encoding in (ENCODING_UNSPECIFIED, ENCODING_HEX):
            return bytes.fromhex(text) if text.isalnum() else None
        if encoding in (ENCODING_BASE64, ENCODING_BASE64URL):
            alternatives = b"-_" if encoding == ENCODING_BASE64URL else None
            return base64.b64decode(text + "=" * (-len(text) % 4), altchars=alternatives, validate=True)
    except (ValueError, binascii.Error):
        return None
    return None
