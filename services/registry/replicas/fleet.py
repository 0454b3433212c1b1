"""All replicas as one: whoever is asked answers for all, and has others do what is theirs to do."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.registry.catalogue.versions import Version
from services.registry.host.described import told_rollout
from services.registry.replicas import store
from services.registry.replicas.own import Own
from services.registry.replicas.store import Order, Outcome
from tieline.common.v1.failure_pb2 import FAILURE_KIND_TRANSIENT, Failure
from tieline.registry.v1.processes_pb2 import Process, Rollout

PATIENCE_SECONDS = 45.0
"""A restart finishes the calls in flight first."""
LOOK_SECONDS = 0.2

_DONE = {"restart": "restarted", "release": "released", "cancel": "cancelled"}


class Fleet:
    def __init__(self, own: Own, worker: Store, clock: Clock) -> None:
        self._own, self._worker, self._clock = own, worker, clock

    async def processes(self) -> dict[str, Process]:
        """By name. What runs elsewhere and joined is called by every replica, and told once."""
        found = self._own.processes()
        async with self._worker.across_tenants() as work:
            for _, name, text in await store.processes(work, self._own.replica):
                found.setdefault(name, Process.FromString(text))
        return found

    async def process(self, name: str) -> Process:
        every = await self.processes()
        if name in every:
            return every[name]
        own = self._own.find(name)
        if own is not None:
            return every[own]
        # People may leave the replica out where that is clear enough.
        alike = [whole for whole in every if whole.rpartition("-")[0] == name]
        if len(alike) == 1:
            return every[alike[0]]
        if alike:
            why = f"there are several; name one of {', '.join(sorted(alike)[:5])}"
            raise Problem(Code.INVALID_ARGUMENT, field="name", why=why)
        raise Problem(Code.NOT_FOUND, what=f"process {name}")

    async def restart(self, name: str, request_id: str) -> Process:
        if self._own.find(name) is not None:
            return await self._own.restart(name, request_id)
        owner = await self._owner(name)
        return Process.FromString(await self._order(owner, Order(_id(), "restart", name, request_id)))

    async def release(self, name: str) -> Process:
        if self._own.find(name) is not None:
            return self._own.release(name)
        owner = await self._owner(name)
        return Process.FromString(await self._order(owner, Order(_id(), "release", name, "")))

    async def upgrade(self, plugin: str, target: Version, observation: timedelta) -> Rollout:
        """Begin it here. Elsewhere the same one may be under way: then that is the answer."""
        if self._own.rollouts.under_way(plugin) is not None:
            return told_rollout(self._own.rollouts.start(plugin, target, observation))
        name = f"plugins/{plugin}/rollouts/{secrets.token_hex(8)}"
        begun = Rollout(name=name, to_version=str(target), state=Rollout.STATE_PREPARING)
        async with self._worker.across_tenants() as work:
            present = await store.under_way(work, plugin)
            if present is not None:
                return _the_same(plugin, target, Rollout.FromString(present))
            self._own.rollouts.demand_possible(plugin, target)
            text = begun.SerializeToString()
            if not await store.begin_rollout(work, name, plugin, self._own.replica, text):
                why = "another upgrade of it began in this moment"
                raise Problem(Code.CONFLICT, why=why)
        return told_rollout(self._own.rollouts.start(plugin, target, observation, name))

    async def rollout(self, name: str) -> Rollout:
        if self._own.rollouts.knows(name):
            return told_rollout(self._own.rollouts.get(name))
        return _told(await self._kept(name))

    async def cancel(self, name: str) -> Rollout:
        if self._own.rollouts.knows(name):
            return await self._own.cancel(name)
        kept = await self._kept(name)
        if kept.is_over or not kept.alive:
            raise Problem(Code.STATE_REFUSES, what=name, wanted="cancelled", why="it is over")
        return Rollout.FromString(await self._order(kept.replica, Order(_id(), "cancel", name, "")))

    async def _kept(self, name: str) -> store.KeptRollout:
        async with self._worker.across_tenants() as work:
            found = await store.rollout(work, name)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"rollout {name}")
        return found

    async def _owner(self, name: str) -> str:
        async with self._worker.across_tenants() as work:
            for replica, known, _ in await store.processes(work, self._own.replica):
                if known == name:
                    return replica
        raise Problem(Code.NOT_FOUND, what=f"process {name}")

    async def _order(self, replica: str, order: Order) -> bytes:
        """What came of it, or the problem that its owner met; a problem too if that does not answer."""
        async with self._worker.across_tenants() as work:
            await store.give(work, replica, order)
        until = self._clock.monotonic() + PATIENCE_SECONDS
        host: str | None = replica
        while host is not None and self._clock.monotonic() < until:
            await self._clock.sleep(LOOK_SECONDS)
            async with self._worker.across_tenants() as work:
                outcome = await store.outcome(work, order.id)
                host = await store.host_of(work, replica)
            if outcome is not None:
                return _read(outcome)
        async with self._worker.across_tenants() as work:
            withdrawn = await store.withdraw(work, order.id)
        done = "nothing was done" if withdrawn else "it began what was asked; look what became of it"
        silent = f"did not answer in {PATIENCE_SECONDS:g} s" if host is not None else "is gone"
        why = f"the registry's replica {host or replica} {silent}; {done}"
        # Not as something unavailable: who is asked again for us would wait as long again.
        raise Problem(Code.STATE_REFUSES, what=order.resource, wanted=_DONE[order.verb], why=why)


def _the_same(plugin: str, target: Version, present: Rollout) -> Rollout:
    if present.to_version == str(target):
        return present
    why = f"{present.name} to {present.to_version} is under way"
    raise Problem(Code.STATE_REFUSES, what=plugin, wanted=f"upgraded to {target}", why=why)


def _read(outcome: Outcome) -> bytes:
    if outcome.problem is not None:
        code, data = json.loads(outcome.problem)
        raise Problem(Code[code], **data)
    return outcome.message or b""


def _told(kept: store.KeptRollout) -> Rollout:
    told = Rollout.FromString(kept.described)
    over = told.state in {Rollout.STATE_DONE, Rollout.STATE_ROLLED_BACK}
    if not kept.alive and not over and not told.HasField("failure"):
        why = "the replica that saw to it is gone; what served then goes on serving"
        told.failure.CopyFrom(Failure(kind=FAILURE_KIND_TRANSIENT, reason="REPLICA_GONE", message=why))
    return told


def _id() -> str:
    return secrets.token_hex(12)
