from pathlib import Path

import pytest

from foundation.engines.errors import UnreachableError
from foundation.engines.external import External, external_nats, external_postgres
from foundation.engines.nats import Nats
from foundation.engines.postgres import Postgres
from foundation.engines.testing import CARELESS
from foundation.process.ports import Port


async def refused(engine: External) -> str:
    with pytest.raises(UnreachableError) as caught:
        await engine.start()
    return caught.value.sentence


async def test_an_external_postgres(directory: Path) -> None:
    async with Postgres(directory / "postgres", settings=CARELESS) as server:
        async with external_postgres(server.url) as engine:
            assert engine.url == server.url
            await engine.ready()
        assert await refused(external_postgres(server.url_of("postgres", password="hunter2"))) == (
            "TIELINE_DATABASE_URL: the PostgreSQL at its socket is not usable: "
            'password authentication failed for user "postgres"'
        )
        assert 'database "nowhere" does not exist' in await refused(
            external_postgres(server.url_of("nowhere"))
        )


async def test_an_external_nats(directory: Path) -> None:
    async with Nats(directory / "nats") as server:
        async with external_nats(server.url) as engine:
            assert engine.url == server.url
        address = server.url.rpartition("@")[2]
        sentence = await refused(external_nats(f"nats://tieline:hunter2@{address}"))
        assert sentence.startswith(f"TIELINE_NATS_URL: the NATS at {address} is not usable: ")
        assert "uthorization" in sentence
        assert "hunter2" not in sentence


async def test_where_nobody_listens() -> None:
    with Port() as port:
        nats = await refused(external_nats(f"nats://user:hunter2@{port.address}"))
        postgres = await refused(external_postgres(f"postgresql://user:hunter2@{port.address}/x"))
    for sentence in (nats, postgres):
        assert f"at {port.address} is not usable: " in sentence
        assert "onnect" in sentence
        assert "hunter2" not in sentence


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "http://[hunter2", "nats://user:hunter2@host:port", "mysql://127.0.0.1", "nats://"],
)
async def test_what_is_no_url_of_theirs(url: str) -> None:
    for engine, setting in ((external_postgres, "TIELINE_DATABASE_URL"), (external_nats, "TIELINE_NATS_URL")):
        sentence = await refused(engine(url))
        assert sentence.startswith(setting)
        assert "hunter2" not in sentence
