"""What each kind of credential is made of: what may go in, what is shown, what a holder is given."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from foundation.rpc.times import moment
from services.credentials.credential import checks
from services.credentials.credential.checks import Field
from tieline.common.v1 import options_pb2 as contract
from tieline.credentials.v1 import secrets_pb2 as pb
from tieline.credentials.v1.leases_pb2 import LeasedSecret
from tieline.credentials.v1.secrets_pb2 import SecretValue

SHORTEST_WEBHOOK_SECRET = 16
TEMPORARY_AWS_KEY = "ASIA"


@dataclass(frozen=True, slots=True)
class Rules:
    """What depends on the installation and on the moment."""

    now: datetime
    allow_http: bool = False
    """Providers on this machine may be reached without TLS."""


@dataclass(slots=True)
class Finding:
    """What a kind's check found out beside that all is well."""

    attributes: dict[str, str] = field(default_factory=dict)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A value as it will be stored, and what may be shown of it."""

    kind: str
    """As the contract's CredentialKind, without its prefix."""
    plain: bytes
    attributes: Mapping[str, str]
    expires_at: datetime | None


Look = Callable[[Any, Callable[[str], Field], Rules], Finding]
"""Checks one kind's message. The second argument names its fields."""


@dataclass(frozen=True, slots=True)
class Kind:
    look: Look
    required: tuple[str, ...]
    released: tuple[str, ...]
    """The fields that a holder may be given. Anything else of a value never leaves the vault."""
    makes_sessions: bool = False
    """Holders get a session that the vault makes of the value, and never the value itself."""


def accept(value: SecretValue, rules: Rules) -> Accepted:
    """The value with what the vault makes itself; raises INVALID_ARGUMENT naming the field that cannot be."""
    kind = kind_of(value)
    done, name = SecretValue(), kind.lower()
    done.CopyFrom(value)
    part: Message = getattr(done, name)

    def where(of: str) -> Field:
        return Field(f"value.{name}.{of}")

    _look_at_texts(part, f"value.{name}")
    for needed in KINDS[kind].required:
        where(needed).needed(getattr(part, needed))
    found = KINDS[kind].look(part, where, rules)
    ends = _end(value, rules)
    return Accepted(
        kind=kind,
        plain=done.SerializeToString(),
        attributes=dict(_shown(part)) | found.attributes,
        expires_at=min(filter(None, (ends, found.expires_at)), default=None),
    )


def kind_of(value: SecretValue) -> str:
    kind = value.WhichOneof("value")
    if kind is None:
        raise Field("value").wrong("it names no kind that there is")
    return kind.upper()


def makes_sessions(kind: str, attributes: Mapping[str, str]) -> bool:
    return KINDS[kind].makes_sessions or (kind == "SERVICE_ACCOUNT" and bool(attributes.get("scopes")))


def released(kind: str, plain: bytes) -> Mapping[str, bytes]:
    """What of a stored value a holder may be given, by the names that the contract lists for the kind."""
    part: Message = getattr(SecretValue.FromString(plain), kind.lower())
    return {
        of.name: content.encode() if isinstance(content, str) else content
        for of, content in part.ListFields()
        if of.name in KINDS[kind].released
    }


def write_session(fields: Mapping[str, bytes]) -> bytes:
    """A session as it is sealed: the fields that a holder gets, and nothing else."""
    return LeasedSecret(fields=dict(fields)).SerializeToString()


def read_session(plain: bytes) -> Mapping[str, bytes]:
    return dict(LeasedSecret.FromString(plain).fields)


# what all kinds have in common


def _look_at_texts(part: Message, path: str) -> None:
    """No text is too long or holds a NUL byte, in messages within too."""
    for of, content in part.ListFields():
        where = f"{path}.{of.name}"
        for item in content if of.is_repeated else [content]:
            if isinstance(item, Message):
                _look_at_texts(item, where)
            elif isinstance(item, str | bytes):
                Field(where).plain(item)


