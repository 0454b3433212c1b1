"""Walks the catalogue of a migrated database and says where a wall between tenants or services has a gap.

`tenant_table` builds the walls; this looks at what is really there, whoever wrote it and however.
Each query returns one sentence for each gap.
"""

from collections.abc import Sequence

from foundation.store.connection import connect
from foundation.store.policies import (
    PRIVILEGES,
    SERVICE_POLICY,
    TENANT,
    WORKER_POLICY,
    as_the_catalogue_shows_it,
)
from foundation.store.schemas import SCHEMAS, VERSION_TABLE, Schema
from foundation.store.url import DatabaseUrl

# Partitions are reached through their parent only, so for them
# it is enough that nobody was granted anything (see _GRANTS).
_ROWS = f"""
    with tables as (
        select c.oid, c.relname, c.relkind, c.relrowsecurity and c.relforcerowsecurity as walled
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = '{TENANT}' and not a.attisdropped
        where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p', 'm', 'f') and not c.relispartition
    ), policies as (
        select t.relname, p.*, p.polroles = array[$2::text::regrole::oid] as for_service,
               pg_get_expr(p.polqual, p.polrelid) as using_rows,
               pg_get_expr(p.polwithcheck, p.polrelid) as check_rows
        from tables t join pg_policy p on p.polrelid = t.oid
    )
    select format('%s: row-level security is not forced', relname) from tables where not walled
    union all
    select format('%s: has tenants, and is no plain table', relname) from tables where relkind in ('m', 'f')
    union all
    select format('%s: no policy {SERVICE_POLICY}', relname) from tables t where not exists (
        select from policies p where p.polrelid = t.oid and p.polname = '{SERVICE_POLICY}' and p.for_service)
    union all
    select format('%s: policy %s lets rows through that it should not', relname, polname) from policies
    where for_service and (polcmd <> '*' or using_rows is distinct from $4::text or check_rows is distinct from $4::text)
    union all
    select format('%s: policy %s is for others than service or worker', relname, polname) from policies
    where not (for_service or (polroles = array[$3::text::regrole::oid] and polname = '{WORKER_POLICY}'))
    union all
    select format('%s: no primary key', relname) from tables t
    where not exists (select from pg_index i where i.indrelid = t.oid and i.indisprimary)
    union all
    select format('%s: %s is unique across tenants', relname, i.indexrelid::regclass)
    from tables t join pg_index i on i.indrelid = t.oid and i.indisunique
    where '{TENANT}' is distinct from (
        select attname from pg_attribute a where a.attrelid = t.oid and a.attnum = i.indkey[0])
"""  # noqa: S608  constants of ours

# Rows that are everybody's are rare enough to say why: in the table's comment, "platform: ...".
_SHARED = """
    select format('%s: no tenant column, and no comment "platform: …" that says why', c.relname) from pg_class c
    where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p', 'm', 'f') and not c.relispartition
      and c.relname <> $2::text and coalesce(obj_description(c.oid, 'pg_class'), '') not like 'platform: _%'
      and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = $3::text)
"""

_OWNERS = """
    select format('%s belongs to %s', oid::regclass, relowner::regrole) from pg_class
    where relnamespace = $1::text::regnamespace and relowner <> $2::text::regrole
    union all
    select format('%s belongs to %s', oid::regprocedure, proowner::regrole) from pg_proc
    where pronamespace = $1::text::regnamespace and proowner <> $2::text::regrole
    union all
    select format('schema %s belongs to %s', nspname, nspowner::regrole) from pg_namespace
    where nspname = $1::text and nspowner <> $2::text::regrole
    union all
    select format('the owner %s can log in', rolname) from pg_roles where rolname = $2::text and rolcanlogin
"""

_ROLES = """
    select format('%s is superuser, or bypasses row-level security, or makes roles or databases', rolname)
    from pg_roles where rolname in ($2::text, $3::text, $4::text)
      and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)
    union all
    select format('%s is a member of %s', member::regrole, roleid::regrole)
    from pg_auth_members where member in ($2::text::regrole, $3::text::regrole, $4::text::regrole)
    union all
    select format('%s owns something', refobjid::regrole) from pg_shdepend
    where refclassid = 'pg_authid'::regclass and deptype = 'o' and refobjid in ($3::text::regrole, $4::text::regrole)
      and dbid in (0, (select oid from pg_database where datname = current_database()))
    union all
    select format('%s may use schema %s', role, nspname)
    from pg_namespace, unnest(array[$3::text, $4::text]) as role
    where nspname not in ($1::text, 'pg_catalog', 'information_schema') and has_schema_privilege(role, oid, 'usage')
    union all
    select format('%s may create in schema %s', role, nspname)
    from pg_namespace, unnest(array[$3::text, $4::text]) as role where has_schema_privilege(role, oid, 'create')
    union all
    select format('%s may create in the database', role) from unnest(array[$3::text, $4::text]) as role
    where has_database_privilege(role, current_database(), 'create, temporary')
"""

_GRANTS = f"""
    with granted as (
        select c.oid::regclass::text as what, c.relispartition, a.grantee, a.privilege_type
        from pg_class c, aclexplode(c.relacl) a where c.relnamespace = $1::text::regnamespace
        union all
        select p.oid::regprocedure::text, false, a.grantee, a.privilege_type
        from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        where p.pronamespace = $1::text::regnamespace
        union all
        select format('schema %s', n.nspname), false, a.grantee, a.privilege_type
        from pg_namespace n, aclexplode(n.nspacl) a where n.nspname in ($1::text, 'public')
        union all
        select format('database %s', d.datname), false, a.grantee, a.privilege_type
        from pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
        where d.datname = current_database()
    )
    select format('%s: PUBLIC may %s', what, lower(privilege_type)) from granted where grantee = 0
    union all
    select format('%s: %s may %s', what, grantee::regrole, lower(privilege_type)) from granted
    where grantee in ($2::text::regrole, $3::text::regrole)
      and (relispartition or lower(privilege_type) not in ({", ".join(f"'{p}'" for p in sorted(PRIVILEGES))},
                                                           'usage', 'execute', 'connect'))
"""  # noqa: S608  constants of ours


async def gaps(admin: DatabaseUrl, schemas: Sequence[Schema] = SCHEMAS) -> list[str]:
    """Every gap, as a sentence that starts with its schema. An empty list is what a good database gives."""
    connection = await connect(admin, application="tieline-walls", settings={"search_path": ""})
    try:
        found = []
        for schema in schemas:
            name, (owner, service, worker) = schema.name, schema.roles
            queries = [
                (_ROWS, (name, service, worker, as_the_catalogue_shows_it(name))),
                (_SHARED, (name, VERSION_TABLE, TENANT)),
                (_OWNERS, (name, owner)),
                (_ROLES, (name, owner, service, worker)),
                (_GRANTS, (name, service, worker)),
            ]
            for query, arguments in queries:
                found += [f"{schema.name}: {row[0]}" for row in await connection.fetch(query, *arguments)]
        return found
    finally:
        await connection.close()
