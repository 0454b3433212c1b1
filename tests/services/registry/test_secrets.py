"""What a plugin was given is covered in what it says, in every shape in which an honest program says it."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.process.output import CUT
from services.registry.host.crashes import redacted
from services.registry.host.secrets import Secrets

KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nEFAASCBKcwggSjAgEAAoIBAQ\n-----END KEY-----\n"
VALUE = 'canary"3f9a/1c+é\\7e'
SECRETS = Secrets(VALUE.encode(), KEY.encode(), b"short")


@pytest.mark.parametrize(
    "said",
    [
        VALUE,
        json.dumps({"it": VALUE}),
        repr(VALUE),
        f"https://x.example/?q={quote(VALUE, safe='')}",
        VALUE.encode().hex(),
        *(base64.b64encode((user + VALUE).encode()).decode() for user in ("", "a", "ab", "abc", "ada:")),
        base64.urlsafe_b64encode(f"ada:{VALUE}:x".encode()).decode(),
        KEY,
        json.dumps(KEY),
        *KEY.splitlines()[1:3],
    ],
)
def test_a_value_is_covered_however_it_is_written(said: str) -> None:
    covered = redacted(f"it is {said} and that", SECRETS)
    assert "…" in covered
    assert covered.startswith("it is ")
    assert covered.endswith(" and that")
    for part in (VALUE[:8], VALUE[-8:], *KEY.splitlines()[1:3], said[4:-4]):
        assert part not in covered


def test_a_value_that_was_cut_is_covered_as_well() -> None:
    for lost in range(1, len(VALUE) - 6):
        assert redacted(f"{VALUE[lost:]} was it", SECRETS, is_tail=True) == "… was it"
        assert redacted(f"it is {VALUE[:-lost]}{CUT.decode()}", SECRETS) == f"it is …{CUT.decode()}"
    assert redacted("short is told, and so is this", SECRETS, is_tail=True) == "short is told, and so is this"


@given(st.lists(st.text('ab/"', min_size=6, max_size=12), min_size=1, max_size=4), st.data())
def test_no_value_is_left_wherever_it_stands(values: list[str], data: st.DataObject) -> None:
    secrets = Secrets(*(value.encode() for value in values))
    said = "".join(data.draw(st.lists(st.sampled_from([*values, "-", " and "]), max_size=8)))
    covered = secrets.covered(said)
    assert all(value not in covered for value in values)
