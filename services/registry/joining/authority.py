"""The installation's own certificate authority: it vouches for names of ours, and for nothing else.

Its key lies in one file that all replicas share and nobody else may read. Whoever has it can pretend to be any
plugin and the registry itself. Made once, by whichever replica comes first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.process.private import sync_directory
from services.registry.joining.names import REGISTRY

AUTHORITY_LIFE = timedelta(days=3650)
OWN_LIFE = timedelta(days=30)
SKEW = timedelta(minutes=5)
"""Clocks of other machines may be behind ours."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and a certificate with its chain, PEM."""

    key: bytes
    certificates: bytes
    half_life: datetime

    def __repr__(self) -> str:
        return "Identity(…)"


class Authority:
    def __init__(self, key: ec.EllipticCurvePrivateKey, root: x509.Certificate, clock: Clock) -> None:
        self._key, self._root, self._clock = key, root, clock
        self._own: Identity | None = None

    @property
    def certificate(self) -> str:
        """What to trust, PEM."""
        return _pem(self._root)

    def own(self) -> Identity:
        """Ours, as the registry; a new one past half its life."""
        if self._own is None or self._own.half_life <= self._clock.now():
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._issue(key.public_key(), REGISTRY, OWN_LIFE)
            self._own = Identity(_private(key), certificate.encode(), self._clock.now() + OWN_LIFE / 2)
        return self._own

    def issue(self, request: str, name: str, life: timedelta) -> str:
        """A certificate for the key in this request, under a name that we choose; PEM, with its chain."""
        return self._issue(_requested_key(request), name, life)

    def _issue(self, key: ec.EllipticCurvePublicKey, name: str, life: timedelta) -> str:
        now = self._clock.now()
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - min(SKEW, life / 10))
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate) + self.certificate


def open_authority(file: Path, clock: Clock) -> Authority:
    """Read the file, or make it where there is none."""
    try:
        if not file.exists():
            _establish(file, _new_authority(clock))
        if file.stat().st_mode & 0o077:
            raise _unusable(file, "others may read it; it must have mode 0600")
        text = file.read_bytes()
    except OSError as error:
        raise _unusable(file, error.strerror or "it cannot be read") from None
    try:
        key = serialization.load_pem_private_key(text, password=None)
        root = x509.load_pem_x509_certificate(text)
    except ValueError:
        raise _unusable(file, "it holds no key and certificate") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unusable(file, "its key is not on P-256")
    return Authority(key, root, clock)


def _establish(file: Path, content: bytes) -> None:
    """Whole or not at all, and once: whoever comes second finds the file of whoever came first."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
        sync_directory(file.parent)
    finally:
        draft.unlink(missing_ok=True)


def _new_authority(clock: Clock) -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), clock.now()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tieline plugins")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _private(key) + _pem(certificate).encode()


def _requested_key(request: str) -> ec.EllipticCurvePublicKey:
    try:
        read = x509.load_pem_x509_csr(request.encode())
        key = read.public_key()
    except ValueError:
        raise _bad_request("it is none") from None
    if not read.is_signature_valid:
        raise _bad_request("its signature does not hold")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_request("its key is not on P-256")
    return key


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _bad_request(why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field="certificate_request", why=why)


def _unusable(file: Path, why: str) -> Problem:
    return Problem(Code.SETTINGS_INVALID, where=f"`authority_file` ({file})", why=why)
