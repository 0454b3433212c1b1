"""All queries of replicas. The database's clock decides who is alive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.replicas.replica import Life

ALIVE_SECONDS = 10.0
"""Without a heartbeat for so long a replica is gone."""
FORGET_DAYS = 1

_BEAT = text("""
    insert into replicas (id, host, machine, process) values (:replica, :host, :machine, :process)
    on conflict (id) do update set heartbeat_time = now() returning xmax = 0 as is_new
""")
_COUNT = text("""
    select count(*) from replicas where heartbeat_time > now() - make_interval(secs => :alive)
""")
_NEIGHBOURS = text("select id, process from replicas where machine = :machine and id <> :replica")
_LEAVE = [
    text("delete from replicas where id = :replica"),
    text("delete from replica_processes where replica = :replica"),
]
_DESCRIBE = text("""
    insert into replica_processes (replica, name, described)
    select :replica, name, described from unnest(cast(:names as text[]), cast(:described as bytea[])) as t (name, described)
    on conflict (replica, name) do update set described = excluded.described
""")
_DROP = text("delete from replica_processes where replica = :replica and name = any(cast(:names as text[]))")
_PROCESSES = text("""
    select p.replica, p.name, p.described from replica_processes p join replicas r on r.id = p.replica
    where r.heartbeat_time > now() - make_interval(secs => :alive) and p.replica <> :replica
    order by p.name, p.replica
""")
_HOST = text("""
    select host from replicas where id = :replica and heartbeat_time > now() - make_interval(secs => :alive)
""")
_ORDER = text("""
    insert into replica_orders (id, replica, verb, resource, request_id)
    values (:id, :replica, :verb, :resource, :request_id)
""")
_TAKE = text("""
    update replica_orders o set begin_time = now() from (
        select id from replica_orders where replica = :replica and begin_time is null
        order by create_time limit 20 for update skip locked
    ) mine where o.id = mine.id returning o.id, o.verb, o.resource, o.request_id
""")
_END = text(
    "update replica_orders set end_time = now(), outcome = :outcome, problem = :problem where id = :id"
)
_WITHDRAW = text("delete from replica_orders where id = :id and begin_time is null")
_OUTCOME = text("select outcome, problem from replica_orders where id = :id and end_time is not null")
_BEGIN_ROLLOUT = text("""
    insert into rollouts (name, plugin, replica, is_over, described)
    values (:name, :plugin, :replica, false, :described) on conflict do nothing returning name
""")
_TELL_ROLLOUT = text("update rollouts set is_over = :is_over, described = :described where name = :name")
_END_ORPHANS = text("""
    update rollouts o set is_over = true where not o.is_over and (cast(:plugin as text) = '' or o.plugin = :plugin)
      and not exists (select from replicas r where r.id = o.replica
                      and r.heartbeat_time > now() - make_interval(secs => :alive))
""")
_ROLLOUT = text("""
    select o.name, o.replica, o.is_over, o.described, exists (
        select from replicas r where r.id = o.replica
        and r.heartbeat_time > now() - make_interval(secs => :alive)) as alive
    from rollouts o where o.name = :name
""")
_UNDER_WAY = text("""
    select o.described from rollouts o join replicas r on r.id = o.replica
    where o.plugin = :plugin and not o.is_over and r.heartbeat_time > now() - make_interval(secs => :alive)
""")
_SWEEP = [
    text("delete from replica_orders where create_time < now() - make_interval(days => :days)"),
    text("delete from rollouts where is_over and create_time < now() - make_interval(days => 30 * :days)"),
    text("delete from replicas where heartbeat_time < now() - make_interval(days => :days)"),
    text("delete from replica_processes p where not exists (select from replicas r where r.id = p.replica)"),
]


@dataclass(frozen=True, slots=True)
class Order:
    """What one replica asks of another."""

    id: str
    verb: str
    resource: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a message of the contract, or a problem as JSON."""

    message: bytes | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class KeptRollout:
    name: str
    replica: str
    is_over: bool
    described: bytes
    alive: bool


async def beat(work: AsyncConnection, replica: str, host: str, life: Life) -> bool:
    """True: nobody knew of it, so what it told before is forgotten."""
    row = {"replica": replica, "host": host, "machine": life.machine, "process": life.process}
    return bool((await work.execute(_BEAT, row)).scalar_one())


