"""Makes a database ours: schemas, roles, and nothing for PUBLIC. Safe to run again, and by several at once.

The admin is the embedded superuser, or a user of a managed PostgreSQL who owns the database and may create
roles. Both take the same path: owners are roles that the admin is a member of, never the admin itself, so
that row-level security holds for migrations too (a superuser would bypass it, FORCE or not).

Roles belong to the whole cluster, so two installations in one cluster would reset each other's passwords for
ever. An installation that names itself therefore leaves its mark on its roles, and a marked role is taken by
nobody else. Roles without a mark are taken, and marked: they are of a time or a caller without a name.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import asyncpg

from foundation.store import scram
from foundation.store.connection import connect
from foundation.store.errors import BootstrapRefused
from foundation.store.identifiers import plain, quoted
from foundation.store.schemas import SCHEMAS, Schema
from foundation.store.url import DatabaseUrl

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Serialises the starters of one database. Advisory locks do not reach beyond it, and roles do: starters of
# two databases in one cluster are told apart by the errors below, and the later one looks again.
_LOCK = "select pg_advisory_xact_lock(hashtext('tieline'), hashtext('bootstrap'))"
_ATTEMPTS = 20
_RACES = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalServerError,  # "tuple concurrently updated"
)

_DATABASE = """
    select current_database() as name,
           pg_has_role(datdba, 'usage') as owned,
           (select rolsuper or rolcreaterole from pg_roles where rolname = current_user) as makes_roles,
           current_setting('server_version_num')::int as version,
           has_table_privilege('pg_authid', 'select') as reads_verifiers
    from pg_database where datname = current_database()
"""
_ROLE = """
    select rolcanlogin as login,
           rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls as mighty
    from pg_roles where rolname = $1
"""
_MARK = "tieline installation "
_COMMENTS = """
    select rolname, shobj_description(oid, 'pg_authid') from pg_roles where rolname = any ($1::text[]) order by 1
"""
_COMMENT = "select format('comment on role %I is %L', $1::text, $2::text)"  # COMMENT takes no parameters
_OLDEST_VERSION = 150_000


def new_passwords(schemas: Sequence[Schema] = SCHEMAS) -> dict[str, str]:
    """One for each role that logs in. The caller keeps them, readable to nobody else."""
    return {role: scram.new_password() for schema in schemas for role in schema.logins}


async def bootstrap(
    admin: DatabaseUrl,
    passwords: Mapping[str, str],
    schemas: Sequence[Schema] = SCHEMAS,
    *,
    installation: str | None = None,
) -> None:
    """`passwords` names one for each login role of these schemas; a changed one is changed in the cluster.

    `installation` is whose roles they are, where others may have theirs in the same cluster.
    """
    missing = [role for schema in schemas for role in schema.logins if role not in passwords]
    if missing:
        raise BootstrapRefused(f"no password was given for {', '.join(missing)}")
    connection = await connect(admin, application="tieline-bootstrap")
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await _in_one_transaction(connection, passwords, schemas, installation)
            except _RACES:
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311  spreads starters, hides nothing
            else:
                return
    except asyncpg.PostgresError as error:
        raise BootstrapRefused(f"{admin}: {error.message}") from error
    finally:
        await connection.close()


async def _in_one_transaction(
    connection: Connection,
    passwords: Mapping[str, str],
    schemas: Sequence[Schema],
    installation: str | None,
) -> None:
    async with connection.transaction():
        await connection.execute(_LOCK)
        database = await connection.fetchrow(_DATABASE)
        assert database is not None  # noqa: S101  the database that we are connected to exists
        _refuse_what_we_cannot_take(database)
        for schema in schemas:
            await _ensure_owner(connection, schema)
            for role in schema.logins:
                await _ensure_login(connection, role, passwords[role], reads=database["reads_verifiers"])
        await _claim(connection, [role for schema in schemas for role in schema.roles], installation)
        name = quoted(database["name"])
        await connection.execute(f"revoke all on database {name} from public")
        if await connection.fetchval("select to_regnamespace('public') is not null"):
            await connection.execute("revoke all on schema public from public")
        for schema in schemas:
            await _ensure_schema(connection, schema, name)


def _refuse_what_we_cannot_take(database: asyncpg.Record) -> None:
    if database["version"] < _OLDEST_VERSION:
        raise BootstrapRefused("PostgreSQL 15 or newer is needed")
    if not (database["owned"] and database["makes_roles"]):
        raise BootstrapRefused(
            f"the admin must own the database {database['name']!r} and be allowed to create roles"
        )


async def _ensure_owner(connection: Connection, schema: Schema) -> None:
    if not await _exists(connection, schema.owner, login=False):
        await connection.execute(f"create role {plain(schema.owner)}")
    # 'set' as a privilege is newer than PostgreSQL 15; there, membership is usage and set at once.
    if not await connection.fetchval("select pg_has_role($1, 'usage')", schema.owner):
        await connection.execute(f"grant {plain(schema.owner)} to current_user")


async def _ensure_login(connection: Connection, role: str, password: str, *, reads: bool) -> None:
    if not await _exists(connection, role, login=True):
        await connection.execute(f"create role {plain(role)} login password '{scram.verifier(password)}'")
        return
    # A managed PostgreSQL does not show what it has, so there the same password is simply set again.
    known = (
        await connection.fetchval("select rolpassword from pg_authid where rolname = $1", role)
        if reads
        else None
    )
    if known is None or not scram.verifies(password, known):
        await connection.execute(f"alter role {plain(role)} password '{scram.verifier(password)}'")


async def _exists(connection: Connection, role: str, *, login: bool) -> bool:
    found = await connection.fetchrow(_ROLE, role)
    if found is None:
        return False
    if found["mighty"] or found["login"] is not login:
        raise BootstrapRefused(f"the role {role} exists, and can do what none of ours may")
    return True


async def _claim(connection: Connection, roles: Sequence[str], installation: str | None) -> None:
    """Mark them as ours, or refuse: then the transaction ends and no password was changed."""
    mine = None if installation is None else f"{_MARK}{installation}"
    for role, comment in await connection.fetch(_COMMENTS, roles):
        marked = (comment or "").startswith(_MARK)
        if marked and comment != mine:
            raise BootstrapRefused(
                f"the role {role} belongs to another installation ({comment.removeprefix(_MARK)}): "
                "give this one a `database_role_prefix` of its own"
            )
        if mine is not None and not marked:
            await connection.execute(await connection.fetchval(_COMMENT, role, mine))


async def _ensure_schema(connection: Connection, schema: Schema, database: str) -> None:
    name, owner = plain(schema.name), plain(schema.owner)
    logins = ", ".join(map(plain, schema.logins))
    await connection.execute(f"create schema if not exists {name} authorization {owner}")
    actual = await connection.fetchval(
        "select nspowner::regrole::text from pg_namespace where nspname = $1", schema.name
    )
    if actual != schema.owner:
        raise BootstrapRefused(f"the schema {schema.name} exists and belongs to {actual}")
    await connection.execute(f"""
        revoke all on schema {name} from public;
        grant usage on schema {name} to {logins};
        grant connect on database {database} to {logins};
        alter default privileges for role {owner} revoke execute on functions from public;
        alter default privileges for role {owner} revoke usage on types from public;
    """)
