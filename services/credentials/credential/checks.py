"""What a field of a credential may hold. A refusal names the field and what is wrong, never the value."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from foundation.errors import Code, Problem

LIMIT = 64 * 1024
RSA_BITS = 2048
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Field:
    """Where in the request something stands: `value.basic.password`."""

    path: str

    def wrong(self, why: str) -> Problem:
        return Problem(Code.INVALID_ARGUMENT, field=self.path, why=why)

    def needed(self, given: str | bytes) -> None:
        if not given:
            raise self.wrong("it is empty")

    def plain(self, given: str | bytes) -> None:
        size = len(given.encode() if isinstance(given, str) else given)
        if size > LIMIT:
            raise self.wrong(f"it has {size} bytes, more than {LIMIT}")
        if isinstance(given, str) and "\0" in given:
            raise self.wrong("it holds a NUL byte")

    def one_line(self, given: str) -> None:
        """For what ends up in a header or a command: a line break in it would begin another one."""
        if any(ord(character) < 32 or ord(character) == 127 for character in given):
            raise self.wrong("it holds a control character, perhaps a line break at its end")

    def like(self, given: str, pattern: str, what: str) -> None:
        if not re.fullmatch(pattern, given):
            raise self.wrong(f"it is not {what}")

    def url(self, given: str, *, allow_http: bool) -> None:
        """An https URL; http only where the installation allows it, and then on this machine alone."""
        self.needed(given)
        self.one_line(given)
        try:
            parts = urlsplit(given)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise self.wrong("it is not a URL") from None
        if not host or parts.username is not None or parts.fragment or " " in given:
            raise self.wrong("it is not a URL with a host and without user or fragment")
        if parts.scheme != "https" and not (parts.scheme == "http" and allow_http and _is_local(host)):
            raise self.wrong("it does not begin with https://")

    def json_object(self, given: bytes) -> dict[str, Any]:
        try:
            document = json.loads(given)
        except (ValueError, RecursionError):
            raise self.wrong("it is not JSON") from None
        if not isinstance(document, dict):
            raise self.wrong("it is not a JSON object")
        return document


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# private keys and certificates


def private_key(field: Field, given: str, passphrase: Field, secret: str) -> PrivateKey:
    """The key in a PEM or OpenSSH text, of a size and sort that is worth something."""
    field.needed(given)
    load = load_ssh_private_key if "OPENSSH PRIVATE KEY" in given else load_pem_private_key
    with _said(field, passphrase, encrypted=bool(secret)):
        key = load(given.encode(), secret.encode() or None)
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < RSA_BITS:
            raise field.wrong(f"it is an RSA key of {key.key_size} bits; {RSA_BITS} is the least")
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name not in _CURVES:
            raise field.wrong(f"its curve is {key.curve.name}; it must be {' or '.join(_CURVES.values())}")
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    raise field.wrong("it is no RSA, P-256, P-384 or Ed25519 key")


@contextmanager
def _said(field: Field, passphrase: Field, *, encrypted: bool) -> Iterator[None]:
    """What the library says of a key that it cannot load, in words that hold nothing of it."""
    try:
        yield
    except TypeError:
        if encrypted:
            raise passphrase.wrong("the key is not encrypted, so it must be empty") from None
        raise passphrase.wrong("the key is encrypted and this is empty") from None
    except ValueError as error:
        if encrypted and ("password" in str(error).lower() or "decrypt" in str(error).lower()):
            raise passphrase.wrong("it does not open the key") from None
        raise field.wrong("it is no private key in PEM or OpenSSH form") from None
    except UnsupportedAlgorithm:
        raise field.wrong("it is of a sort or cipher that is not supported") from None


def describe_key(key: PrivateKey) -> tuple[str, str]:
    """Its sort, and the fingerprint of its public part, as ssh-keygen and providers show it."""
    if isinstance(key, rsa.RSAPrivateKey):
        sort = f"RSA {key.key_size}"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        sort = _CURVES[key.curve.name]
    else:
        sort = "Ed25519"
    return sort, fingerprint(public_bytes(key))


def public_bytes(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def belongs(key: PrivateKey, certificate: x509.Certificate) -> bool:
    certified = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certified == public_bytes(key)


def describe_certificate(certificate: x509.Certificate) -> dict[str, str]:
    """What tells it apart; the chain itself would fill every list."""
    return {
        "certificate": fingerprint(certificate.public_bytes(Encoding.DER)),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
    }


def fingerprint(der: bytes) -> str:

    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def certificates(field: Field, given: str) -> list[x509.Certificate]:
    """The certificate and its chain, each signed by the next."""
    field.needed(given)
    try:
        chain = x509.load_pem_x509_certificates(given.encode())
    except ValueError:
        raise field.wrong("it is no certificate in PEM form") from None
    for number, (issued, issuer) in enumerate(pairwise(chain), 1):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as error:
            why = f"certificate {number} is not signed by the one after it"
            raise field.wrong(why) from error
    return chain


def ends_in_time(field: Field, leaf: x509.Certificate, now: datetime) -> datetime:
    end = leaf.not_valid_after_utc.replace(tzinfo=UTC)
    if end <= now:
        raise field.wrong(f"it ended on {end:%Y-%m-%d}")
    return end
