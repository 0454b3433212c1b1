"""`tieline provision`: the keys and settings of a deployment, made once into a directory.

What several machines or containers need to start together and nobody else may read: the root key, a token
for each process, the database roles' passwords, and a settings file for each service that holds what is
secret. Addresses that are not secret stand where the services are started.
"""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path

from cli.fleet import MODULES, logins, secrets_of, settings_text
from cli.keys import Keys
from foundation.errors import Code, Problem
from foundation.process.private import write_private
from foundation.settings import Address
from foundation.store.bootstrap import new_passwords
from foundation.store.errors import StoreMisconfigured
from foundation.store.schemas import SCHEMAS
from foundation.store.url import DatabaseUrl

ADMIN = "tieline_admin"
DATABASE = "tieline"


def arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("directory", type=Path, help="where to; what is there already is kept")
    database = verb.add_mutually_exclusive_group(required=True)
    database.add_argument(
        "--postgres",
        metavar="HOST:PORT",
        help=f"a new PostgreSQL; its user {ADMIN} gets the password made here",
    )
    database.add_argument(
        "--database-url-file", type=Path, metavar="FILE", help="the administrator's URL of one that is there"
    )
    nats = verb.add_mutually_exclusive_group(required=True)
    nats.add_argument("--nats", metavar="HOST:PORT", help="a new NATS server, run on the nats.conf made here")
    nats.add_argument("--nats-url-file", type=Path, metavar="FILE", help="the URL of one that is there")


def provision(options: argparse.Namespace) -> None:
    directory: Path = options.directory.absolute()
    keys = Keys(directory)
    keys.prepare()
    admin = _admin(options, keys)
    nats = _nats(options, keys)
    keys.ensure_tokens()
    passwords = keys.passwords(new_passwords)
    write_private(directory / "database-admin-url", admin.reveal() + "\n")
    databases = logins(admin, passwords, SCHEMAS)
    for service in MODULES:
        text = settings_text(service, secrets_of(service, keys, databases, nats))
        write_private(directory / f"{service}.toml", text)
    print(f"keys and settings are in {directory}; whoever reads them reads everything")


def _admin(options: argparse.Namespace, keys: Keys) -> DatabaseUrl:
    if options.database_url_file is not None:
        try:
            return DatabaseUrl.parse(_read(options.database_url_file))
        except StoreMisconfigured as error:
            raise Problem(Code.INVALID_ARGUMENT, field="--database-url-file", why=str(error)) from None
    address = _address(options.postgres, "--postgres")
    password = keys.once(keys.directory / "postgres-password", lambda: secrets.token_urlsafe(32))
    return DatabaseUrl(ADMIN, password, address.host, address.port, DATABASE)


def _nats(options: argparse.Namespace, keys: Keys) -> str:
    if options.nats_url_file is not None:
        return _read(options.nats_url_file)
    address = _address(options.nats, "--nats")
    password = keys.once(keys.directory / "nats-password", lambda: secrets.token_urlsafe(32))
    configuration = {
        "listen": f"0.0.0.0:{address.port}",
        "authorization": {"user": DATABASE, "password": password},
        "jetstream": {"store_dir": "/data", "max_memory_store": 64 * 1024**2, "max_file_store": 10 * 1024**3},
        "max_payload": 31 * 1024**2,
    }
    write_private(keys.directory / "nats.conf", json.dumps(configuration, indent=1) + "\n")
    return f"nats://{DATABASE}:{password}@{address}"


def _address(text: str, option: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise Problem(Code.INVALID_ARGUMENT, field=option, why=str(error)) from None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Problem(Code.INVALID_ARGUMENT, field=str(path), why=str(error.strerror)) from error
