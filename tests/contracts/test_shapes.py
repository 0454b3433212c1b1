"""What every message and method of the contract has in common, so that knowing one is knowing all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.descriptor import FieldDescriptor

from tests.contracts import walk
from tieline.common.v1 import options_pb2
from tieline.common.v1.options_pb2 import RetryClass

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.descriptor import Descriptor, EnumDescriptor, MethodDescriptor

METHODS = walk.methods()
each_method = pytest.mark.parametrize("method", METHODS, ids=walk.short)
# Secrets leave through these and no others: to whom a grant names, or shown once to who asked for them.
GIVES_SECRETS = {
    "JoinService.CreateJoinToken",
    "LeaseService.AcquireLeases",
    "OauthService.OpenAuthorization",
    "OauthService.StartAuthorization",
    "TokenService.CreateApiToken",
    "TokenService.CreatePlatformToken",
    "TokenService.ExchangeToken",
}


def has(message: Descriptor, name: str, kind: int) -> bool:
    field = message.fields_by_name.get(name)
    return field is not None and field.type == kind and not field.is_repeated


def fields_of(message: Descriptor) -> list[FieldDescriptor]:
    return list(message.fields)


def test_there_is_a_contract_to_walk() -> None:
    packages = {file.package for file in walk.files()}
    assert packages == {
        f"tieline.{name}.v1" for name in ("common", "event", "plugin", "credentials", "registry", "mapper")
    }
    assert len(METHODS) > 100


@each_method
def test_requests_are_their_methods_own(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    same = [other for other in METHODS if other.input_type.full_name == method.input_type.full_name]
    assert same == [method]


@each_method
def test_answers_are_own_or_a_resource_or_nothing(method: MethodDescriptor) -> None:
    answer = method.output_type.name
    if answer.endswith("Response"):
        assert answer == f"{method.name}Response"
    elif method.output_type.full_name == "google.protobuf.Empty":
        assert method.name.startswith("Delete")
    else:
        assert not method.server_streaming
        assert method.containing_service.name != "PluginService"


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("List")], ids=walk.short)
def test_lists_come_in_pages(method: MethodDescriptor) -> None:
    assert has(method.input_type, "page_size", FieldDescriptor.TYPE_INT32)
    assert has(method.input_type, "page_token", FieldDescriptor.TYPE_STRING)
    assert has(method.output_type, "next_page_token", FieldDescriptor.TYPE_STRING)
    assert fields_of(method.output_type)[0].is_repeated


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("Update")], ids=walk.short)
def test_updates_name_what_they_change_and_what_they_saw(method: MethodDescriptor) -> None:
    resource = fields_of(method.input_type)[0].message_type
    mask = method.input_type.fields_by_name["update_mask"].message_type
    assert resource is not None
    assert mask is not None
    assert mask.full_name == "google.protobuf.FieldMask"
    assert has(resource, "name", FieldDescriptor.TYPE_STRING)
    assert has(resource, "etag", FieldDescriptor.TYPE_STRING)
    assert method.output_type == resource


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if m.name.startswith(("Create", "Rollback", "Start", "Replay"))],
    ids=walk.short,
)
def test_what_makes_something_new_can_be_repeated_or_says_that_it_cannot(method: MethodDescriptor) -> None:
    repeatable = has(method.input_type, "request_id", FieldDescriptor.TYPE_STRING)
    guarded = has(method.input_type, "etag", FieldDescriptor.TYPE_STRING)
    never = method.GetOptions().Extensions[options_pb2.retry] == RetryClass.RETRY_CLASS_NEVER
    assert (repeatable or guarded) != never


@pytest.mark.parametrize("message", walk.messages(), ids=lambda message: message.full_name)
def test_fields_that_name_a_secret_are_marked(message: Descriptor) -> None:
    bare = [f.name for f in fields_of(message) if walk.looks_secret(f) and not walk.is_sensitive(f)]
    assert bare == []


def test_values_of_credentials_are_secret_unless_listed_as_public() -> None:
    public = {
        "access_key_id", "api_url", "app_id", "audience", "authorization_url", "certificate", "client_id",
        "installation_id", "region", "role_arn", "scopes", "token_url", "username",
    }  # fmt: skip
    kinds = next(file for file in walk.files() if file.name.endswith("credentials/v1/secrets.proto"))
    bare = {
        field.name
        for message in kinds.message_types_by_name.values()
        for field in fields_of(message)
        if field.type in walk.TEXTS and not walk.is_sensitive(field)
    }
    assert bare == public


def test_secrets_leave_through_few_doors() -> None:
    giving = {walk.short(m) for m in METHODS if any(map(walk.is_sensitive, walk.reachable(m.output_type)))}
    assert giving == GIVES_SECRETS


def test_a_plugin_never_learns_whose_it_is() -> None:
    service = next(service for service in walk.services() if service.name == "PluginService")
    crossing = [f for m in service.methods for t in (m.input_type, m.output_type) for f in walk.reachable(t)]
    assert len(crossing) > 200
    telling = {
        f.full_name for f in crossing if f.name in {"tenant", "connection", "principal_name", "tenants"}
    }
    assert telling == set()


@pytest.mark.parametrize(
    ("name", "items", "outcomes"),
    [
        ("InboxService.AcceptDeliveries", "deliveries", "outcomes"),
        ("InboxService.AcceptRecords", "records", "outcomes"),
        ("LeaseService.AcquireLeases", "requests", "outcomes"),
        ("BrokerService.TransformData", "groups", "results"),
        ("BrokerService.Lookup", "groups", "results"),
        ("PluginService.TransformData", "groups", "results"),
        ("PluginService.Lookup", "groups", "results"),
    ],
)
def test_the_data_plane_goes_in_batches(name: str, items: str, outcomes: str) -> None:
    method = next(method for method in METHODS if walk.short(method) == name)
    assert method.input_type.fields_by_name[items].is_repeated
    answer = method.output_type.fields_by_name[outcomes]
    assert answer.is_repeated
    assert answer.message_type is not None
    assert "failure" in {field.name for field in walk.reachable(answer.message_type)}


@each_method
def test_nothing_is_streamed_towards_a_server(method: MethodDescriptor) -> None:
    assert not method.client_streaming


def test_json_travels_as_bytes() -> None:
    loose = {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.Any"}
    used = {
        f.message_type.full_name for m in walk.messages() for f in fields_of(m) if f.message_type is not None
    }
    assert used & loose == set()


@pytest.mark.parametrize("enum", walk.enums(), ids=lambda enum: enum.full_name)
def test_zero_means_not_said(enum: EnumDescriptor) -> None:
    assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


def commented(proto: Path) -> tuple[int, int]:
    lines = [line.strip() for line in proto.read_text().splitlines() if line.strip()]
    return sum(line.startswith("//") for line in lines), len(lines)


def test_comments_carry_the_meaning() -> None:
    counts = {proto.name: commented(proto) for proto in walk.PROTOS.rglob("*.proto")}
    assert [name for name, (comments, lines) in counts.items() if comments < 0.25 * lines] == []
    assert sum(comments for comments, _ in counts.values()) > 0.35 * sum(
        lines for _, lines in counts.values()
    )


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("secret", True), ("webhook_secret", True), ("previous_secrets", True), ("private_key", True),
        ("token", True), ("refresh_token", True), ("join_token", True), ("password", True),
        ("page_token", False), ("ack_token", False), ("token_url", False), ("access_key_id", False),
        ("idempotency_key", False), ("external_key", False),
    ],
)  # fmt: skip
def test_names_of_secrets_are_told_from_others(name: str, *, secret: bool) -> None:
    assert (walk.SECRET.search(name) is not None) == secret
