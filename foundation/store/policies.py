"""The wall between tenants, in SQL: written by `tenancy`, looked for by `walls`."""

TENANT = "tenant"
SERVICE_POLICY = "tenants_of_this_transaction"
WORKER_POLICY = "every_tenant"
# TRUNCATE, REFERENCES and TRIGGER get around row-level security: no service may have them.
PRIVILEGES = frozenset({"select", "insert", "update", "delete"})


def tenants_of_this_transaction(schema: str) -> str:
    """The sub-select is evaluated once for a statement, and its result is an index condition.

    Bare, the function would be called for every row that no index has chosen, and for every row of a batch
    (a scan of 200,000 rows with 50 tenants took five times as long). `= any((select …)::text[])` compares
    with an array; without the cast it would be a sub-query of rows.
    """
    return f"{TENANT} = any ((select {schema}.tenants())::text[])"


def as_the_catalogue_shows_it(schema: str) -> str:
    """The same expression as `pg_get_expr` writes it."""
    return f"({TENANT} = ANY (( SELECT {schema}.tenants() AS tenants)::text[]))"
