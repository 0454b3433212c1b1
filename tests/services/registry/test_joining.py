"""Plugins that somebody else runs: in with a token, known by a certificate, called wherever they listen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cli.client import Client
from cli.joining import join_token
from foundation.clock import SteeredClock, SystemClock
from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from foundation.process.ports import Port
from foundation.process.testing import until
from foundation.settings import Address
from services.registry.joining import names
from services.registry.joining.authority import open_authority
from services.registry.main import serve
from tests.services.registry.conftest import ADMIN, Running, prepared, ready
from tests.services.registry.plugins import make_plugin
from tests.services.registry.test_connections import creation
from tests.services.registry.test_killed import start, transform
from tieline.plugin.v1 import plugin_pb2, plugin_pb2_grpc
from tieline.registry.v1 import connections_pb2_grpc, joining_pb2, joining_pb2_grpc, processes_pb2
from tieline.registry.v1.processes_pb2_grpc import ProcessServiceStub

PLATFORM = Principal(Kind.USER, "users/root", platform_roles=frozenset({Role.PLATFORM_ADMIN}))
State = processes_pb2.Process


@dataclass
class Place:
    """A registry that plugins may join, and what a plugin of it needs."""

    running: Running
    where: Path

    @property
    def join_address(self) -> str:
        return str(self.running.settings.join_listen)

    async def token(self, version_range: str = "", plugin: str = "one") -> str:
        async with self.running.as_(PLATFORM) as channel:
            stub: Any = joining_pb2_grpc.JoinServiceStub(channel)
            request = joining_pb2.CreateJoinTokenRequest(
                plugin=f"plugins/{plugin}", version_range=version_range
            )
            answer = await stub.CreateJoinToken(request)
            (self.where / "ca.pem").write_text(answer.ca_certificates)
            return str(answer.join_token)

    async def processes(self) -> list[processes_pb2.Process]:
        async with self.running.as_(PLATFORM) as channel:
            stub: Any = ProcessServiceStub(channel)
            answer = await stub.ListProcesses(processes_pb2.ListProcessesRequest(parent="plugins/one"))
            return list(answer.processes)

    async def state(self) -> int:
        (process,) = await self.processes()
        return process.state

    async def is_(self, state: int) -> bool:
        return await self.state() == state

    async def connection(self) -> str:
        async with self.running.as_(ADMIN) as channel:
            stub: Any = connections_pb2_grpc.ConnectionServiceStub(channel)
            name = str((await stub.CreateConnection(creation())).name)
        await until(lambda: self.serves(name), 60.0)
        return name

    async def serves(self, connection: str) -> bool:
        return not (await transform(self.running, connection)).HasField("failure")

    @asynccontextmanager
    async def peer(self, key: bytes | None = None, certificates: bytes | None = None) -> AsyncIterator[Any]:
        credentials = grpc.ssl_channel_credentials((self.where / "ca.pem").read_bytes(), key, certificates)
        options = [("grpc.ssl_target_name_override", names.REGISTRY)]
        async with grpc.aio.secure_channel(self.join_address, credentials, options) as channel:
            yield joining_pb2_grpc.JoinServiceStub(channel)

    async def join(self, token: str, version: str = "1.0.0", plugin: str = "one", **other: Any) -> Any:
        request = joining_pb2.JoinRequest(
            join_token=token,
            certificate_request=other.get("request") or certificate_request()[1],
            plugin=plugin,
            version=version,
        )
        async with self.peer() as stub:
            return await stub.Join(request, timeout=30)


def certificate_request(key: Any = None) -> tuple[bytes, str]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(serialization.Encoding.PEM).decode()


@asynccontextmanager
async def joinable(
    engines: Served, where: Path, *, announce: float = 0.5, life: float = 86400.0
) -> AsyncIterator[Place]:
    file = make_plugin(where / "plugins", "one") / "plugin.toml"
    before, _, rest = file.read_text().partition("[runtime.process]")
    file.write_text(before + "[runtime.remote]\n" + rest.partition("{ none = true }")[2])
    async with prepared(engines, where) as running:
        with Port() as port:
            running.settings = msgspec.structs.replace(
                running.settings,
                join_listen=Address.parse(port.address),
                authority_file=str(where / "authority" / "key.pem"),
                announce_seconds=announce,
                certificate_seconds=life,
            )
            yield Place(running, where)


@pytest.fixture
async def place(engines: Served, tmp_path: Path) -> AsyncIterator[Place]:
    async with joinable(engines, tmp_path) as place, served_in_process(place.running):
        yield place


@asynccontextmanager
async def served_in_process(running: Running) -> AsyncIterator[None]:
    task = asyncio.create_task(serve(running.settings, running.stopping))
    try:
        await ready(running, task)
        yield
    finally:
        running.stopping.set()
        await task


@contextmanager
def elsewhere(
    place: Place, token: str, *, port: str = "", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A plugin as somebody else runs it."""
    file = place.where / "join.token"
    file.touch(0o600)
    file.write_text(token + "\n")
    with Port() as free:
        own = {
            "PATH": os.environ["PATH"],
            "TIELINE_PLUGIN_ADDRESS": port or free.address,
            "TIELINE_JOIN_ADDRESS": place.join_address,
            "TIELINE_JOIN_TOKEN_FILE": str(file),
            "TIELINE_JOIN_CA_FILE": str(place.where / "ca.pem"),
        }
        command = [sys.executable, "-m", "plugin"]
        process = subprocess.Popen(
            command, cwd=place.where / "plugins" / "one", env={**own, **environment}, stdin=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


async def test_a_plugin_joins_and_is_called_and_outlives_its_registry(
    engines: Served, tmp_path: Path
) -> None:
    async with joinable(engines, tmp_path) as place:
        first = start(place.running.settings, tmp_path)
        try:
            await ready(place.running)
            with elsewhere(place, await place.token()) as plugin:
                await until(lambda: place.is_(State.STATE_READY), 60.0)
                (told,) = await place.processes()
                assert names.process_of(names.certificate_name(told.name)) == told.name
                assert (told.pid, told.sandbox) == (0, processes_pb2.SANDBOX_UNSPECIFIED)
                name = await place.connection()
                assert [(await transform(place.running, name)).outcomes[0].events.drafts[0].title] == [
                    "hello"
                ]
                first.kill()
                first.wait()
                second = start(place.running.settings, tmp_path)
                try:
                    await ready(place.running)
                    await until(lambda: place.is_(State.STATE_READY), 60.0)
                    (again,) = await place.processes()
                    assert again.name == told.name, "it did not join anew"
                    await until(lambda: place.serves(name), 60.0)
                    assert plugin.poll() is None, "and never ended"
                finally:
                    second.kill()
                    second.wait()
        finally:
            first.kill()
            first.wait()


async def test_who_is_silent_is_lost_and_who_speaks_again_is_back(place: Place) -> None:
    with elsewhere(place, await place.token()) as plugin:
        await until(lambda: place.is_(State.STATE_READY), 60.0)
        plugin.send_signal(signal.SIGSTOP)
        await until(lambda: place.is_(State.STATE_LOST), 60.0)
        assert "silent" in (await place.processes())[0].explanation
        plugin.send_signal(signal.SIGCONT)
        await until(lambda: place.is_(State.STATE_READY), 60.0)


async def test_certificates_are_renewed_while_calls_go_on(engines: Served, tmp_path: Path) -> None:
    async with joinable(engines, tmp_path, life=6.0) as place, served_in_process(place.running):
        state = tmp_path / "state.pem"
        with elsewhere(place, await place.token(), TIELINE_JOIN_STATE=str(state)):
            await until(lambda: place.is_(State.STATE_READY), 60.0)
            assert state.stat().st_mode & 0o777 == 0o600
            papers = {state.read_bytes()}
            name = await place.connection()

            async def renewed() -> bool:
                papers.add(state.read_bytes())
                assert await place.serves(name)
                return len(papers) >= 3

            await until(renewed, 90.0)
            assert await place.is_(State.STATE_READY)


async def test_a_restart_is_asked_for_and_needs_no_new_token(place: Place) -> None:
    state = place.where / "state.pem"
    with Port() as port:
        with elsewhere(
            place, await place.token(), port=port.address, TIELINE_JOIN_STATE=str(state)
        ) as plugin:
            await until(lambda: place.is_(State.STATE_READY), 60.0)
            (before,) = await place.processes()
            async with place.running.as_(PLATFORM) as channel:
                stub: Any = ProcessServiceStub(channel)
                await stub.RestartProcess(processes_pb2.RestartProcessRequest(name=before.name))
            await until(lambda: plugin.poll() is not None, 60.0)
            assert plugin.returncode == 0
        await until(lambda: place.is_(State.STATE_LOST), 60.0)
        with elsewhere(place, "used", port=port.address, TIELINE_JOIN_STATE=str(state)):
            await until(lambda: place.is_(State.STATE_READY), 60.0)
            assert (await place.processes())[0].name == before.name


async def refused(attempt: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await attempt
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return str(caught.value.details())


async def test_the_verb_writes_what_a_plugin_needs_and_prints_no_secret(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Namespace(id="one", versions=">=1", to=place.where / "for one", json=False)
    async with place.running.as_(PLATFORM) as channel:
        await join_token(Client("", channel, channel, channel), options)
    token = (options.to / "join.token").read_text().strip()
    assert (options.to / "join.token").stat().st_mode & 0o777 == 0o600
    assert token not in capsys.readouterr().out
    (place.where / "ca.pem").write_text((options.to / "ca.pem").read_text())
    assert (await place.join(token)).process


async def test_a_token_lets_one_plugin_in_once(place: Place) -> None:
    token = await place.token(">=1,<2")
    assert "none for this plugin" in await refused(place.join("tl_join_guess"))
    assert "none for this plugin" in await refused(place.join(token, plugin="other"))
    assert "none for this plugin" in await refused(place.join(token, version="2.0.0"))
    _, request = certificate_request()
    joined = await place.join(token, request=request)
    assert joined.process.startswith("plugins/one/processes/")
    assert (await place.join(token, request=request)) == joined, "the same request gets the same answer"
    assert "joined with it already" in await refused(place.join(token))
    await place.running.sql("update registry.join_tokens set use_time = use_time - interval '2 minutes'")
    assert "joined with it already" in await refused(place.join(token, request=request))
    old = await place.token()
    await place.running.sql("update registry.join_tokens set expire_time = now() where use_time is null")
    assert "ten minutes" in await refused(place.join(old))
    hashes_kept = await place.running.sql("select hash from registry.join_tokens")
    assert token.encode() not in {bytes(row["hash"]) for row in hashes_kept}
    with pytest.raises(Problem) as caught:
        await place.token(plugin="absent")
    assert caught.value.code is Code.NOT_FOUND


async def test_a_certificate_speaks_for_its_process_alone_and_no_longer_than_it_is_known(
    place: Place,
) -> None:
    key, request = certificate_request()
    joined = await place.join(await place.token(), request=request)
    announce = joining_pb2.AnnounceRequest(address="127.0.0.1:1")
    renew = joining_pb2.RenewCertificateRequest(certificate_request=certificate_request()[1])
    async with place.peer() as nobody:
        assert "without a plugin's certificate" in await refused(nobody.Announce(announce, timeout=30))
        assert "without a plugin's certificate" in await refused(nobody.RenewCertificate(renew, timeout=30))
    async with place.peer(key, joined.certificates.encode()) as peer:
        assert (await peer.Announce(announce, timeout=30)).announce_after.ToTimedelta() == timedelta(
            seconds=0.5
        )
        renewed = x509.load_pem_x509_certificate(
            (await peer.RenewCertificate(renew, timeout=30)).certificates.encode()
        )
        assert names_in(renewed) == [names.certificate_name(joined.process)]
        await place.running.sql("delete from registry.remote_processes")
        assert "not known any more" in await refused(peer.Announce(announce, timeout=30))
        assert "not known any more" in await refused(peer.RenewCertificate(renew, timeout=30))
    stranger = open_authority(place.where / "stranger.pem", SystemClock())
    forged_key, forged = certificate_request()
    certificates = stranger.issue(forged, names.certificate_name(joined.process), timedelta(days=1))
    async with place.peer(forged_key, certificates.encode()) as forger:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await forger.Announce(announce, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, "TLS itself refuses"


async def test_a_connection_outlives_its_certificate_and_gains_nothing(
    engines: Served, tmp_path: Path
) -> None:
    async with joinable(engines, tmp_path, life=3.0) as place, served_in_process(place.running):
        key, request = certificate_request()
        joined = await place.join(await place.token(), request=request)
        announce = joining_pb2.AnnounceRequest(address="127.0.0.1:1")
        async with place.peer(key, joined.certificates.encode()) as peer:
            await peer.Announce(announce, timeout=30)

            async def over() -> bool:
                try:
                    await peer.Announce(announce, timeout=30)
                except grpc.aio.AioRpcError as failed:
                    return failed.code() is grpc.StatusCode.UNAUTHENTICATED
                return False

            await until(over, 60.0)


async def test_a_plugin_takes_calls_of_the_registry_alone(place: Place) -> None:
    with elsewhere(place, await place.token()) as plugin:
        await until(lambda: place.is_(State.STATE_READY), 60.0)
        assert plugin.poll() is None
        rows = await place.running.sql("select name, address from registry.remote_processes")
        key, request = certificate_request()
        other = await place.join(await place.token(), request=request)
        name = names.certificate_name(rows[0]["name"])
        describe = plugin_pb2.DescribeRequest(contract_majors=[1])
        trust = (place.where / "ca.pem").read_bytes()
        for papers, code in (
            ((key, other.certificates.encode()), grpc.StatusCode.PERMISSION_DENIED),
            ((None, None), grpc.StatusCode.UNAVAILABLE),
        ):
            credentials = grpc.ssl_channel_credentials(trust, *papers)
            options = [("grpc.ssl_target_name_override", name)]
            async with grpc.aio.secure_channel(rows[0]["address"], credentials, options) as channel:
                stub: Any = plugin_pb2_grpc.PluginServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Describe(describe, timeout=30)
                assert caught.value.code() is code


async def test_who_shows_another_plugins_certificate_is_not_called(place: Place) -> None:
    """It announces the address of a process that is somebody else: the name in TLS does not fit."""
    with elsewhere(place, await place.token()):
        await until(lambda: place.is_(State.STATE_READY), 60.0)
        rows = await place.running.sql("select name, address from registry.remote_processes")
        key, request = certificate_request()
        thief = await place.join(await place.token(), request=request)
        async with place.peer(key, thief.certificates.encode()) as peer:
            stolen = joining_pb2.AnnounceRequest(address=rows[0]["address"])
            await peer.Announce(stolen, timeout=30)
            await place.running.sql("delete from registry.remote_processes where name = $1", rows[0]["name"])
            await until(lambda: place.is_(State.STATE_STARTING), 60.0)

            async def told() -> bool:
                await peer.Announce(stolen, timeout=30)
                return "does not answer" in (await place.processes())[0].explanation

            await until(told, 60.0)


@pytest.mark.parametrize("request_", ["", "no request", "rsa"])
async def test_a_key_that_is_not_on_p256_gets_no_certificate(place: Place, request_: str) -> None:
    if request_ == "rsa":
        request_ = certificate_request(rsa.generate_private_key(65537, 2048))[1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.join(await place.token(), request=request_ or "-")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_authority_is_made_once_and_is_private(tmp_path: Path) -> None:
    clock = SteeredClock()
    file = tmp_path / "keys" / "authority.pem"
    first, second = open_authority(file, clock), open_authority(file, clock)
    assert first.certificate == second.certificate
    assert file.stat().st_mode & 0o777 == 0o600
    root = x509.load_pem_x509_certificate(first.certificate.encode())
    assert root.not_valid_after_utc - clock.now() == timedelta(days=3650)
    own = first.own()
    assert first.own() is own
    await clock.advance(16 * 86400)
    assert first.own() is not own, "past half its life there is a new one"
    issued = x509.load_pem_x509_certificate(
        first.issue(certificate_request()[1], "a.b", timedelta(days=1)).encode()
    )
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    issued.verify_directly_issued_by(root)
    file.chmod(0o644)
    with pytest.raises(Problem, match="others may read it"):
        open_authority(file, clock)
    file.chmod(0o600)
    file.write_text("nonsense")
    with pytest.raises(Problem, match="holds no key"):
        open_authority(file, clock)


def names_in(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def test_only_names_of_ours_are_read() -> None:
    process = names.new_process("one")
    assert names.process_of(names.certificate_name(process)) == process
    for name in ("", names.REGISTRY, "x" + names.certificate_name(process), "one.plugins.tieline.internal"):
        assert names.process_of(name) is None
