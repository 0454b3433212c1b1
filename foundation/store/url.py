"""A database URL that can be passed around, compared and printed without giving its password away."""

from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from foundation.store.errors import StoreMisconfigured

# A closed set: a misspelt `sslmod=verify-full` must not connect without verifying anything.
_OPTIONS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "target_session_attrs"})
DEFAULT_PORT = 5432


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """`postgresql://user:password@host:port/database?sslmode=…`, or `…@/database?host=/socket/directory`."""

    user: str
    password: str | None = field(repr=False)
    host: str
    port: int
    database: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "DatabaseUrl":
        # Whatever is wrong with the text, no part of it is repeated: a password with a bare `/` in it ends
        # up in what the standard library takes for the port, and in its message.
        try:
            parts = urlsplit(text.strip())
            query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
            host = unquote(parts.hostname or "") or query.pop("host", "localhost")
            port = int(query.pop("port", 0)) or parts.port or DEFAULT_PORT
        except ValueError:
            raise StoreMisconfigured(
                "the database URL is malformed; is its password percent-encoded?"
            ) from None
        if parts.scheme not in {"postgresql", "postgres"}:
            raise StoreMisconfigured("the database URL must start with postgresql://")
        if not parts.username or not parts.path.strip("/"):
            raise StoreMisconfigured("the database URL must name a user and a database")
        if unknown := sorted(set(query) - _OPTIONS):
            raise StoreMisconfigured(f"the database URL has options we do not know: {', '.join(unknown)}")
        return cls(
            user=unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            host=host,
            port=port,
            database=unquote(parts.path.strip("/")),
            options=tuple(sorted(query.items())),
        )

    def login(self, user: str, password: str) -> "DatabaseUrl":
        return replace(self, user=user, password=password)

    def at(self, database: str) -> "DatabaseUrl":
        return replace(self, database=database)

    def reveal(self) -> str:
        """The whole URL, password included: for a 0600 file or a child's environment, never for a log."""
        return self._text(None if self.password is None else quote(self.password, safe=""))

    def __str__(self) -> str:
        return self._text(None if self.password is None else "***")

    def _text(self, password: str | None) -> str:
        login = quote(self.user, safe="") + ("" if password is None else f":{password}")
        on_socket = self.host.startswith("/")
        where = "" if on_socket else f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        query = dict(self.options) | ({"host": self.host} if on_socket else {})
        if self.port != DEFAULT_PORT:
            if on_socket:
                query["port"] = str(self.port)
            else:
                where += f":{self.port}"
        path = quote(self.database, safe="")
        return f"postgresql://{login}@{where}/{path}" + (f"?{urlencode(query, safe='/')}" if query else "")
