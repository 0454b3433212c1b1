"""`python -m foundation.store migrate|check`: for deployments whose database is not ours to start.

The admin's URL comes from the environment, or from a file that is readable to nobody else: an argument could
be read by every user of the machine.
"""

import argparse
import asyncio
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from foundation.store.bootstrap import bootstrap
from foundation.store.errors import StoreError, StoreMisconfigured
from foundation.store.migrate import migrate
from foundation.store.url import DatabaseUrl
from foundation.store.walls import gaps

URL = "TIELINE_DATABASE_ADMIN_URL"
URL_FILE = "TIELINE_DATABASE_ADMIN_URL_FILE"
PASSWORDS_FILE = "TIELINE_DATABASE_PASSWORDS_FILE"


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m foundation.store",
        description="Prepares or checks the database that TIELINE_DATABASE_ADMIN_URL[_FILE] names.",
        epilog=f"{PASSWORDS_FILE}: JSON, a password for each login role; with it, roles and schemas are made first.",
    )
    parser.add_argument("verb", choices=["migrate", "check"])
    verb = {"migrate": _migrate, "check": _check}[parser.parse_args(arguments).verb]
    try:
        return asyncio.run(verb(_admin_url(environment), environment))
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1


async def _migrate(admin: DatabaseUrl, environment: Mapping[str, str]) -> int:
    if path := environment.get(PASSWORDS_FILE):
        await bootstrap(admin, _passwords(Path(path)))
    changed = await migrate(admin)
    sys.stdout.write(f"migrated {', '.join(changed)}\n" if changed else "nothing to migrate\n")
    return 0


async def _check(admin: DatabaseUrl, _environment: Mapping[str, str]) -> int:
    found = await gaps(admin)
    sys.stdout.writelines(f"{gap}\n" for gap in [*found, f"{len(found)} gaps"])
    return 1 if found else 0


def _admin_url(environment: Mapping[str, str]) -> DatabaseUrl:
    if path := environment.get(URL_FILE):
        return DatabaseUrl.parse(_read_private(Path(path)))
    if url := environment.get(URL):
        return DatabaseUrl.parse(url)
    raise StoreMisconfigured(f"set {URL_FILE} to a file that holds the admin's database URL, or {URL}")


def _passwords(path: Path) -> dict[str, str]:
    try:
        found = json.loads(_read_private(path))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(password, str) for password in found.values()):
        raise StoreMisconfigured(f"{path}: not a JSON object of passwords by role") from None
    return found


def _read_private(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise StoreMisconfigured(f"{path} can be read by others: chmod 600")
        return path.read_text()
    except OSError as error:
        raise StoreMisconfigured(f"{path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
