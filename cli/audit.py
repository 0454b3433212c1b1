"""`tieline audit`: who did what, whether that is still what was written, and proof to keep elsewhere."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from cli.client import client, need_tenant
from cli.options import add_paging
from cli.output import show, show_list
from foundation.errors import Code, Problem
from tieline.credentials.v1 import audit_pb2_grpc
from tieline.credentials.v1.audit_pb2 import (
    AuditCheckpoint,
    AuditRecord,
    ListAuditRecordsRequest,
    ListAuditRecordsResponse,
    ListPlatformAuditRecordsRequest,
    ListPlatformAuditRecordsResponse,
    SignAuditCheckpointRequest,
    VerifyAuditRequest,
    VerifyAuditResponse,
)

VERIFY_SECONDS = 600.0
"""A long chain is read from end to end."""


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show what was done, newest first")
    listing.add_argument("--platform", action="store_true", help="what concerns no tenant")
    listing.add_argument("--principal", default="", metavar="NAME", help="only by or for this one")
    listing.add_argument("--do", default="", metavar="ACTION", help="only this; `lease.*` covers all below")
    listing.add_argument("--resource", default="", metavar="NAME", help="only to this, and all below it")
    listing.add_argument(
        "--since", type=_moment, metavar="TIME", help="only from then on, as 2026-01-31T12:00Z"
    )
    listing.add_argument("--until", type=_moment, metavar="TIME", help="only before then")
    add_paging(listing)
    verify = actions.add_parser("verify", help="say whether the chain is as it was written; exit 1 if not")
    verify.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="what the chain must still contain, as `checkpoint` printed it; without one nobody can tell"
        " an old copy of the whole database from the present one",
    )
    actions.add_parser("checkpoint", help="print the signed end of the chain, to keep elsewhere")


async def audit(options: argparse.Namespace) -> int:
    if options.action == "list":
        await _list(options)
        return 0
    parent = need_tenant(options)
    if options.action == "verify":
        return await _verify(options, parent)
    async with client(options) as installation:
        stub = audit_pb2_grpc.AuditServiceStub(installation.credentials)
        signed = await stub.SignAuditCheckpoint(SignAuditCheckpointRequest(parent=parent))
        # A file of it must be read back exactly, so it is JSON for people too.
        print(MessageToJson(signed, preserving_proto_field_name=True, indent=1))
    return 0


async def _list(options: argparse.Namespace) -> None:
    parent = "" if options.platform else need_tenant(options)
    async with client(options) as installation:
        stub = audit_pb2_grpc.AuditServiceStub(installation.credentials)
        page = await (_of_platform(options, stub) if options.platform else _of_tenant(options, stub, parent))
    show_list(options, page.audit_records, map(_line, page.audit_records), page.next_page_token)


async def _of_platform(
    options: argparse.Namespace, stub: audit_pb2_grpc.AuditServiceAsyncStub
) -> ListPlatformAuditRecordsResponse:
    request = ListPlatformAuditRecordsRequest(page_size=options.limit, page_token=options.page_token)
    _set_times(options, request)
    return await stub.ListPlatformAuditRecords(request)


async def _of_tenant(
    options: argparse.Namespace, stub: audit_pb2_grpc.AuditServiceAsyncStub, parent: str
) -> ListAuditRecordsResponse:
    request = ListAuditRecordsRequest(
        parent=parent,
        page_size=options.limit,
        page_token=options.page_token,
        principal=options.principal,
        action=options.do,
        resource=options.resource,
    )
    _set_times(options, request)
    return await stub.ListAuditRecords(request)


async def _verify(options: argparse.Namespace, parent: str) -> int:
    request = VerifyAuditRequest(parent=parent, checkpoints=map(_checkpoint, options.checkpoint))
    async with client(options) as installation:
        stub = audit_pb2_grpc.AuditServiceStub(installation.credentials)
        found = await stub.VerifyAudit(request, timeout=VERIFY_SECONDS)
    if found.intact:
        line = f"{found.checked} records are as they were written"
        line += "" if options.checkpoint else "; no checkpoint was given, so an old copy would look the same"
    else:
        defect = VerifyAuditResponse.Defect.Name(found.defect).removeprefix("DEFECT_")
        line = f"{defect} at record {found.first_bad_sequence}: {found.explanation}"
    show(options, found, line)
    return 0 if found.intact else 1


def _line(record: AuditRecord) -> str:
    time = record.time.ToDatetime().isoformat(timespec="seconds")
    outcome = AuditRecord.Outcome.Name(record.outcome).removeprefix("OUTCOME_").lower()
    who = f"{record.principal} for {record.on_behalf_of}" if record.on_behalf_of else record.principal
    return f"{record.sequence:>8} {time}Z {outcome:<7} {record.action:<24} {who:<32} {record.resource}"


def _set_times(
    options: argparse.Namespace, request: ListAuditRecordsRequest | ListPlatformAuditRecordsRequest
) -> None:
    if options.since:
        request.start_time.FromDatetime(options.since)
    if options.until:
        request.end_time.FromDatetime(options.until)


def _checkpoint(path: Path) -> AuditCheckpoint:
    try:
        return Parse(path.read_text(), AuditCheckpoint())
    except (OSError, UnicodeDecodeError, ParseError) as error:
        why = f"{path} is no checkpoint: {error}"
        raise Problem(Code.INVALID_ARGUMENT, field="--checkpoint", why=why) from error


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2026-01-31T12:00Z") from None