def _shown(part: Message) -> Iterator[tuple[str, str]]:
    """What is not secret about it, as the contract marks its fields."""
    for of, content in part.ListFields():
        if of.type != FieldDescriptor.TYPE_STRING or of.GetOptions().Extensions[contract.sensitive]:
            continue
        yield of.name, " ".join(content) if of.is_repeated else content


def _end(value: SecretValue, rules: Rules) -> datetime | None:
    if not value.HasField("expire_time"):
        return None
    ends = moment(value.expire_time, "value.expire_time")
    if ends <= rules.now:
        raise Field("value.expire_time").wrong("it is over already")
    return ends


# each kind

Named = Callable[[str], Field]


def _api_key(part: pb.ApiKey, where: Named, _: Rules) -> Finding:
    where("key").one_line(part.key)
    return Finding()


def _bearer_token(part: pb.BearerToken, where: Named, _: Rules) -> Finding:
    where("token").one_line(part.token)
    if part.token.lower().startswith("bearer "):
        raise where("token").wrong("it begins with `Bearer `, which is not part of the token")
    return Finding()


def _basic(part: pb.Basic, where: Named, _: Rules) -> Finding:
    where("username").one_line(part.username)
    where("password").one_line(part.password)
    if ":" in part.username:
        raise where("username").wrong("it holds a colon, which ends a user's name in HTTP")
    return Finding()


def _webhook_secret(part: pb.WebhookSecret, where: Named, _: Rules) -> Finding:
    if not part.secret:
        part.secret = secrets.token_hex(32)
    if len(part.secret.encode()) < SHORTEST_WEBHOOK_SECRET:
        raise where("secret").wrong(f"it is shorter than {SHORTEST_WEBHOOK_SECRET} bytes")
    return Finding()


def _private_key(part: pb.PrivateKey, where: Named, _: Rules) -> Finding:
    where("username").one_line(part.username)
    key = checks.private_key(where("private_key"), part.private_key, where("passphrase"), part.passphrase)
    return _of_key(key)


def _github_app(part: pb.GithubApp, where: Named, rules: Rules) -> Finding:
    where("app_id").like(part.app_id, r"[A-Za-z0-9._-]{1,64}", "an app's id: digits, or a client id")
    where("installation_id").like(part.installation_id, r"\d{0,20}", "an installation's id: digits")
    if part.api_url:
        where("api_url").url(part.api_url, allow_http=rules.allow_http)
    key = checks.private_key(where("private_key"), part.private_key, where("private_key"), "")
    if not isinstance(key, RSAPrivateKey):
        raise where("private_key").wrong("it is no RSA key, and GitHub's apps have no others")
    return _of_key(key)


def _aws_keys(part: pb.AwsKeys, where: Named, _: Rules) -> Finding:
    where("access_key_id").like(part.access_key_id, r"[A-Z0-9]{16,128}", "an id of AWS keys, like AKIA…")
    where("secret_access_key").like(part.secret_access_key, r"[\x21-\x7e]{16,128}", "a secret of AWS keys")
    where("session_token").like(part.session_token, r"[\x21-\x7e]*", "a session token")
    if part.access_key_id.startswith(TEMPORARY_AWS_KEY) and not part.session_token:
        raise where("session_token").wrong("it is empty, and keys that begin with ASIA need one")
    return Finding()


def _aws_role(part: pb.AwsRole, where: Named, rules: Rules) -> Finding:
    arn = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}"
    where("role_arn").like(part.role_arn, arn, "the ARN of a role: arn:aws:iam::123456789012:role/name")
    where("external_id").like(
        part.external_id, r"([\w+=,.@:/-]{2,1224})?", "an external id as AWS allows them"
    )
    where("region").like(part.region, r"([a-z]{2}(-[a-z]+)+-\d)?", "a region")
    if not part.HasField("base"):
        if not part.external_id:
            why = "it is empty; without one, others could have the platform assume this role for them"
            raise where("external_id").wrong(why)
        return Finding()
    for needed in ("access_key_id", "secret_access_key"):
        where(f"base.{needed}").needed(getattr(part.base, needed))
    _aws_keys(part.base, lambda of: where(f"base.{of}"), rules)
    return Finding({"base_access_key_id": part.base.access_key_id})


