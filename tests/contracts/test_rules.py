"""Who may call what: every method says so, and says it well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from tests.contracts import walk
from tieline.common.v1 import options_pb2
from tieline.common.v1.options_pb2 import PrincipalKind, RetryClass, Role, Scope

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.descriptor import MethodDescriptor

METHODS = walk.methods()
each_method = pytest.mark.parametrize("method", METHODS, ids=walk.short)


def rule_of(method: MethodDescriptor) -> options_pb2.Rule:
    return method.GetOptions().Extensions[options_pb2.rule]


def retry_of(method: MethodDescriptor) -> int:
    return method.GetOptions().Extensions[options_pb2.retry]


def in_scope(scope: Scope.ValueType) -> set[str]:
    return {walk.short(method) for method in METHODS if rule_of(method).scope == scope}


@each_method
def test_has_a_sound_rule_and_a_retry_class(method: MethodDescriptor) -> None:
    assert walk.rule_defects(method) == []


def test_what_needs_no_token_is_a_short_list() -> None:
    assert in_scope(Scope.SCOPE_PUBLIC) == {
        "TokenService.ExchangeToken",
        "TokenService.GetSigningKeys",
        "JoinService.Join",
    }
    plugin = {walk.short(method) for method in METHODS if method.containing_service.name == "PluginService"}
    assert in_scope(Scope.SCOPE_PEER) == plugin | {"JoinService.RenewCertificate", "JoinService.Announce"}
    assert {name.partition(".")[0] for name in in_scope(Scope.SCOPE_AUTHENTICATED)} == {"CatalogueService"}


@each_method
def test_roles_of_processes_open_nothing_to_people(method: MethodDescriptor) -> None:
    rule = rule_of(method)
    if {Role.ROLE_SERVICE, Role.ROLE_INGEST} & set(rule.roles):
        assert rule.scope == Scope.SCOPE_PLATFORM
        assert len(rule.roles) == 1
        assert list(rule.callers) == [PrincipalKind.PRINCIPAL_KIND_SERVICE]


@each_method
def test_viewers_change_nothing(method: MethodDescriptor) -> None:
    if Role.ROLE_VIEWER in rule_of(method).roles and retry_of(method) != RetryClass.RETRY_CLASS_SAFE:
        assert walk.short(method) == "SubscriptionService.AcknowledgeEvents"


@each_method
def test_retry_class_fits_the_verb(method: MethodDescriptor) -> None:
    reads = ("Get", "List", "Watch", "Preview", "Evaluate", "Verify")
    if method.name.startswith(reads):
        assert retry_of(method) == RetryClass.RETRY_CLASS_SAFE
    if method.name.startswith(("Update", "Delete", "Accept")):
        assert retry_of(method) == RetryClass.RETRY_CLASS_IDEMPOTENT


BROKEN = """
syntax = "proto3";
package tieline.broken.v1;
import "tieline/common/v1/options.proto";
message Request { string name = 1; int32 count = 2; repeated Request many = 3; Request inner = 4; }
service BrokenService {
  rpc Silent(Request) returns (Request);
  rpc NoRetry(Request) returns (Request) {
    option (tieline.common.v1.rule) = {scope: SCOPE_PUBLIC};
  }
  rpc NoRule(Request) returns (Request) { option (tieline.common.v1.retry) = RETRY_CLASS_SAFE; }
  %s
}
"""
ONE = """rpc M%d(Request) returns (Request) {
    option (tieline.common.v1.rule) = {%s};
    option (tieline.common.v1.retry) = RETRY_CLASS_SAFE;
  }"""
RULES = [
    ('scope: SCOPE_TENANT roles: [ROLE_VIEWER] tenant_field: "inner.name"', None),
    ('scope: SCOPE_TENANT roles: [ROLE_VIEWER] tenant_field: "nobody"', "no text"),
    ('scope: SCOPE_TENANT roles: [ROLE_VIEWER] tenant_field: "count"', "no text"),
    ('scope: SCOPE_TENANT roles: [ROLE_VIEWER] tenant_field: "many.name"', None),
    ('scope: SCOPE_TENANT roles: [ROLE_VIEWER] tenant_field: "inner"', "no text"),
    ("scope: SCOPE_TENANT roles: [ROLE_VIEWER]", "no text"),
    ('scope: SCOPE_TENANT tenant_field: "name"', "roles"),
    ("scope: SCOPE_PLATFORM", "roles"),
    ("scope: SCOPE_PUBLIC roles: [ROLE_VIEWER]", "roles"),
    ('scope: SCOPE_PEER tenant_field: "name"', "outside"),
    ("roles: [ROLE_VIEWER]", "no scope"),
    ("scope: SCOPE_PLATFORM roles: [ROLE_UNSPECIFIED]", "unspecified"),
]


def test_the_walk_finds_every_sort_of_defect(tmp_path: Path) -> None:
    bodies = "\n  ".join(ONE % (index, rule) for index, (rule, _) in enumerate(RULES))
    methods = _compile(tmp_path, BROKEN % bodies)
    assert walk.rule_defects(methods["Silent"]) == ["no retry class", "no rule"]
    assert walk.rule_defects(methods["NoRetry"]) == ["no retry class"]
    assert walk.rule_defects(methods["NoRule"]) == ["no rule"]
    for index, (rule, complaint) in enumerate(RULES):
        defects = walk.rule_defects(methods[f"M{index}"])
        assert (complaint is None) == (defects == []), (rule, defects)
        assert complaint is None or any(complaint in defect for defect in defects), (rule, defects)


def _compile(folder: Path, text: str) -> dict[str, MethodDescriptor]:
    protos = walk.PROTOS
    (folder / "broken.proto").write_text(text)
    out = folder / "broken.binpb"
    well_known = f"-I{walk.WELL_KNOWN}"
    done = protoc.main(
        ["protoc", f"-I{folder}", f"-I{protos}", well_known, f"-o{out}", "--include_imports", "broken.proto"]
    )
    assert done == 0
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(out.read_bytes()).file:
        pool.Add(file)
    service = pool.FindServiceByName("tieline.broken.v1.BrokenService")
    return {method.name: method for method in service.methods}
