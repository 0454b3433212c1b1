"""Which schemas there are, and who may do what in them.

Every service has a schema of its own, and three roles to go with it:

* the owner cannot log in. It owns everything in the schema, and migrations become it for one transaction;
* the service role answers requests: it owns nothing, and row-level security always applies to it;
* the worker role relays, expires and schedules across tenants, in the tables that migrations opened to it.

Roles belong to the whole cluster, schemas to one database. Databases that serve one installation (or the
suites of one test run) share roles and passwords; a second installation in a cluster takes another `prefix`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from foundation.store.errors import StoreMisconfigured
from foundation.store.identifiers import is_plain

_SERVICES = Path(__file__).resolve().parents[2] / "services"
VERSION_TABLE = "schema_version"


@dataclass(frozen=True, slots=True)
class Schema:
    name: str
    migrations: Path
    prefix: str = "tieline"

    def __post_init__(self) -> None:
        # Names are checked once, here, so that statements which cannot take parameters may be built of them.
        for name in (self.name, *self.roles):
            if not is_plain(name):
                raise StoreMisconfigured(f"{name!r} cannot be the name of a schema or a role")

    @property
    def owner(self) -> str:
        return f"{self.prefix}_{self.name}_owner"

    @property
    def service(self) -> str:
        return f"{self.prefix}_{self.name}_service"

    @property
    def worker(self) -> str:
        return f"{self.prefix}_{self.name}_worker"

    @property
    def roles(self) -> tuple[str, str, str]:
        return self.owner, self.service, self.worker

    @property
    def logins(self) -> tuple[str, str]:
        return self.service, self.worker

    def prefixed(self, prefix: str) -> "Schema":
        return replace(self, prefix=prefix)


CREDENTIALS, REGISTRY, MAPPER = SCHEMAS = tuple(
    Schema(name, _SERVICES / name / "migrations") for name in ("credentials", "registry", "mapper")
)
