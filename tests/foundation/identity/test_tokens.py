from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey

from foundation.clock import SteeredClock
from foundation.errors import Code, Problem
from foundation.identity import Kind, NoKeys, Principal, Role, TokenSigner, TokenVerifier
from tieline.common.v1 import options_pb2 as contract

KEY = OKPKey.generate_key("Ed25519")
CLOCK = SteeredClock()
ADA = Principal(
    Kind.USER,
    "ada",
    platform_roles=frozenset({Role.PLATFORM_ADMIN}),
    tenant_roles={"acme": frozenset({Role.VIEWER, Role.OPERATOR})},
)


class OneKey:
    def key(self, kid: str) -> OKPKey | None:
        return KEY if kid == KEY.thumbprint() else None


def verify(token: str, clock: SteeredClock = CLOCK) -> Principal:
    return TokenVerifier(OneKey(), clock).authenticate(token)


def sign(claims: dict[str, Any], key: Any = KEY, algorithm: str = "Ed25519") -> str:
    header = {"alg": algorithm, "kid": KEY.thumbprint()}
    return jwt.encode(header, claims, key, algorithms=[algorithm])


def claims(**changed: Any) -> dict[str, Any]:
    now = int(CLOCK.now().timestamp())
    whole = {"iss": "tieline", "sub": "ada", "kind": "user", "tenants": {}, "iat": now, "exp": now + 60}
    return {name: value for name, value in (whole | changed).items() if value is not None}


def test_a_token_brings_its_principal_back() -> None:
    back = verify(TokenSigner(KEY, CLOCK).sign(ADA, timedelta(minutes=5)))
    assert back == ADA
    assert back.roles_in("acme") == {Role.VIEWER, Role.OPERATOR, Role.PLATFORM_ADMIN}
    assert back.roles_in("other") == {Role.PLATFORM_ADMIN}


async def test_a_token_ends() -> None:
    clock = SteeredClock()
    token = TokenSigner(KEY, clock).sign(ADA, timedelta(minutes=5))
    await clock.advance(300 + 29)
    verify(token, clock)
    await clock.advance(2)
    with pytest.raises(Problem, match="it has expired"):
        verify(token, clock)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"iss": "somebody"}, "not made for this platform"),
        ({"iss": None}, "not made for this platform"),
        ({"exp": None}, "not made for this platform"),
        ({"exp": "never"}, "not made for this platform"),
        ({"iat": 4102444800, "exp": 4102444860}, "not valid yet"),
        ({"exp": int(CLOCK.now().timestamp()) + 7200}, "lives longer"),
        ({"exp": 10**400}, "lives longer"),
        ({"iat": 10**400, "exp": 10**400}, "not valid yet"),
        ({"iat": -(10**400)}, "lives longer"),
        ({"sub": None}, "incomplete"),
        ({"kind": "god"}, "incomplete"),
        ({"tenants": None}, "incomplete"),
        ({"tenants": ["acme"]}, "incomplete"),
        ({"tenants": {"acme": ["owner"]}}, "incomplete"),
        ({"roles": ["root"]}, "incomplete"),
        ({"roles": ["service"]}, "own processes"),
        ({"tenants": {"acme": ["service"]}}, "own processes"),
    ],
)
def test_claims_that_do_not_hold_together_are_refused(changed: dict[str, Any], why: str) -> None:
    verify(sign(claims()))
    with pytest.raises(Problem, match=why):
        verify(sign(claims(**changed)))


def test_every_word_of_the_contract_is_known() -> None:
    for enum, known, prefix in (
        (contract.Role, Role, "ROLE_"),
        (contract.PrincipalKind, Kind, "PRINCIPAL_KIND_"),
    ):
        names = {name.removeprefix(prefix) for name in enum.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - an enum wrapper is no mapping
        assert names == {member.name for member in known}


def test_another_key_or_another_algorithm_proves_nothing() -> None:
    with pytest.raises(Problem, match="signature does not fit"):
        verify(sign(claims(), OKPKey.generate_key("Ed25519")))
    shared = OctKey.import_key(str(KEY.as_dict(private=False)["x"]).encode())
    with pytest.raises(Problem, match="signature does not fit"):
        verify(sign(claims(), shared, "HS256"))
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": KEY.thumbprint()}).encode()).rstrip(
        b"="
    )
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
    with pytest.raises(Problem):
        verify(f"{head.decode()}.{body.decode()}.")


def test_without_keys_nothing_is_valid() -> None:
    with pytest.raises(Problem, match="not, or no longer, ours"):
        TokenVerifier(NoKeys(), CLOCK).authenticate(sign(claims()))


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_whatever_else_arrives_is_no_token(text: str) -> None:
    with pytest.raises(Problem) as refused:
        verify(text)
    assert refused.value.code is Code.TOKEN_INVALID


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_changed_bit_is_refused(position: int, bit: int) -> None:
    token = bytearray(sign(claims()).encode())
    place = position % len(token)
    token[place] ^= 1 << bit
    # The last character of a base64 text holds bits that carry nothing.
    if place == len(token) - 1:
        return
    with pytest.raises(Problem):
        verify(token.decode("latin-1"))
