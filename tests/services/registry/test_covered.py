"""What a signature vouches for: an account may be read there and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from services.registry.catalogue.covered import is_covered
from tieline.plugin.v1.webhook_pb2 import Extractor, Signature, SignedPart

JSON, FORM, QUERY = Extractor(json="/team"), Extractor(form="team"), Extractor(query="team")
HEADER, CLAIM = Extractor(header="X-Team"), Extractor(claim="iss")
EVERYWHERE = (JSON, FORM, QUERY, HEADER, CLAIM)
BODY, URL = SignedPart(body=True), SignedPart(url=True)


def hmac(*signed: SignedPart) -> Signature:
    return Signature(hmac=Signature.Hmac(signed=signed))


def jwt(**bound: Any) -> Signature:
    return Signature(jwt=Signature.Jwt(algorithms=["HS256"], **bound))


@pytest.mark.parametrize(
    ("signature", "covered"),
    [
        (hmac(), (JSON, FORM)),
        (hmac(SignedPart(literal="v0:"), BODY), (JSON, FORM)),
        (hmac(SignedPart(value=Extractor(header="x-team"))), (HEADER,)),
        (hmac(SignedPart(value=Extractor(header="x-other"))), ()),
        (hmac(URL, BODY), (JSON, FORM, QUERY)),
        (hmac(SignedPart(value=Extractor(query="team"))), (QUERY,)),
        (hmac(SignedPart(members=SignedPart.Members(names=["team"]))), (JSON,)),
        (hmac(SignedPart(members=SignedPart.Members(names=["other"]))), ()),
        (Signature(certificate=Signature.Certificate()), (JSON, FORM)),
        (jwt(), (CLAIM,)),
        (jwt(body_hash_claim="b", request_hash_claim="q"), (JSON, FORM, QUERY, CLAIM)),
        (Signature(token=Signature.Token()), (JSON, FORM, QUERY, HEADER)),
        (Signature(custom=Signature.Custom()), (JSON, FORM, QUERY, HEADER)),
        (Signature(unsigned=Signature.Unsigned()), ()),
        (Signature(), ()),
    ],
)
def test_only_what_is_signed_names_an_account(signature: Signature, covered: tuple[Extractor, ...]) -> None:
    assert [one for one in EVERYWHERE if is_covered(one, signature)] == list(covered)
