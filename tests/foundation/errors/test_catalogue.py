from __future__ import annotations

import string

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import CATALOGUE, Code, Problem
from foundation.errors.grpc import to_status


def a_problem(code: Code, value: str = "something") -> Problem:
    return Problem(code, **dict.fromkeys(CATALOGUE[code].fields, value))


def test_every_code_has_its_meaning_and_no_meaning_lacks_a_code() -> None:
    assert set(CATALOGUE) == set(Code)


def test_numbers_are_stable() -> None:
    """Append only: a number once given means the same for ever."""
    assert {code.name: int(code) for code in Code} == {
        "TOKEN_MISSING": 100,
        "TOKEN_INVALID": 101,
        "ROLE_MISSING": 102,
        "TENANT_FOREIGN": 103,
        "TENANT_UNNAMED": 104,
        "CALLER_KIND_REFUSED": 105,
        "TENANT_SUSPENDED": 106,
        "INVALID_ARGUMENT": 200,
        "NOT_FOUND": 201,
        "HTTP_METHOD_NOT_ALLOWED": 202,
        "DEADLINE_TOO_SHORT": 203,
        "DEADLINE_EXCEEDED": 204,
        "CONFLICT": 205,
        "ALREADY_EXISTS": 206,
        "UNIMPLEMENTED": 207,
        "SIGNATURE_INVALID": 208,
        "BODY_TOO_LARGE": 209,
        "DELIVERY_REFUSED": 210,
        "STATE_REFUSES": 211,
        "ROTATION_BY_PERSON": 212,
        "KEY_REUSED": 213,
        "DEPENDENCY_UNAVAILABLE": 300,
        "SCHEMA_OUTDATED": 301,
        "SHUTTING_DOWN": 302,
        "SECRET_UNOPENABLE": 303,
        "CREDENTIAL_UNUSABLE": 304,
        "CREDENTIAL_REFRESHING": 305,
        "PROVIDER_UNAVAILABLE": 306,
        "SETTINGS_INVALID": 400,
        "ADDRESS_IN_USE": 401,
        "NOT_RUNNING": 402,
        "INSTALLATION_UNUSABLE": 403,
        "PROCESS_FAILED": 404,
        "INTERNAL": 900,
        "REMOTE_UNKNOWN": 901,
    }


@pytest.mark.parametrize("code", Code)
def test_every_sentence_reads_as_one(code: Code) -> None:
    problem = a_problem(code, "something")
    assert "{" not in problem.text
    assert problem.sentence.endswith((".", "something"))
    assert not problem.remedy or problem.remedy.endswith(".")
    assert grpc.StatusCode[problem.meaning.grpc] is not grpc.StatusCode.OK
    assert 400 <= problem.meaning.http <= 599
    assert problem.meaning.exit in (1, 2)


@pytest.mark.parametrize("data", [{}, {"what": "x", "more": "y"}, {"wat": "x"}])
def test_a_problem_carries_exactly_what_its_sentence_needs(data: dict[str, str]) -> None:
    with pytest.raises(TypeError, match=r"NOT_FOUND carries \['what'\]"):
        Problem(Code.NOT_FOUND, **data)


def test_data_is_never_read_as_a_template() -> None:
    assert Problem(Code.NOT_FOUND, what="{what.__class__} {0}").text == "There is no {what.__class__} {0}."


@given(st.sampled_from(Code), st.text(alphabet=string.printable + "ü€𝄞", max_size=9000))
def test_no_problem_is_too_large_for_a_trailer(code: Code, value: str) -> None:
    assert to_status(a_problem(code, value)).ByteSize() <= 4096
