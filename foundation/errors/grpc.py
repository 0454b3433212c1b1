"""Problems over gRPC: out as a rich status, back as the same problem.

The reason travels as `google.rpc.ErrorInfo` in the domain `tieline`. All details together stay below
4 KiB, since grpcio drops larger trailers and shows RESOURCE_EXHAUSTED in place of the truth.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import AioRpcError

from foundation.errors.catalogue import CATALOGUE, Code
from foundation.errors.problem import Problem

DOMAIN = "tieline"
DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_LIMIT = 1024
DATA_LIMIT = 2048


def to_status(problem: Problem) -> Status:
    info = ErrorInfo(reason=problem.code.name, domain=DOMAIN, metadata=_bounded(problem.data))
    detail = AnyMessage()
    detail.Pack(info)
    code: int = StatusCode[problem.meaning.grpc].value[0]
    return Status(code=code, message=_cut(problem.text, MESSAGE_LIMIT), details=[detail])


def from_call(failed: AioRpcError, method: str) -> Problem:
    """The problem the other side raised, or the nearest true thing that can be said about the failure."""
    status = _rich_status(failed)
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in Code.__members__:
            code = Code[info.reason]
            if info.metadata.keys() == CATALOGUE[code].fields:
                return Problem(code, **info.metadata)
    return _from_bare(failed, method)


def _rich_status(failed: AioRpcError) -> Status:
    """The details sent along; empty where there are none or they are not what they claim to be."""
    for key, value in failed.trailing_metadata():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _from_bare(failed: AioRpcError, method: str) -> Problem:
    why = _cut((failed.details() or "no details").rstrip("."), 300)
    match failed.code().name:
        case "UNAVAILABLE":
            service = method.strip("/").partition("/")[0]
            return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency=service, why=why)
        case "DEADLINE_EXCEEDED":
            return Problem(Code.DEADLINE_EXCEEDED, method=method)
        case status:
            return Problem(Code.REMOTE_UNKNOWN, method=method, status=status, why=why)


def _bounded(data: dict[str, str]) -> dict[str, str]:
    share = DATA_LIMIT // max(1, len(data))
    return {name: _cut(value, share) for name, value in data.items()}


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, ending in an ellipsis where something is missing."""
    raw = text.encode()
    return text if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"
