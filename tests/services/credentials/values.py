"""Credential values as providers give them, and as nobody should: made here, for every kind there is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import strategies as st

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

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def other_keys() -> dict[str, Key]:
    return {
        "P-256": ec.generate_private_key(ec.SECP256R1()),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    }


def pem(key: Key, passphrase: str = "", form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, how).decode()


@cache
def certificate(days: int = 90, *, of: str = "P-256") -> str:
    """Signed by itself, valid from now on for so many days."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tieline.example")])
    key, now = other_keys()[of], datetime.now(UTC)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


def service_account(**changed: object) -> bytes:
    document = {
        "client_email": "robot@project.example",
        "private_key": pem(rsa_key()),
        "token_uri": "https://provider.example/token",
    }
    return json.dumps(document | changed).encode()


LINE = st.text(
    st.characters(codec="utf-8", min_codepoint=32, exclude_characters="\x7f"), min_size=1, max_size=200
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=16, max_size=300)
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=16, max_size=64)
SCOPE = st.text(st.characters(min_codepoint=0x23, max_codepoint=0x5B), min_size=1, max_size=20)
URL = st.sampled_from(["https://provider.example/a", "https://sso.example:8443/x/token?tenant=1"])
AWS_ID = st.from_regex(r"AKIA[A-Z0-9]{16}", fullmatch=True)


@st.composite
def private_keys(draw: st.DrawFn) -> PrivateKey:
    sort = draw(st.sampled_from(["RSA", "P-256", "P-384", "Ed25519"]))
    key: Key = rsa_key() if sort == "RSA" else other_keys()[sort]
    passphrase = draw(st.sampled_from(["", "open sesame"]))
    form = draw(st.sampled_from([PrivateFormat.PKCS8, PrivateFormat.OpenSSH])) if not passphrase else None
    text = pem(key, passphrase, form or PrivateFormat.PKCS8)
    return PrivateKey(private_key=text, passphrase=passphrase, username=draw(st.sampled_from(["", "git"])))


aws_keys = st.builds(
    AwsKeys, access_key_id=AWS_ID, secret_access_key=VISIBLE, session_token=st.just("") | VISIBLE
)

BY_KIND: dict[str, st.SearchStrategy[SecretValue]] = {
    "api_key": st.builds(lambda key: SecretValue(api_key=ApiKey(key=key)), LINE),
    "bearer_token": st.builds(
        lambda token: SecretValue(bearer_token=BearerToken(token=token)),
        LINE.filter(lambda text: not text.lower().startswith("bearer ")),
    ),
    "basic": st.builds(
        lambda user, password: SecretValue(basic=Basic(username=user, password=password)),
        LINE.filter(lambda text: ":" not in text),
        LINE,
    ),
    "webhook_secret": st.builds(
        lambda secret: SecretValue(webhook_secret=WebhookSecret(secret=secret)), TEXT
    ),
    "private_key": st.builds(lambda key: SecretValue(private_key=key), private_keys()),
    "github_app": st.builds(
        lambda app, installation: SecretValue(
            github_app=GithubApp(
                app_id=str(app), installation_id=str(installation), private_key=pem(rsa_key())
            )
        ),
        st.integers(1, 10**9),
        st.integers(1, 10**9),
    ),
    "aws_keys": st.builds(lambda keys: SecretValue(aws_keys=keys), aws_keys),
    "aws_role": st.builds(
        lambda external, base: SecretValue(
            aws_role=AwsRole(
                role_arn="arn:aws:iam::123456789012:role/tieline", external_id=external, base=base
            )
        ),
        st.from_regex(r"[A-Za-z0-9=,.@:/-]{16,60}", fullmatch=True),
        st.none() | aws_keys,
    ),
    "service_account": st.builds(
        lambda document, scopes: SecretValue(
            service_account=ServiceAccount(document=document, scopes=scopes)
        ),
        st.just(service_account()),
        st.lists(SCOPE, max_size=3),
    )
    | st.builds(
        lambda document: SecretValue(service_account=ServiceAccount(document=document)),
        st.binary(min_size=1, max_size=300),
    ),
    "oauth2_authorization_code": st.builds(
        lambda client, secret, url, scopes, tokens: SecretValue(
            oauth2_authorization_code=Oauth2AuthorizationCode(
                client_id=client,
                client_secret=secret,
                authorization_url=url,
                token_url=url,
                scopes=scopes,
                refresh_token=tokens[0],
                access_token=tokens[1],
            )
        ),
        LINE,
        VISIBLE,
        URL,
        st.lists(SCOPE, max_size=3),
        st.tuples(VISIBLE, VISIBLE),
    ),
    "oauth2_client_credentials": st.builds(
        lambda client, secret, url: SecretValue(
            oauth2_client_credentials=Oauth2ClientCredentials(
                client_id=client, client_secret=secret, token_url=url
            )
        ),
        LINE,
        VISIBLE,
        URL,
    ),
    "mtls": st.builds(
        lambda passphrase: SecretValue(
            mtls=Mtls(
                certificate=certificate(),
                private_key=pem(other_keys()["P-256"], passphrase),
                passphrase=passphrase,
            )
        ),
        st.sampled_from(["", "open sesame"]),
    ),
}
"""A strategy for each kind; every value of it is one that the vault must take."""

values = st.sampled_from(sorted(BY_KIND)).flatmap(BY_KIND.__getitem__)