async def count(work: AsyncConnection) -> int:
    """How many there are, as far as their hearts say."""
    number: int = (await work.execute(_COUNT, {"alive": ALIVE_SECONDS})).scalar_one()
    return number


async def neighbours(work: AsyncConnection, replica: str, machine: str) -> list[tuple[str, str]]:
    """Others on this machine: their ids, and their processes."""
    rows = await work.execute(_NEIGHBOURS, {"replica": replica, "machine": machine})
    return [(row.id, row.process) for row in rows]


async def leave(work: AsyncConnection, replica: str) -> None:
    for statement in _LEAVE:
        await work.execute(statement, {"replica": replica})


async def describe(
    work: AsyncConnection, replica: str, changed: Mapping[str, bytes], gone: Sequence[str]
) -> None:
    if changed:
        told = {"names": list(changed), "described": list(changed.values())}
        await work.execute(_DESCRIBE, {"replica": replica, **told})
    if gone:
        await work.execute(_DROP, {"replica": replica, "names": list(gone)})


async def processes(work: AsyncConnection, replica: str) -> list[tuple[str, str, bytes]]:
    """Of all live replicas but this one: whose, its name, and what its owner says of it."""
    rows = await work.execute(_PROCESSES, {"replica": replica, "alive": ALIVE_SECONDS})
    return [(row.replica, row.name, row.described) for row in rows]


async def host_of(work: AsyncConnection, replica: str) -> str | None:
    """None: it is gone."""
    host: str | None = (
        await work.execute(_HOST, {"replica": replica, "alive": ALIVE_SECONDS})
    ).scalar_one_or_none()
    return host


async def give(work: AsyncConnection, replica: str, order: Order) -> None:
    row = {"id": order.id, "verb": order.verb, "resource": order.resource, "request_id": order.request_id}
    await work.execute(_ORDER, row | {"replica": replica})


async def take(work: AsyncConnection, replica: str) -> list[Order]:
    return [Order(*row) for row in await work.execute(_TAKE, {"replica": replica})]


async def end(work: AsyncConnection, id_: str, outcome: Outcome) -> None:
    await work.execute(_END, {"id": id_, "outcome": outcome.message, "problem": outcome.problem})


async def withdraw(work: AsyncConnection, id_: str) -> bool:
    """False: it was begun."""
    return bool((await work.execute(_WITHDRAW, {"id": id_})).rowcount)


async def outcome(work: AsyncConnection, id_: str) -> Outcome | None:
    row = (await work.execute(_OUTCOME, {"id": id_})).one_or_none()
    return None if row is None else Outcome(*row)


async def begin_rollout(
    work: AsyncConnection, name: str, plugin: str, replica: str, described: bytes
) -> bool:
    """False: another one of this plugin is under way. What a dead replica left is not."""
    await work.execute(_END_ORPHANS, {"plugin": plugin, "alive": ALIVE_SECONDS})
    row = {"name": name, "plugin": plugin, "replica": replica, "described": described}
    return (await work.execute(_BEGIN_ROLLOUT, row)).one_or_none() is not None


async def tell_rollout(work: AsyncConnection, name: str, described: bytes, *, is_over: bool) -> None:
    await work.execute(_TELL_ROLLOUT, {"name": name, "is_over": is_over, "described": described})


async def rollout(work: AsyncConnection, name: str) -> KeptRollout | None:
    row = (await work.execute(_ROLLOUT, {"name": name, "alive": ALIVE_SECONDS})).one_or_none()
    return None if row is None else KeptRollout(*row)


async def under_way(work: AsyncConnection, plugin: str) -> bytes | None:
    """What its live owner says of the rollout of this plugin."""
    row = (await work.execute(_UNDER_WAY, {"plugin": plugin, "alive": ALIVE_SECONDS})).one_or_none()
    return None if row is None else row.described


async def sweep(work: AsyncConnection) -> None:
    for statement in _SWEEP:
        wanted = {"days": FORGET_DAYS} if "days" in statement.compile().params else {}
        await work.execute(statement, wanted)
    await work.execute(_END_ORPHANS, {"plugin": "", "alive": ALIVE_SECONDS})
