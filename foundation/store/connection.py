"""One connection, opened the same way by everybody who needs one."""

from urllib.parse import urlencode

import asyncpg

from foundation.store.errors import LoginRefused, StoreMisconfigured, StoreUnavailable
from foundation.store.url import DatabaseUrl

_CONNECT_TIMEOUT = 10.0
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,  # a wrong password is one of these
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


async def connect(
    url: DatabaseUrl,
    *,
    application: str,
    settings: dict[str, str] | None = None,
) -> "asyncpg.Connection[asyncpg.Record]":
    """Raises `StoreUnavailable`, or `LoginRefused` where waiting cannot help. Neither knows the password."""
    try:
        return await asyncpg.connect(
            dsn=f"postgresql:///?{urlencode(url.options)}",  # the only way in for TLS options; no login in it
            host=url.host,
            port=url.port,
            user=url.user,
            password=url.password,
            database=url.database,
            timeout=_CONNECT_TIMEOUT,
            server_settings={"application_name": application, **(settings or {})},
        )
    except asyncpg.ClientConfigurationError as error:
        raise StoreMisconfigured(f"{url}: {error}") from None
    except _REFUSALS as refusal:
        raise LoginRefused(f"{url} refused: {refusal.message}") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreUnavailable(f"{url} cannot be reached: {str(error) or type(error).__name__}") from error
