from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Problem
from services.credentials.keys.envelope import (
    STEP,
    Key,
    Sealed,
    Unopenable,
    place,
    rewrap,
    seal,
    seal_value,
    unseal,
    unseal_value,
    versioned,
)
from services.credentials.keys.key_file import KeyFile

KEY = Key.new(versioned(1))
WHERE = place("value", "acme", "main", 1)


@given(st.binary(max_size=2000))
def test_a_value_comes_back_as_it_was(value: bytes) -> None:
    assert unseal_value(KEY, seal_value(KEY, value, WHERE), WHERE) == value


@pytest.mark.parametrize("part", ["wrapped_key", "value"])
@given(value=st.binary(max_size=300), data=st.data())
def test_no_changed_bit_opens(part: str, value: bytes, data: st.DataObject) -> None:
    sealed = seal_value(KEY, value, WHERE)
    changed = bytearray(getattr(sealed, part))
    position = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(Unopenable):
        unseal_value(KEY, replace(sealed, **{part: bytes(changed)}), WHERE)


@pytest.mark.parametrize("part", ["wrapped_key", "value"])
@given(value=st.binary(max_size=300), data=st.data())
def test_nothing_that_was_cut_opens(part: str, value: bytes, data: st.DataObject) -> None:
    sealed = seal_value(KEY, value, WHERE)
    whole: bytes = getattr(sealed, part)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(Unopenable):
        unseal_value(KEY, replace(sealed, **{part: cut}), WHERE)


@given(st.binary(max_size=300))
def test_a_value_opens_after_its_data_key_was_wrapped_anew(value: bytes) -> None:
    new, sealed = Key.new(versioned(2)), seal_value(KEY, value, WHERE)
    anew = replace(sealed, wrapped_key=rewrap(KEY, new, sealed.wrapped_key, WHERE))
    assert anew.value is sealed.value
    assert unseal_value(new, anew, WHERE) == value
    with pytest.raises(Unopenable, match="names the key"):
        unseal_value(KEY, anew, WHERE)


PARTS = st.lists(st.one_of(st.text(max_size=10), st.integers(0, 10**9)), min_size=1, max_size=5)


@given(PARTS, PARTS)
def test_places_are_told_apart(one: list[str | int], other: list[str | int]) -> None:
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (place(*one) == place(*other)) is same


@given(st.binary(max_size=100), PARTS)
def test_nothing_opens_in_another_place_or_with_another_key(value: bytes, parts: list[str | int]) -> None:
    sealed = seal_value(KEY, value, WHERE)
    if place(*parts) != WHERE:
        with pytest.raises(Unopenable):
            unseal_value(KEY, sealed, place(*parts))
    with pytest.raises(Unopenable):
        unseal_value(Key.new(), sealed, WHERE)


def test_a_sealed_key_is_no_sealed_value_and_the_other_way_round() -> None:
    bare, whole = seal(KEY, b"x" * 32, WHERE), seal_value(KEY, b"x", WHERE)
    with pytest.raises(Unopenable):
        unseal_value(KEY, Sealed(bare, whole.value), WHERE)
    with pytest.raises(Unopenable):
        unseal(KEY, whole.wrapped_key, WHERE)


@given(st.binary(max_size=5 * STEP), st.binary(max_size=5 * STEP))
def test_the_length_tells_only_steps(one: bytes, other: bytes) -> None:
    steps = [-(-(4 + len(value)) // STEP) for value in (one, other)]
    lengths = [len(seal_value(KEY, value, WHERE).value) for value in (one, other)]
    assert lengths[0] - lengths[1] == STEP * (steps[0] - steps[1])


def test_equal_values_are_sealed_unequally_and_keys_do_not_show() -> None:
    assert seal_value(KEY, b"x", WHERE) != seal_value(KEY, b"x", WHERE)
    assert KEY.raw.hex() not in repr(KEY)
    assert repr(KEY.raw) not in repr(KEY)
    assert Key(KEY.raw).fingerprint == KEY.fingerprint != Key.new().fingerprint


def test_a_root_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "root-key"
    made = KeyFile(path)
    assert KeyFile(path).fingerprint == made.fingerprint
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "0 bytes"), ("c2hvcnQ=", "5 bytes"), ("not base64!", "base64"), ("\udcff", "base64")],
)
def test_a_broken_root_key_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "root-key"
    path.touch(mode=0o600)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Problem, match=words) as refused:
        KeyFile(path)
    assert refused.value.meaning.exit == 2


def test_a_root_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root-key"
    KeyFile(path)
    path.chmod(0o640)
    with pytest.raises(Problem, match="can be read by others"):
        KeyFile(path)
