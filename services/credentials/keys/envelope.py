"""How secrets are sealed: every layer says what it belongs to, so that nothing opens in another place.

    root key       outside the database; seals tenant keys and what the platform itself keeps secret
      tenant key   32 random bytes, versioned; seals data keys
        data key   32 random bytes, used once, for one version of one credential; seals the value

A sealed text begins with its head: one byte for the format, one for the algorithm, eight that name the key;
then comes the 96-bit nonce. The head and the *place* (which key, whose, which credential, which version) are
authenticated with it: a text that was moved, swapped, cut or changed does not open. A sealed data key stands
beside its value and not inside it, so that a new tenant key reseals 32 bytes and never sees the value. Values
are padded to steps of 256 bytes, so that their length tells little.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT, AES_256_GCM = 1, 1
KEY_BYTES = 32
NAME_BYTES = 8
NONCE_BYTES = 12
TAG_BYTES = 16
STEP = 256
_HEAD_BYTES = 2 + NAME_BYTES
_NAMELESS = bytes(NAME_BYTES)


class Unopenable(Exception):  # noqa: N818 - says what is the case
    """The text was not sealed with this key for this place, or is not what it was."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that shows itself to nobody but this module, and the name that its texts begin with."""

    raw: bytes
    name: bytes = _NAMELESS

    @classmethod
    def new(cls, name: bytes = _NAMELESS) -> Key:
        return cls(os.urandom(KEY_BYTES), name)

    @property
    def fingerprint(self) -> bytes:
        """Tells keys apart without telling anything about them."""
        return hashlib.sha256(b"tieline/fingerprint\0" + self.raw).digest()[:NAME_BYTES]

    def __repr__(self) -> str:
        return f"Key({self.fingerprint.hex()})"


def name_of(sealed: bytes) -> bytes:
    """The name of the key that a text says it was sealed with."""
    return sealed[2:_HEAD_BYTES]


def versioned(version: int) -> bytes:
    """The name of a tenant key: its version."""
    return version.to_bytes(NAME_BYTES, "big")


def place(*parts: str | int) -> bytes:
    """Names a place unambiguously: each part with its length before it."""
    encoded = [str(part).encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def seal(key: Key, plain: bytes, where: bytes) -> bytes:
    head, nonce = bytes((FORMAT, AES_256_GCM)) + key.name, os.urandom(NONCE_BYTES)
    return head + nonce + AESGCM(key.raw).encrypt(nonce, plain, head + where)


def unseal(key: Key, sealed: bytes, where: bytes) -> bytes:
    head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
    if len(rest) < NONCE_BYTES + TAG_BYTES or head[:2] != bytes((FORMAT, AES_256_GCM)):
        raise Unopenable("it is of no known format")
    if head[2:] != key.name:
        raise Unopenable(f"it names the key {head[2:].hex()}, not {key.name.hex()}")
    try:
        return AESGCM(key.raw).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], head + where)
    except InvalidTag:
        raise Unopenable("it was sealed with another key, for another place, or was changed") from None


@dataclass(frozen=True, slots=True)
class Sealed:
    """A value under a data key of its own, and that key under the tenant's."""

    wrapped_key: bytes
    value: bytes


def seal_value(tenant_key: Key, value: bytes, where: bytes) -> Sealed:
    data_key = Key.new()
    wrapped = seal(tenant_key, data_key.raw, b"data key" + where)
    return Sealed(wrapped, seal(data_key, _pad(value), b"value" + where))


def unseal_value(tenant_key: Key, sealed: Sealed, where: bytes) -> bytes:
    data_key = Key(unseal(tenant_key, sealed.wrapped_key, b"data key" + where))
    return _unpad(unseal(data_key, sealed.value, b"value" + where))


def rewrap(old: Key, new: Key, wrapped_key: bytes, where: bytes) -> bytes:
    """The data key under another tenant key; the value is not touched and not needed."""
    return seal(new, unseal(old, wrapped_key, b"data key" + where), b"data key" + where)


def _pad(value: bytes) -> bytes:
    framed = len(value).to_bytes(4, "big") + value
    return framed + bytes(-len(framed) % STEP)


def _unpad(padded: bytes) -> bytes:
    length = int.from_bytes(padded[:4], "big")
    if length > len(padded) - 4:
        raise Unopenable("its length does not fit")
    return padded[4 : 4 + length]
