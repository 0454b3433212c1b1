from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from foundation.errors import Problem
from foundation.settings import Address, NatsUrl, PostgresUrl, Secret, Settings, load
from foundation.settings.command import describe


class Sample(Settings, frozen=True, kw_only=True):
    database: Secret
    store: PostgresUrl | None = None
    bus: NatsUrl | None = None
    listen: Address = Address("127.0.0.1", 1)
    workers: Annotated[int, Meta(ge=1, le=64)] = 4
    margin: float = 0.5
    note: str | None = None


BASE = {"TIELINE_MAPPER_DATABASE": "postgresql://u:hunter2@/db"}


def loaded(text: str = "", path: Path | None = None, /, **environment: str) -> Sample:
    if path is not None:
        path.write_text(text)
    return load(Sample, "mapper", [path] if path else [], environment or BASE).settings


def test_defaults_then_the_file_then_the_environment(tmp_path: Path) -> None:
    assert loaded().workers == 4
    text = '[mapper]\nworkers = 8\nmargin = 1\nlisten = "[::1]:80"\n[gateway]\nother = 1\n'
    assert loaded(text, tmp_path / "a.toml", **BASE).workers == 8
    settings = loaded(text, tmp_path / "a.toml", **BASE, TIELINE_MAPPER_WORKERS="9", TIELINE_OTHER_X="?")
    assert (settings.workers, settings.margin, settings.listen) == (9, 1.0, Address("::1", 80))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("store", "mysql://u:hunter2@localhost/db"),
        ("store", "postgresql://u:hun/ter2@localhost/db"),
        ("store", ""),
        ("bus", "hunter2"),
        ("bus", "http://u:hunter2@localhost"),
        ("bus", "nats://u:hunter2@"),
        ("bus", "nats://u:hunter2@localhost:99999"),
    ],
)
def test_a_url_is_understood_before_it_is_used_and_never_shown(tmp_path: Path, name: str, url: str) -> None:
    with pytest.raises(Problem, match=f"`{name}`") as refused:
        loaded(f'[mapper]\n{name} = "{url}"', tmp_path / "a.toml", **BASE)
    assert "ter2" not in refused.value.text
    with pytest.raises(Problem, match=f"TIELINE_MAPPER_{name.upper()}"):
        loaded(**BASE, **{f"TIELINE_MAPPER_{name.upper()}": url})


def test_a_url_stays_covered() -> None:
    good = {"STORE": "postgresql://u:hunter2@/db?host=/x", "BUS": "nats://u:hunter2@localhost:4222"}
    settings = loaded(**BASE, **{f"TIELINE_MAPPER_{name}": text for name, text in good.items()})
    assert "hunter2" not in repr(settings)
    assert settings.store is not None
    assert settings.store.reveal() == good["STORE"]
    shown = load(Sample, "mapper", [], BASE | {"TIELINE_MAPPER_BUS": good["BUS"]})
    assert "hunter2" not in describe("mapper", shown)


LINKS = {
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "7413",
    "SERVICE_PORT_GRPC": "7413",
    "PORT": "tcp://10.0.0.11:7413",
    "PORT_7413_TCP": "tcp://10.0.0.11:7413",
    "PORT_7413_TCP_PROTO": "tcp",
    "PORT_7413_TCP_PORT": "7413",
    "PORT_7413_TCP_ADDR": "fd00::11",
}


def test_what_kubernetes_says_of_a_service_of_our_name_is_nobodys_misspelling() -> None:
    # https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    links = {f"TIELINE_MAPPER_{name}": text for name, text in LINKS.items()}
    assert loaded(**BASE, **links) == loaded()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "7413"),
        ("PORT", "http://x"),
        ("SERVICE_HOST", "mapper"),
        ("SERVICE_HOSTS", "10.0.0.11"),
        ("PORT_7413_TCP_MODE", "tcp"),
    ],
)
def test_what_only_looks_like_it_is_refused(name: str, text: str) -> None:
    with pytest.raises(Problem, match="there is no setting"):
        loaded(**BASE, **{f"TIELINE_MAPPER_{name}": text})


def test_a_later_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("[mapper]\nworkers = 5\nmargin = 2.0\n")
    second.write_text("[mapper]\nworkers = 6\n")
    found = load(Sample, "mapper", [first, second], BASE)
    assert (found.settings.workers, found.settings.margin) == (6, 2.0)
    assert found.origins["workers"] == f"{second} [mapper]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[mapper]\nworkers = 0", r"a.toml \[mapper\]: `workers`: expected `int` >= 1"),
        ("[mapper]\nworkers = '4'", "`workers`: expected `int`, got `str`"),
        ("[mapper]\nlisten = 'nowhere'", "'nowhere' is not HOST:PORT"),
        ("[mapper]\nlisten = 80", "`listen`: expected text, got int"),
        ("[mapper]\nworker = 1", r"no setting `worker` \(did you mean `workers`\?\)"),
        ("[maper]\n", r"no section \[maper\] \(did you mean `mapper`\?\)"),
        ("mapper = 3", r"\[mapper\] must be a section"),
        ("[mapper", "it is not TOML"),
        ("\udcff", "it is not UTF-8"),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_the_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Problem, match=complaint) as refused:
        load(Sample, "mapper", [path], BASE)
    assert refused.value.meaning.exit == 2
    assert "\n" not in refused.value.text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"cannot be read \(No such file"):
        load(Sample, "mapper", [tmp_path / "none.toml"], BASE)
    with pytest.raises(Problem, match=r"cannot be read \(Is a directory"):
        load(Sample, "mapper", [tmp_path], BASE)


def test_the_environment_is_as_strict() -> None:
    with pytest.raises(Problem, match=r"TIELINE_MAPPER_WORKRS: there is no setting `workrs` \(did you mean"):
        loaded(**BASE, TIELINE_MAPPER_WORKRS="1")
    with pytest.raises(Problem, match="TIELINE_MAPPER_WORKERS: `workers`"):
        loaded(**BASE, TIELINE_MAPPER_WORKERS="many")
    with pytest.raises(Problem, match=r"`database` is missing \(in the environment: TIELINE_MAPPER_DATABASE"):
        loaded(TIELINE_MAPPER_WORKERS="1")


def test_settings_do_not_change_and_secrets_do_not_show() -> None:
    found = load(Sample, "mapper", [], BASE)
    with pytest.raises(AttributeError):
        found.settings.workers = 5  # type: ignore[misc]
    assert "hunter2" not in f"{found.settings} {found.settings!r} {describe('mapper', found)}"
    assert found.settings.database.reveal() == BASE["TIELINE_MAPPER_DATABASE"]
    assert "database = …  # TIELINE_MAPPER_DATABASE" in describe("mapper", found)


@given(st.sampled_from(["127.0.0.1", "localhost", "::1", "fe80::2"]), st.integers(0, 65535))
def test_an_address_reads_as_it_is_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":80", "h:99999", "h:-1", "::1:80", "a b:1", "h:²", "[x]:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any wording, the loader names the place
        Address.parse(text)
