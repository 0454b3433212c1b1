"""A plugin that runs elsewhere: it joins with a token, listens with TLS, renews its certificate, says where it is.

Asked for by the environment:

    TIELINE_JOIN_ADDRESS      where the registry lets plugins in, `host:port`
    TIELINE_JOIN_CA_FILE      whom to trust there
    TIELINE_JOIN_TOKEN_FILE   the token, good for one join
    TIELINE_JOIN_STATE        optional: a private file that keeps key and certificate over a restart
    TIELINE_ANNOUNCE_ADDRESS  optional: where the platform reaches us, if not at TIELINE_PLUGIN_ADDRESS

It needs `cryptography`: `pip install tieline[remote]`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tieline.registry.v1 import joining_pb2 as pb
from tieline.registry.v1 import joining_pb2_grpc

log = logging.getLogger("tieline")

HOST = "registry.tieline.internal"
"""The name in the certificate of whoever may call us."""
SECONDS = 10.0
PATIENCE = 10.0
"""The longest pause between two tries."""

_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL}


@dataclass(frozen=True, slots=True)
class Papers:
    """What speaks for us: a key and a certificate with its chain."""

    key: bytes
    certificates: bytes

    def __repr__(self) -> str:
        return "Papers(…)"

    @property
    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificates)

    def left(self) -> float:
        """Seconds for which they are good."""
        return (self._certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()

    def is_due(self) -> bool:
        life = self._certificate.not_valid_after_utc - self._certificate.not_valid_before_utc
        return self.left() < life.total_seconds() / 2


class Membership:
    """Made by `join`; from then on `keep` renews and announces until somebody wants us to stop."""

    def __init__(self, address: str, authority: bytes, papers: Papers, state: Path | None) -> None:
        self._address, self._authority, self._state = address, authority, state
        self._papers = papers
        self._shown: Papers | None = None

    @classmethod
    async def join(cls, plugin: str, version: str) -> Membership:
        address, authority = os.environ["TIELINE_JOIN_ADDRESS"], _file("TIELINE_JOIN_CA_FILE").read_bytes()
        state = Path(os.environ["TIELINE_JOIN_STATE"]) if "TIELINE_JOIN_STATE" in os.environ else None
        kept = _kept(state)
        if kept is not None:
            return cls(address, authority, kept, state)
        key, request = _request()
        asked = pb.JoinRequest(
            join_token=_file("TIELINE_JOIN_TOKEN_FILE").read_text().strip(),
            certificate_request=request,
            plugin=plugin,
            version=version,
        )
        async with _channel(address, authority) as channel:
            stub: Any = joining_pb2_grpc.JoinServiceStub(channel)
            answer = await _patiently(lambda: stub.Join(asked, timeout=SECONDS))
        membership = cls(address, authority, Papers(key, answer.certificates.encode()), state)
        membership._keep_papers()
        log.info("joined as %s", answer.process)
        return membership

    def credentials(self) -> grpc.ServerCredentials:
        """For the server: always the newest certificate, and nobody without one of the same authority."""
        changed: Any = self._changed  # gRPC takes None for an answer; the types of it do not
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), changed, require_client_authentication=True
        )

    async def keep(self, address: str, stop: Callable[[float], None], grace: float) -> None:
        """Announce, and renew at half life. Returns when the platform has no use for us any more."""
        announced = pb.AnnounceRequest(
            address=os.environ.get("TIELINE_ANNOUNCE_ADDRESS") or reachable(address)
        )
        while True:
            papers = self._papers
            async with _channel(self._address, self._authority, papers) as channel:
                stub: Any = joining_pb2_grpc.JoinServiceStub(channel)
                while papers is self._papers:
                    pause = PATIENCE
                    try:
                        if papers.is_due():
                            await self._renew(stub)
                            break
                        answer = await stub.Announce(announced, timeout=SECONDS)
                        pause = answer.announce_after.ToTimedelta().total_seconds()
                    except grpc.aio.AioRpcError as failed:
                        if failed.code() is grpc.StatusCode.UNAUTHENTICATED or papers.left() <= 0:
                            log.error("the platform does not know us any more: %s", failed.details())  # noqa: TRY400 - its words say all
                            self._forget_papers()
                            return stop(grace)
                        log.warning("the registry does not answer (%s)", failed.code().name)
                        pause = random.uniform(0.1, 1.0)  # noqa: S311 - so that not all come back at once
                    else:
                        if answer.restart_wanted:
                            log.info("the platform wants us to start anew")
                            return stop(grace)
                    await asyncio.sleep(pause)

    async def _renew(self, stub: Any) -> None:
        key, request = _request()
        asked = pb.RenewCertificateRequest(certificate_request=request)
        answer = await stub.RenewCertificate(asked, timeout=SECONDS)
        self._papers = Papers(key, answer.certificates.encode())
        self._keep_papers()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        self._shown = self._papers
        pairs = [(self._papers.key, self._papers.certificates)]
        return grpc.ssl_server_certificate_configuration(pairs, self._authority)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        return None if self._shown is self._papers else self._configuration()

    def _keep_papers(self) -> None:
        if self._state is None:
            return
        draft = self._state.with_name(f".{self._state.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(self._papers.key + self._papers.certificates)
        draft.replace(self._state)

    def _forget_papers(self) -> None:
        if self._state is not None:
            self._state.unlink(missing_ok=True)


def reachable(address: str) -> str:
    """Where others find what listens at `address`: a wildcard is nobody's name, so this machine's stands there."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in {"", "0.0.0.0", "[::]"} else address


def _kept(state: Path | None) -> Papers | None:
    if state is None or not state.exists():
        return None
    key, mark, certificates = state.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    with suppress(ValueError):
        papers = Papers(key, mark + certificates)
        if papers.left() > 0:
            return papers
    return None


def _request() -> tuple[bytes, str]:
    """A new key, and the request for a certificate of it. The name in it is the platform's to choose."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(serialization.Encoding.PEM).decode()


async def _patiently(ask: Callable[[], Any]) -> Any:
    pause = 0.2
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as failed:
            if failed.code() not in _PASSING:
                raise SystemExit(f"this plugin may not join: {failed.details()}") from None
            log.warning("the registry does not answer (%s)", failed.code().name)
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311
        pause = min(pause * 2, PATIENCE)


def _channel(address: str, authority: bytes, papers: Papers | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority, papers.key if papers else None, papers.certificates if papers else None
    )
    options = [
        ("grpc.ssl_target_name_override", HOST),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.secure_channel(address, credentials, options)


def _file(variable: str) -> Path:
    if variable not in os.environ:
        raise SystemExit(f"a plugin that joins needs {variable}")
    return Path(os.environ[variable])
