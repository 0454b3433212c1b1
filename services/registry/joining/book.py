"""Who may join, who did, and what speaks for them from then on."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.settings import Address
from foundation.store.unit_of_work import Store
from services.registry.catalogue.versions import ANY, Range, Version
from services.registry.joining import names, store
from services.registry.joining.authority import Authority

log = structlog.get_logger(__name__)

TOKEN_LIFE = timedelta(minutes=10)
SAME_REQUEST = timedelta(minutes=1)
_PREFIX = "tl_join_"


@dataclass(frozen=True, slots=True)
class Joined:
    process: str
    certificates: str


class JoinBook:
    def __init__(
        self, worker: Store, authority: Authority, clock: Clock, certificate_life: timedelta
    ) -> None:
        self._worker, self._clock = worker, clock
        self._life = certificate_life
        self.authority = authority

    async def create_token(self, plugin: str, version_range: str) -> tuple[str, datetime]:
        _range(version_range)
        token, expire_time = _PREFIX + secrets.token_urlsafe(32), self._clock.now() + TOKEN_LIFE
        async with self._worker.across_tenants() as work:
            await store.sweep(work, self._clock.now(), self._life)
            await store.create_token(work, _hash(token), plugin, version_range, expire_time)
        return token, expire_time

    async def join(self, token: str, certificate_request: str, plugin: str, version: str) -> Joined:
        try:
            wanted = Version.parse(version)
        except ValueError as error:
            raise Problem(Code.INVALID_ARGUMENT, field="version", why=str(error)) from None
        said = hashlib.sha256(f"{certificate_request}\0{plugin}\0{version}".encode()).digest()
        now, hash_ = self._clock.now(), _hash(token)
        async with self._worker.across_tenants() as work:
            found = await store.take_token(work, hash_)
            if found is None or found.plugin != plugin or not _range(found.version_range).admits(wanted):
                raise _refused("it is none for this plugin and version")
            if found.use_time is not None:
                return _again(found, said, now)
            if found.expire_time <= now:
                raise _refused("its ten minutes are over")
            process = names.new_process(plugin)
            certificates = self.authority.issue(
                certificate_request, names.certificate_name(process), self._life
            )
            await store.use_token(work, hash_, now, request=said, certificates=certificates, process=process)
            await store.join(work, process, plugin, version, now)
        log.info("a plugin joined", process=process, version=version)
        return Joined(process, certificates)

    async def renew(self, process: str, certificate_request: str) -> str:
        async with self._worker.across_tenants() as work:
            if not await store.known(work, process):
                raise _forgotten()
        return self.authority.issue(certificate_request, names.certificate_name(process), self._life)

    async def announce(self, process: str, address: str) -> bool:
        """Whether it should restart."""
        try:
            Address.parse(address)
        except ValueError as error:
            raise Problem(Code.INVALID_ARGUMENT, field="address", why=str(error)) from None
        async with self._worker.across_tenants() as work:
            wanted = await store.announce(work, process, address)
        if wanted is None:
            raise _forgotten()
        return wanted

    async def members(self) -> list[store.Member]:
        async with self._worker.across_tenants() as work:
            return await store.members(work)

    async def want_restart(self, process: str) -> None:
        async with self._worker.across_tenants() as work:
            await store.want_restart(work, process)

    async def forget(self, process: str) -> None:
        """Its certificate is good for nothing from now on."""
        async with self._worker.across_tenants() as work:
            await store.forget(work, process)


def _again(found: store.Token, said: bytes, now: datetime) -> Joined:
    """An answer may get lost, so the same request is answered alike for a moment."""
    fresh = found.use_time is not None and now - found.use_time <= SAME_REQUEST
    if not fresh or found.request != said or found.process is None or found.certificates is None:
        raise _refused("somebody joined with it already")
    return Joined(found.process, found.certificates)


def _range(text: str) -> Range:
    try:
        return Range.parse(text) if text else ANY
    except ValueError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="version_range", why=str(error)) from None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _refused(why: str) -> Problem:
    return Problem(Code.TOKEN_INVALID, why=why)


def _forgotten() -> Problem:
    return Problem(Code.TOKEN_INVALID, why="this process is not known any more: join again with a new token")
