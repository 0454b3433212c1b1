"""What a manifest says about a signature is enough to check one: shown on the providers' own published examples."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.contracts.manifest_toml import read_manifest
from tests.contracts.test_paper_manifests import DECISIONS, toml_of

if TYPE_CHECKING:
    from tieline.plugin.v1.webhook_pb2 import Extractor, SignedPart, Webhook


@dataclass
class Request:
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def webhook_of(page: str, name: str) -> Webhook:
    manifest = read_manifest(toml_of(DECISIONS / page))
    return next(webhook for webhook in manifest.webhooks if webhook.name == name)


def extract(extractor: Extractor, request: Request) -> str:
    assert extractor.WhichOneof("source") == "header"
    value = request.headers[extractor.header]
    assert value.startswith(extractor.prefix)
    return value.removeprefix(extractor.prefix)


def signed_bytes(parts: list[SignedPart], request: Request) -> bytes:
    return b"".join(part_bytes(part, request) for part in parts) if parts else request.body


def part_bytes(part: SignedPart, request: Request) -> bytes:
    match part.WhichOneof("part"):
        case "literal":
            return part.literal.encode()
        case "value":
            return extract(part.value, request).encode()
        case "body":
            return request.body
        case "members":
            document = json.loads(request.body)
            there = [name for name in part.members.names if name in document]
            return "".join(f"{name}\n{document[name]}\n" for name in there).encode()
        case other:
            raise AssertionError(other)


def verifies(webhook: Webhook, secret: str, request: Request) -> bool:
    scheme = webhook.signature.hmac
    made = hmac.new(secret.encode(), signed_bytes(list(scheme.signed), request), hashlib.sha256)
    return hmac.compare_digest(made.hexdigest(), extract(scheme.signature, request))


GITHUB = Request(
    b"Hello, World!",
    {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
)
SLACK = Request(
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
    {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    },
)


@pytest.mark.parametrize(
    ("page", "name", "secret", "request_"),
    [
        ("003-manifest-github.md", "events", "It's a Secret to Everybody", GITHUB),
        ("005-manifest-slack.md", "commands", "8f742231b10e8888abcd99yyyzzz85a5", SLACK),
    ],
)
def test_published_examples_verify(page: str, name: str, secret: str, request_: Request) -> None:
    webhook = webhook_of(page, name)
    assert verifies(webhook, secret, request_)
    assert not verifies(webhook, f"{secret}!", request_)
    assert not verifies(webhook, secret, Request(request_.body + b" ", request_.headers))


def test_sns_signs_the_members_that_are_there() -> None:
    parts = list(webhook_of("004-manifest-cloudwatch.md", "sns").signature.certificate.signed)
    common = {"Message": "hi", "MessageId": "1", "Timestamp": "now", "TopicArn": "arn", "Signature": "x"}
    notice = json.dumps({"Type": "Notification", "UnsubscribeURL": "https://u", **common}).encode()
    assert signed_bytes(parts, Request(notice)) == (
        b"Message\nhi\nMessageId\n1\nTimestamp\nnow\nTopicArn\narn\nType\nNotification\n"
    )
    shake = {"Type": "SubscriptionConfirmation", "SubscribeURL": "https://s", "Token": "t", **common}
    assert signed_bytes(parts, Request(json.dumps(shake).encode())) == (
        b"Message\nhi\nMessageId\n1\nSubscribeURL\nhttps://s\nTimestamp\nnow\nToken\nt\n"
        b"TopicArn\narn\nType\nSubscriptionConfirmation\n"
    )
