"""Verification as a pure function: every scheme that is served, every way to be refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.request import Request
from gateway.verification import Refusal, Secret, verify
from tieline.plugin.v1.webhook_pb2 import (
    ENCODING_BASE64,
    HASH_SHA1,
    HASH_SHA512,
    Body,
    Extractor,
    Signature,
    SignedPart,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = b"0123456789abcdef"
GITHUB = Signature(hmac=Signature.Hmac(signature=Extractor(header="x-signature", prefix="sha256=")))


def request(body: bytes = b"{}", form: Body | None = None, query: str = "", **headers: str) -> Request:
    named = [(name.replace("_", "-"), value.encode("latin-1")) for name, value in headers.items()]
    return Request("POST", "https://edge.example/hooks/x", query, named, body, form or Body())


def digest(body: bytes, key: bytes = KEY, algorithm: str = "sha256") -> str:
    return hmac.new(key, body, algorithm).hexdigest()


@given(st.binary(max_size=2000), st.binary(min_size=1, max_size=64))
def test_what_is_signed_with_the_secret_fits(body: bytes, key: bytes) -> None:
    assert (
        verify(GITHUB, [Secret(1, key)], request(body, x_signature=f"sha256={digest(body, key)}"), NOW) == 1
    )


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_changed_bit_of_the_body_does_not(body: bytes, data: st.DataObject) -> None:
    changed = bytearray(body)
    position = data.draw(st.integers(0, len(body) * 8 - 1))
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(Refusal, match="does not fit"):
        verify(GITHUB, [Secret(1, KEY)], request(bytes(changed), x_signature=f"sha256={digest(body)}"), NOW)


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_no_garbage_in_the_header_is_a_signature(text: str) -> None:
    with pytest.raises(Refusal):
        verify(GITHUB, [Secret(1, KEY)], request(x_signature=text), NOW)


def test_any_active_version_fits_and_the_newest_is_named() -> None:
    secrets = [Secret(3, b"newest"), Secret(2, KEY), Secret(1, KEY)]
    assert verify(GITHUB, secrets, request(x_signature=f"sha256={digest(b'{}')}"), NOW) == 2


@pytest.mark.parametrize("secrets", [[], [Secret(1, b"")]])
def test_without_a_secret_nothing_fits(secrets: list[Secret]) -> None:
    with pytest.raises(Refusal):
        verify(GITHUB, secrets, request(x_signature=f"sha256={digest(b'{}', b'')}"), NOW)


def test_other_hashes_and_encodings() -> None:
    for number, name in ((HASH_SHA1, "sha1"), (HASH_SHA512, "sha512")):
        scheme = Signature(hmac=Signature.Hmac(hash=number, signature=Extractor(header="x-signature")))
        assert verify(scheme, [Secret(1, KEY)], request(x_signature=digest(b"{}", KEY, name)), NOW)
    raw = hmac.new(KEY, b"{}", "sha256").digest()
    scheme = Signature(
        hmac=Signature.Hmac(signature=Extractor(header="x-signature"), encoding=ENCODING_BASE64)
    )
    for text in (base64.b64encode(raw).decode(), base64.b64encode(raw).decode().rstrip("=")):
        assert verify(scheme, [Secret(1, KEY)], request(x_signature=text), NOW)


STANDARD_WEBHOOKS = Signature(
    hmac=Signature.Hmac(
        signature=Extractor(header="webhook-signature", separator=" ", prefix="v1,"),
        encoding=ENCODING_BASE64,
        signed=[
            SignedPart(value=Extractor(header="webhook-id")),
            SignedPart(literal="."),
            SignedPart(value=Extractor(header="webhook-timestamp")),
            SignedPart(literal="."),
            SignedPart(body=True),
        ],
        key_encoding=ENCODING_BASE64,
        key_prefix="whsec_",
    ),
    timestamp=Signature.Timestamp(at=Extractor(header="webhook-timestamp")),
)


def standard(at: datetime, body: bytes = b"{}") -> Request:
    """As the Standard Webhooks specification signs."""
    stamp = str(int(at.timestamp()))
    raw = hmac.new(KEY, f"msg_1.{stamp}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1a,xxx v1,{base64.b64encode(b'another').decode()} v1,{base64.b64encode(raw).decode()}"
    return request(body, webhook_id="msg_1", webhook_timestamp=stamp, webhook_signature=signature)


def test_signed_parts_candidates_and_written_keys() -> None:
    secret = Secret(1, b"whsec_" + base64.b64encode(KEY))
    assert verify(STANDARD_WEBHOOKS, [secret], standard(NOW), NOW) == 1
    with pytest.raises(Refusal, match="does not fit"):
        verify(STANDARD_WEBHOOKS, [Secret(1, KEY)], standard(NOW), NOW)


@pytest.mark.parametrize("minutes", [-6, 6, 60 * 24 * 365])
def test_what_was_signed_long_ago_or_tomorrow_is_refused(minutes: int) -> None:
    secret = Secret(1, b"whsec_" + base64.b64encode(KEY))
    assert verify(STANDARD_WEBHOOKS, [secret], standard(NOW + timedelta(minutes=4)), NOW)
    with pytest.raises(Refusal, match="too long ago"):
        verify(STANDARD_WEBHOOKS, [secret], standard(NOW + timedelta(minutes=minutes)), NOW)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_part_that_is_not_there_refuses(missing: str) -> None:
    whole = standard(NOW)
    headers = [(name, value) for name, value in whole.headers if name != missing]
    secret = Secret(1, b"whsec_" + base64.b64encode(KEY))
    with pytest.raises(Refusal):
        verify(STANDARD_WEBHOOKS, [secret], Request("POST", whole.url, "", headers, whole.body, Body()), NOW)


def test_a_token_that_is_sent_along() -> None:
    scheme = Signature(token=Signature.Token(token=Extractor(header="x-gitlab-token")))
    assert verify(scheme, [Secret(4, KEY)], request(x_gitlab_token=KEY.decode()), NOW) == 4
    for wrong in ("", "0123456789abcdeF"):
        with pytest.raises(Refusal):
            verify(scheme, [Secret(4, KEY)], request(x_gitlab_token=wrong), NOW)


@pytest.mark.parametrize("scheme", ["certificate", "jwt", "custom", "unsigned"])
def test_what_is_not_served_is_closed(scheme: str) -> None:
    signature = Signature()
    getattr(signature, scheme).SetInParent()
    with pytest.raises(Refusal, match=f"the scheme {scheme} is not served"):
        verify(signature, [Secret(1, KEY)], request(), NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(JSON, st.text(max_size=20))
def test_any_pointer_into_any_document_finds_text_or_nothing(document: object, pointer: str) -> None:
    found = request(json.dumps(document).encode()).find(Extractor(json=pointer))
    assert found is None or isinstance(found, str)


@given(st.binary(max_size=500))
def test_any_body_can_be_looked_into(body: bytes) -> None:
    for form in (Body.FORM_JSON, Body.FORM_FORM, Body.FORM_FORM_WITH_JSON, Body.FORM_OPAQUE):
        looked = request(body, Body(form=form, field="payload"))
        looked.find(Extractor(json="/a/b"))
        looked.find(Extractor(form="a"))


def test_where_values_are_found() -> None:
    nested = {"a": {"b/c": [10, "x"]}, "n": 7, "t": True}
    looked = request(json.dumps(nested).encode(), query="q=1&q=2&e=")
    assert looked.find(Extractor(json="/a/b~1c/1")) == "x"
    assert looked.find(Extractor(json="/a/b~1c/0")) == "10"
    assert looked.find(Extractor(json="/n")) == "7"
    assert looked.find(Extractor(json="/t")) is None
    assert looked.find(Extractor(json="/a")) is None
    assert looked.find(Extractor(json="/a/b~1c/2")) is None
    assert looked.find(Extractor(query="q")) == "1"
    assert looked.find(Extractor(query="e")) == ""
    form = request(b"payload=%7B%22x%22%3A1%7D&y=2", Body(form=Body.FORM_FORM_WITH_JSON, field="payload"))
    assert form.document == b'{"x":1}'
    assert form.find(Extractor(json="/x")) == "1"
    assert form.find(Extractor(form="y")) == "2"
    assert request(b"[" * 100_000).find(Extractor(json="/0")) is None