def _service_account(part: pb.ServiceAccount, where: Named, rules: Rules) -> Finding:
    if not part.scopes:
        return Finding()
    _scopes(part.scopes, where)
    document, at = where("document").json_object(part.document), where("document")
    for needed in ("client_email", "private_key", "token_uri"):
        if not isinstance(document.get(needed), str):
            raise at.wrong(f"it has no text `{needed}`, which is needed to exchange it for tokens")
    Field(f"{at.path}.token_uri").url(document["token_uri"], allow_http=rules.allow_http)
    inside = Field(f"{at.path}.private_key")
    return Finding(
        {"client_email": document["client_email"]}
        | _of_key(checks.private_key(inside, document["private_key"], inside, "")).attributes
    )


def _oauth_authorization_code(part: pb.Oauth2AuthorizationCode, where: Named, rules: Rules) -> Finding:
    where("authorization_url").url(part.authorization_url, allow_http=rules.allow_http)
    where("token_url").url(part.token_url, allow_http=rules.allow_http)
    for of in ("client_id", "client_secret", "refresh_token", "access_token"):
        where(of).one_line(getattr(part, of))
    _scopes(part.scopes, where)
    return Finding()


def _oauth_client_credentials(part: pb.Oauth2ClientCredentials, where: Named, rules: Rules) -> Finding:
    where("token_url").url(part.token_url, allow_http=rules.allow_http)
    for of in ("client_id", "client_secret", "audience"):
        where(of).one_line(getattr(part, of))
    _scopes(part.scopes, where)
    return Finding()


def _mtls(part: pb.Mtls, where: Named, rules: Rules) -> Finding:
    leaf = checks.certificates(where("certificate"), part.certificate)[0]
    key = checks.private_key(where("private_key"), part.private_key, where("passphrase"), part.passphrase)
    if not checks.belongs(key, leaf):
        raise where("private_key").wrong("it is not the key of the first certificate")
    ends = checks.ends_in_time(where("certificate"), leaf, rules.now)
    return Finding(checks.describe_certificate(leaf), ends)


def _scopes(scopes: Iterable[str], where: Named) -> None:
    for scope in scopes:
        where("scopes").like(scope, r"[\x21\x23-\x5b\x5d-\x7e]+", "a scope: letters without space or quote")


def _of_key(key: checks.PrivateKey) -> Finding:
    sort, print_ = checks.describe_key(key)
    return Finding({"algorithm": sort, "public_key_fingerprint": print_})


_AWS = ("access_key_id", "secret_access_key", "session_token")
_OAUTH = ("access_token",)
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "API_KEY": Kind(_api_key, ("key",), ("key",)),
        "BEARER_TOKEN": Kind(_bearer_token, ("token",), ("token",)),
        "BASIC": Kind(_basic, ("username", "password"), ("username", "password")),
        "WEBHOOK_SECRET": Kind(_webhook_secret, (), ("secret",)),
        "PRIVATE_KEY": Kind(_private_key, ("private_key",), ("private_key", "passphrase")),
        "GITHUB_APP": Kind(_github_app, ("app_id", "private_key"), ("token",), makes_sessions=True),
        "AWS_KEYS": Kind(_aws_keys, _AWS[:2], _AWS),
        "AWS_ROLE": Kind(_aws_role, ("role_arn",), _AWS, makes_sessions=True),
        "SERVICE_ACCOUNT": Kind(_service_account, ("document",), ("document", "token")),
        "OAUTH2_AUTHORIZATION_CODE": Kind(
            _oauth_authorization_code, ("client_id", "authorization_url", "token_url"), _OAUTH
        ),
        "OAUTH2_CLIENT_CREDENTIALS": Kind(
            _oauth_client_credentials,
            ("client_id", "client_secret", "token_url"),
            _OAUTH,
            makes_sessions=True,
        ),
        "MTLS": Kind(_mtls, ("certificate", "private_key"), ("certificate", "private_key", "passphrase")),
    }
)
