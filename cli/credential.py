"""`tieline credential`: secrets go in, from stdin or files, and never come out."""

from __future__ import annotations

import argparse
import uuid
from typing import TypeAlias

from cli.client import Client, client, need_tenant
from cli.options import add_paging, span
from cli.output import show, show_list
from cli.secret_values import KINDS, add_value_options, value_of
from foundation.errors import Code, Problem
from tieline.common.v1.credential_pb2 import CredentialKind
from tieline.credentials.v1 import credentials_pb2 as pb
from tieline.credentials.v1 import credentials_pb2_grpc, oauth_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import Credential, CredentialVersion, Grant, Purpose
from tieline.credentials.v1.oauth_pb2 import StartAuthorizationRequest

PURPOSES = [name.removeprefix("PURPOSE_").lower().replace("_", "-") for name in Purpose.keys()][1:]  # noqa: SIM118

Stub: TypeAlias = "credentials_pb2_grpc.CredentialServiceAsyncStub"


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)

    def on_one(name: str, what: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(name, help=what)
        action.add_argument("id", help="the credential")
        return action

    put = on_one("put", "store a secret; a kind of a single value reads stdin")
    put.add_argument("--kind", required=True, choices=KINDS)
    put.add_argument("--title", default="", help="for people")
    put.add_argument("--renew-every", type=span, metavar="SPAN", help="for a webhook secret: 30d, 12h")
    put.add_argument("--check", action="store_true", help="check everything, store nothing")
    add_value_options(put)
    add_paging(actions.add_parser("list", help="show all of a tenant, without values"))
    on_one("show", "show one, without values")
    add_paging(on_one("versions", "show the versions of one, newest first"))
    rotate = on_one("rotate", "give it a new version: one that the vault makes, or the value given here")
    rotate.add_argument("--stdin", action="store_true", help="the new value comes from stdin")
    rotate.add_argument(
        "--overlap", type=span, metavar="SPAN", help="with a value: how long the old one is accepted too"
    )
    add_value_options(rotate)
    revoke = on_one("revoke", "take it from everybody, for good")
    revoke.add_argument("--version", type=int, default=0, metavar="N", help="only this version")
    revoke.add_argument("--reason", default="", help="for the audit")
    on_one("validate", "ask the provider whether it works")
    authorise = on_one("authorize", "have a person consent at an OAuth provider: prints the page to open")
    authorise.add_argument(
        "--return-path", default="", metavar="PATH", help="where the browser ends, on our site"
    )
    delete = on_one("delete", "destroy it")
    delete.add_argument("--force", action="store_true", help="although connections use it; they are paused")
    grant = on_one("grant", "let one holder have it for one use")
    grant.add_argument("--connection", required=True, metavar="C", help="for which connection")
    grant.add_argument("--slot", required=True, help="for which slot of the plugin")
    grant.add_argument("--entry", default="", help="for which entry of the slot")
    grant.add_argument("--purpose", required=True, choices=PURPOSES)
    holder = grant.add_mutually_exclusive_group(required=True)
    holder.add_argument("--plugin", metavar="P", help="the plugin that may have it")
    holder.add_argument("--service", metavar="S", help="the service that may have it: gateway")
    grant.add_argument("--plugin-versions", default="", metavar="RANGE", help=">=1.2,<2")
    grant.add_argument("--only", action="append", default=[], metavar="FIELD", help="release this field only")
    grant.add_argument("--account", default="", help="the one account that sessions may be for")
    grants = actions.add_parser("grants", help="show who may have what")
    grants.add_argument("id", nargs="?", default="-", help="the credential; all where it is left out")
    add_paging(grants)
    ungrant = on_one("ungrant", "take a grant back; what was given on it is revoked")
    ungrant.add_argument("grant", help="the last part of its name, as `grants` shows it")


async def credential(options: argparse.Namespace) -> None:
    parent = need_tenant(options)
    value = value_of(options, options.kind) if options.action == "put" else None
    async with client(options) as installation:
        stub = credentials_pb2_grpc.CredentialServiceStub(installation.credentials)
        if options.action == "list":
            page = await stub.ListCredentials(
                pb.ListCredentialsRequest(
                    parent=parent, page_size=options.limit, page_token=options.page_token
                )
            )
            show_list(options, page.credentials, map(_line, page.credentials), page.next_page_token)
            return
        name = f"{parent}/credentials/{options.id}"
        if options.action == "authorize":
            await _authorize(installation, options, name)
            return
        if value is not None:
            await _put(stub, options, parent, pb.CreateCredentialRequest(value=value))
        else:
            await _ACTIONS[options.action](stub, options, name)


async def _put(
    stub: Stub, options: argparse.Namespace, parent: str, request: pb.CreateCredentialRequest
) -> None:
    request.parent, request.credential_id = parent, options.id
    request.credential.title = options.title
    if options.renew_every:
        request.credential.renewal.automatic = True
        request.credential.renewal.period.CopyFrom(options.renew_every)
    request.request_id, request.validate_only = str(uuid.uuid4()), options.check
    stored = await stub.CreateCredential(request)
    said = f"{stored.name} could be stored" if options.check else f"stored {stored.name}"
    show(options, stored, said)


async def _show(stub: Stub, options: argparse.Namespace, name: str) -> None:
    one = await stub.GetCredential(pb.GetCredentialRequest(name=name))
    shown = [_line(one), *(f"  {key}: {value}" for key, value in sorted(one.attributes.items()))]
    if one.HasField("expire_time"):
        shown.append(f"  ends: {one.expire_time.ToJsonString()}")
    if one.renewal.HasField("next_time"):
        shown.append(f"  renews: {one.renewal.next_time.ToJsonString()}")
    if one.HasField("failure"):
        shown.append(f"  why: {one.failure.message}")
    show(options, one, "\n".join(shown))


async def _versions(stub: Stub, options: argparse.Namespace, name: str) -> None:
    page = await stub.ListCredentialVersions(
        pb.ListCredentialVersionsRequest(parent=name, page_size=options.limit, page_token=options.page_token)
    )
    lines = [
        f"{one.version:>6}  {CredentialVersion.State.Name(one.state)[6:].lower():<12}"
        f" {one.create_time.ToJsonString()}  {one.author}"
        for one in page.credential_versions
    ]
    show_list(options, page.credential_versions, lines, page.next_page_token)


async def _rotate(stub: Stub, options: argparse.Namespace, name: str) -> None:
    current = await stub.GetCredential(pb.GetCredentialRequest(name=name))
    if not (options.stdin or options.field):
        if options.overlap or options.expires:
            why = "a version that the vault makes has the overlap and the end that renewal says"
            raise Problem(Code.INVALID_ARGUMENT, field="--overlap and --expires", why=why)
        request = pb.RotateCredentialRequest(name=name, current_version=current.current_version)
        after = await stub.RotateCredential(request)
    else:
        kind = CredentialKind.Name(current.kind).removeprefix("CREDENTIAL_KIND_").lower()
        after = await stub.AddCredentialVersion(
            pb.AddCredentialVersionRequest(
                name=name,
                value=value_of(options, kind),
                overlap=options.overlap,
                request_id=str(uuid.uuid4()),
            )
        )
    show(options, after, f"{after.name} is at version {after.current_version}")


async def _revoke(stub: Stub, options: argparse.Namespace, name: str) -> None:
    request = pb.RevokeCredentialRequest(name=name, version=options.version, reason=options.reason)
    after = await stub.RevokeCredential(request)
    what = f"version {options.version} of {name}" if options.version else name
    show(options, after, f"revoked {what}: nobody gets it any more; end it at its provider as well")


async def _validate(stub: Stub, options: argparse.Namespace, name: str) -> None:
    found = await stub.ValidateCredential(pb.ValidateCredentialRequest(name=name))
    missing = f", lacks {', '.join(found.missing_scopes)}" if found.missing_scopes else ""
    known = f" as {found.credential.principal}" if found.credential.principal else ""
    show(options, found, f"{name} works{known}{missing}")


async def _authorize(installation: Client, options: argparse.Namespace, name: str) -> None:
    stub = oauth_pb2_grpc.OauthServiceStub(installation.credentials)
    request = StartAuthorizationRequest(credential=name, return_path=options.return_path)
    started = await stub.StartAuthorization(request)
    show(options, started, f"open within ten minutes, once:\n{started.authorization_url}")


async def _delete(stub: Stub, options: argparse.Namespace, name: str) -> None:
    gone = await stub.DeleteCredential(pb.DeleteCredentialRequest(name=name, force=options.force))
    show(options, gone, f"deleted {name}")


async def _grant(stub: Stub, options: argparse.Namespace, name: str) -> None:
    parent = need_tenant(options)
    grant = Grant(
        plugin_versions=options.plugin_versions,
        connection=f"{parent}/connections/{options.connection.rpartition('/')[2]}",
        slot=options.slot,
        entry=options.entry,
        purpose=Purpose.Value(f"PURPOSE_{options.purpose.upper().replace('-', '_')}"),
        fields=options.only,
        account=options.account,
    )
    if options.plugin:
        grant.plugin = options.plugin
    else:
        grant.service = options.service
    request = pb.CreateGrantRequest(parent=name, grant=grant, request_id=str(uuid.uuid4()))
    made = await stub.CreateGrant(request)
    show(options, made, f"granted {made.name}")


async def _grants(stub: Stub, options: argparse.Namespace, name: str) -> None:
    page = await stub.ListGrants(
        pb.ListGrantsRequest(parent=name, page_size=options.limit, page_token=options.page_token)
    )
    lines = [
        f"{one.name}  {one.plugin or one.service} for {one.connection}"
        f" {one.slot}{'/' + one.entry if one.entry else ''} {Purpose.Name(one.purpose)[8:].lower()}"
        for one in page.grants
    ]
    show_list(options, page.grants, lines, page.next_page_token)


async def _ungrant(stub: Stub, options: argparse.Namespace, name: str) -> None:
    grant = f"{name}/grants/{options.grant.rpartition('/')[2]}"
    gone = await stub.DeleteGrant(pb.DeleteGrantRequest(name=grant))
    show(options, gone, f"took back {grant}")


_ACTIONS = {
    "show": _show,
    "versions": _versions,
    "rotate": _rotate,
    "revoke": _revoke,
    "validate": _validate,
    "delete": _delete,
    "grant": _grant,
    "grants": _grants,
    "ungrant": _ungrant,
}


def _line(one: Credential) -> str:
    state = Credential.State.Name(one.state)[6:].lower()
    kind = CredentialKind.Name(one.kind)[16:].lower()
    return f"{one.name:<50} {kind:<26} version {one.current_version:<4} {state:<12} {one.title}"
