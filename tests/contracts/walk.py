"""Walk the contract's descriptors: what there is to walk, and the rules that every method and message keeps."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import grpc_tools
from google.protobuf.descriptor import FieldDescriptor

import tieline
from tieline.common.v1 import options_pb2
from tieline.common.v1.options_pb2 import PrincipalKind, Role, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from google.protobuf.descriptor import (
        Descriptor,
        EnumDescriptor,
        FileDescriptor,
        MethodDescriptor,
        ServiceDescriptor,
    )

PROTOS = Path(__file__).parents[2] / "protos"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
# A text whose name holds one of these is a secret, unless it is one of the innocent names below.
SECRET = re.compile(
    r"(^|_)(secrets?|password|passphrase|private_key|api_token|access_token|refresh_token|session_token"
    r"|join_token|secret_access_key|client_secret|browser_binding)$|^(token|external_id)$"
)


def modules() -> Iterator[ModuleType]:
    for root in tieline.__path__:
        for path in sorted(Path(root).glob("*/v1/*_pb2.py")):
            yield importlib.import_module(f"tieline.{path.parent.parent.name}.v1.{path.stem}")


def files() -> list[FileDescriptor]:
    return [module.DESCRIPTOR for module in modules()]


def services() -> list[ServiceDescriptor]:
    return [service for file in files() for service in file.services_by_name.values()]


def methods() -> list[MethodDescriptor]:
    return [method for service in services() for method in service.methods]


def messages() -> list[Descriptor]:
    return [
        message for file in files() for top in file.message_types_by_name.values() for message in _nest(top)
    ]


def enums() -> list[EnumDescriptor]:
    tops = [enum for file in files() for enum in file.enum_types_by_name.values()]
    return tops + [enum for message in messages() for enum in message.enum_types]


def _nest(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for inner in message.nested_types:
        yield from _nest(inner)


def short(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def reachable(message: Descriptor) -> list[FieldDescriptor]:
    """Every field that a message of this type may carry, however deep."""
    seen: set[str] = set()
    found: list[FieldDescriptor] = []
    waiting = [message]
    while waiting:
        one = waiting.pop()
        if one.full_name in seen:
            continue
        seen.add(one.full_name)
        found.extend(one.fields)
        waiting.extend(field.message_type for field in one.fields if field.message_type is not None)
    return found


def is_sensitive(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[options_pb2.sensitive])


def looks_secret(field: FieldDescriptor) -> bool:
    return field.type in TEXTS and SECRET.search(field.name) is not None


def resolve(message: Descriptor, path: str) -> FieldDescriptor | None:
    """The field at a dotted path, or None where the path leads nowhere. Lists are fine: all of them count."""
    head, _, rest = path.partition(".")
    field = message.fields_by_name.get(head)
    if field is None or not rest:
        return field
    return resolve(field.message_type, rest) if field.message_type is not None else None


def rule_defects(method: MethodDescriptor) -> list[str]:
    """What is wrong with what a method says about its callers; empty: nothing."""
    options = method.GetOptions()
    defects = []
    if not options.Extensions[options_pb2.retry]:
        defects.append("no retry class")
    if not options.HasExtension(options_pb2.rule):
        return [*defects, "no rule"]
    rule = options.Extensions[options_pb2.rule]
    if rule.scope == Scope.SCOPE_UNSPECIFIED:
        defects.append("no scope")
    if Role.ROLE_UNSPECIFIED in rule.roles or PrincipalKind.PRINCIPAL_KIND_UNSPECIFIED in rule.callers:
        defects.append("an unspecified role or caller")
    if bool(rule.roles) != (rule.scope in {Scope.SCOPE_TENANT, Scope.SCOPE_PLATFORM}):
        defects.append("roles where none belong, or none where some do")
    if rule.scope == Scope.SCOPE_TENANT:
        field = resolve(method.input_type, rule.tenant_field)
        if field is None or field.type != FieldDescriptor.TYPE_STRING:
            defects.append(f"tenant_field {rule.tenant_field!r} is no text of the request")
    elif rule.tenant_field:
        defects.append("a tenant_field outside the scope of a tenant")
    return defects
