"""What each kind takes and refuses, and what a holder is given of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa
from cryptography.hazmat.primitives.serialization import PrivateFormat
from hypothesis import given, settings

from foundation.errors import Code, Problem
from services.credentials.credential.kinds import KINDS, Rules, accept, makes_sessions, released
from tests.services.credentials.values import (
    BY_KIND,
    certificate,
    other_keys,
    pem,
    rsa_key,
    service_account,
    values,
)
from tieline.common.v1 import options_pb2 as contract
from tieline.common.v1.credential_pb2 import CredentialKind
from tieline.credentials.v1.secrets_pb2 import (
    ApiKey,
    AwsKeys,
    AwsRole,
    Basic,
    BearerToken,
    GithubApp,
    Mtls,
    Oauth2AuthorizationCode,
    Oauth2ClientCredentials,
    PrivateKey,
    SecretValue,
    ServiceAccount,
    WebhookSecret,
)

NOW = datetime.now(UTC)
RULES = Rules(NOW)
KEY_ID, KEY = "AKIA0123456789ABCDEF", "s" * 40
ARN = "arn:aws:iam::123456789012:role/tieline"
HTTPS = "https://provider.example/token"


def test_every_kind_of_the_contract_is_here_and_has_values_to_try() -> None:
    named = {name.removeprefix("CREDENTIAL_KIND_") for name in CredentialKind.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert set(KINDS) == named == {kind.upper() for kind in BY_KIND}


@settings(max_examples=100, deadline=None)
@given(values)
def test_any_good_value_is_taken_as_it_is_and_shows_no_secret(value: SecretValue) -> None:
    taken = accept(value, RULES)
    assert SecretValue.FromString(taken.plain) == value
    part = getattr(value, taken.kind.lower())
    secret = {of.name for of in part.DESCRIPTOR.fields if of.GetOptions().Extensions[contract.sensitive]}
    assert not secret & set(taken.attributes)
    given_out = released(taken.kind, taken.plain)
    assert set(given_out) <= set(KINDS[taken.kind].released)
    if not makes_sessions(taken.kind, taken.attributes):
        for name, content in given_out.items():
            kept = getattr(part, name)
            assert content == (kept.encode() if isinstance(kept, str) else kept)


def test_what_others_may_be_made_of_never_leaves() -> None:
    never = {"refresh_token", "client_secret", "external_id", "base"}
    assert not never & {name for kind in KINDS.values() for name in kind.released}
    assert KINDS["GITHUB_APP"].released == ("token",)


def _oauth(**changed: str) -> SecretValue:
    fields = {"client_id": "c", "authorization_url": HTTPS, "token_url": HTTPS} | changed
    return SecretValue(oauth2_authorization_code=Oauth2AuthorizationCode(**fields))


def _machine(**changed: str) -> SecretValue:
    fields = {"client_id": "c", "client_secret": "s", "token_url": HTTPS} | changed
    return SecretValue(oauth2_client_credentials=Oauth2ClientCredentials(**fields))


def _app(**changed: str) -> SecretValue:
    fields = {"app_id": "1", "installation_id": "2", "private_key": pem(rsa_key())} | changed
    return SecretValue(github_app=GithubApp(**fields))


def _pem(text: str, passphrase: str = "") -> SecretValue:
    return SecretValue(private_key=PrivateKey(private_key=text, passphrase=passphrase))


def _exchange(document: bytes, *scopes: str) -> SecretValue:
    return SecretValue(service_account=ServiceAccount(document=document, scopes=scopes or ["read"]))


def _mtls(chain: str, key: str) -> SecretValue:
    return SecretValue(mtls=Mtls(certificate=chain, private_key=key))


def refused() -> list[tuple[SecretValue, str, str]]:
    """Value, the field that is named, words that say what is wrong."""
    p256, p521 = pem(other_keys()["P-256"]), pem(other_keys()["P-521"])
    locked = pem(rsa_key(), "open sesame")
    return [
        (SecretValue(), "value", "no kind"),
        (SecretValue(api_key=ApiKey()), "value.api_key.key", "empty"),
        (SecretValue(api_key=ApiKey(key="a\0b")), "value.api_key.key", "NUL"),
        (SecretValue(api_key=ApiKey(key="key\n")), "value.api_key.key", "line break"),
        (SecretValue(api_key=ApiKey(key="x" * 1_048_576)), "value.api_key.key", "1048576 bytes"),
        (SecretValue(bearer_token=BearerToken()), "value.bearer_token.token", "empty"),
        (SecretValue(bearer_token=BearerToken(token="Bearer x")), "value.bearer_token.token", "Bearer"),
        (SecretValue(basic=Basic(username="a:b", password="x")), "value.basic.username", "colon"),
        (SecretValue(basic=Basic(password="x")), "value.basic.username", "empty"),
        (
            SecretValue(webhook_secret=WebhookSecret(secret="15 bytes are no")),
            "value.webhook_secret.secret",
            "16",
        ),
        (
            _pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "value.private_key.private_key",
            "PEM",
        ),
        (_pem("no key"), "value.private_key.private_key", "PEM"),
        (_pem(pem(rsa_key(1024))), "value.private_key.private_key", "1024 bits"),
        (_pem(p521), "value.private_key.private_key", "secp521r1"),
        (_pem(dsa_pem()), "value.private_key.private_key", "no RSA"),
        (_pem(locked), "value.private_key.passphrase", "encrypted"),
        (_pem(locked, "wrong"), "value.private_key.passphrase", "does not open"),
        (_pem(p256, "needless"), "value.private_key.passphrase", "not encrypted"),
        (_app(app_id="no id!"), "value.github_app.app_id", "app's id"),
        (_app(installation_id="x"), "value.github_app.installation_id", "digits"),
        (_app(private_key=p256), "value.github_app.private_key", "no RSA key"),
        (_app(api_url="http://ghe.example"), "value.github_app.api_url", "https://"),
        (
            SecretValue(aws_keys=AwsKeys(access_key_id="x", secret_access_key=KEY)),
            "value.aws_keys.access_key_id",
            "AKIA",
        ),
        (
            SecretValue(aws_keys=AwsKeys(access_key_id=KEY_ID, secret_access_key="x")),
            "value.aws_keys.secret_access_key",
            "secret of",
        ),
        (
            SecretValue(aws_keys=AwsKeys(access_key_id="ASIA0123456789ABCDEF", secret_access_key=KEY)),
            "value.aws_keys.session_token",
            "ASIA",
        ),
        (
            SecretValue(aws_role=AwsRole(role_arn="arn:aws:iam::1:user/x", external_id="id")),
            "value.aws_role.role_arn",
            "ARN of a role",
        ),
        (SecretValue(aws_role=AwsRole(role_arn=ARN)), "value.aws_role.external_id", "others could"),
        (
            SecretValue(aws_role=AwsRole(role_arn=ARN, base=AwsKeys(access_key_id=KEY_ID))),
            "value.aws_role.base.secret_access_key",
            "empty",
        ),
        (
            SecretValue(aws_role=AwsRole(role_arn=ARN, external_id="ok", region="here")),
            "value.aws_role.region",
            "region",
        ),
        (_exchange(b"{not json"), "value.service_account.document", "JSON"),
        (_exchange(b"[1]"), "value.service_account.document", "object"),
        (_exchange(service_account(client_email=None)), "value.service_account.document", "client_email"),
        (
            _exchange(service_account(token_uri="http://x.example")),
            "value.service_account.document.token_uri",
            "https",
        ),
        (_exchange(service_account(private_key="x")), "value.service_account.document.private_key", "PEM"),
        (_exchange(service_account(), "two words"), "value.service_account.scopes", "scope"),
        (_oauth(client_id=""), "value.oauth2_authorization_code.client_id", "empty"),
        (_oauth(token_url="http://127.0.0.1/token"), "value.oauth2_authorization_code.token_url", "https://"),
        (_oauth(token_url="https://user:pw@x.example/"), "value.oauth2_authorization_code.token_url", "user"),
        (
            _oauth(authorization_url="https://[::1/"),
            "value.oauth2_authorization_code.authorization_url",
            "URL",
        ),
        (_oauth(refresh_token="a\r\nb"), "value.oauth2_authorization_code.refresh_token", "control"),
        (_machine(client_secret=""), "value.oauth2_client_credentials.client_secret", "empty"),
        (_machine(token_url="ftp://x.example"), "value.oauth2_client_credentials.token_url", "https://"),
        (_mtls("no certificate", p256), "value.mtls.certificate", "PEM"),
        (_mtls(certificate(), pem(other_keys()["P-384"])), "value.mtls.private_key", "not the key"),
        (_mtls(certificate(-1), p256), "value.mtls.certificate", "ended"),
        (_mtls(certificate() + certificate(of="P-384"), p256), "value.mtls.certificate", "not signed"),
    ]


def dsa_pem() -> str:
    key = dsa.generate_private_key(2048)
    return pem(key, form=PrivateFormat.PKCS8)  # type: ignore[arg-type]  # a sort that nobody should take


def test_what_cannot_be_is_refused_by_field_and_never_repeated() -> None:
    for value, field, words in refused():
        with pytest.raises(Problem) as problem:
            accept(value, RULES)
        assert problem.value.code is Code.INVALID_ARGUMENT
        assert problem.value.data["field"] == field, (field, problem.value.sentence)
        assert words in problem.value.sentence, (words, problem.value.sentence)
        assert len(problem.value.sentence) < 300


def test_http_is_for_this_machine_and_where_it_is_allowed() -> None:
    local = _machine(token_url="http://127.0.0.1:9/token")
    assert accept(local, Rules(NOW, allow_http=True)).kind == "OAUTH2_CLIENT_CREDENTIALS"
    with pytest.raises(Problem, match="https://"):
        accept(_machine(token_url="http://provider.example/token"), Rules(NOW, allow_http=True))


def test_a_certificate_says_itself_when_it_ends_and_a_person_may_say_sooner() -> None:
    value = _mtls(certificate(), pem(other_keys()["P-256"]))
    ends = accept(value, RULES).expires_at
    assert ends is not None
    assert timedelta(days=89) < ends - NOW < timedelta(days=91)
    value.expire_time.FromDatetime(NOW + timedelta(days=3))
    assert accept(value, RULES).expires_at == NOW + timedelta(days=3)
    value.expire_time.FromDatetime(NOW - timedelta(days=3))
    with pytest.raises(Problem, match="over already"):
        accept(value, RULES)


def test_keys_are_shown_by_their_fingerprints() -> None:
    shown = accept(_pem(pem(rsa_key())), RULES).attributes
    assert shown["algorithm"] == "RSA 2048"
    assert shown["public_key_fingerprint"].startswith("SHA256:")
    mtls = accept(_mtls(certificate(), pem(other_keys()["P-256"])), RULES).attributes
    assert mtls["subject"] == "CN=tieline.example"
    assert mtls["certificate"].startswith("SHA256:")
