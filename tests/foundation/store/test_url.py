import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.store.errors import StoreMisconfigured
from foundation.store.url import DatabaseUrl

SOCKET = "postgresql://user:hunter2@/db?host=/run/x"
TCP = "postgresql://user:hunter2@db.example:6432/main?sslmode=verify-full&sslrootcert=/etc/ca.pem"


def test_a_socket_directory_is_a_host() -> None:
    url = DatabaseUrl.parse(SOCKET)
    assert (url.user, url.password, url.host, url.port, url.database) == (
        "user",
        "hunter2",
        "/run/x",
        5432,
        "db",
    )


def test_options_of_the_connection_are_kept() -> None:
    url = DatabaseUrl.parse(TCP)
    assert (url.host, url.port, url.database) == ("db.example", 6432, "main")
    assert dict(url.options) == {"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem"}


@pytest.mark.parametrize("text", [SOCKET, TCP, "postgresql://u:hunter2@[::1]:7000/db"])
def test_it_prints_without_its_password(text: str) -> None:
    url = DatabaseUrl.parse(text)
    for shown in (str(url), repr(url), f"{url}", f"{url!r}"):
        assert "hunter2" not in shown
    assert str(url) == text.replace("hunter2", "***")
    assert url.reveal() == text


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:hunter2/with/slashes@host/db",
        "postgresql://user:hunter2@host:notaport/db",
        "postgresql://user:hunter2@host/",
        "postgresql://:hunter2@host/db",
        "mysql://user:hunter2@host/db",
        "hunter2",
        "",
        "postgresql://user@host/db?password=hunter2",
        "postgresql://user@host/db?sslmod=verify-full",
        "postgresql://user@host/db?hunter2",
    ],
)
def test_a_wrong_one_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(StoreMisconfigured) as refusal:
        DatabaseUrl.parse(text)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


part = st.text(st.characters(codec="utf-8"), min_size=1)


@given(user=part, password=part, database=part)
def test_every_login_survives_the_text(user: str, password: str, database: str) -> None:
    url = DatabaseUrl(user, password, "/run/x y", 5433, database)
    assert DatabaseUrl.parse(url.reveal()) == url
