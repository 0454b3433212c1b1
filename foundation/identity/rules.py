"""The rule each method carries in its proto, and the one place that decides by it.

Default deny, three times over: a method without a complete rule cannot be served at all; a caller that no
rule admits is refused; and a rule is asked before any code of the method sees the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from foundation.errors import Code, Problem
from foundation.identity.names import tenant_of
from foundation.identity.principal import Kind, Principal, Role
from tieline.common.v1 import options_pb2 as contract

_ROLES = {contract.Role.Value(f"ROLE_{role.name}"): role for role in Role}
_KINDS = {contract.PrincipalKind.Value(f"PRINCIPAL_KIND_{kind.name}"): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the contract as its border needs to know it."""

    path: str
    scope: contract.Scope.ValueType
    roles: frozenset[Role]
    tenant_path: tuple[str, ...]
    callers: frozenset[Kind]
    retry: contract.RetryClass.ValueType
    streams: bool

    @property
    def repeatable(self) -> bool:
        return self.retry in (contract.RETRY_CLASS_SAFE, contract.RETRY_CLASS_IDEMPOTENT)


def describe_method(descriptor: MethodDescriptor) -> Method:
    """Read a method's options; a method that does not say who may call it is a ValueError here."""
    path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    options = descriptor.GetOptions()
    rule = options.Extensions[contract.rule]
    retry = options.Extensions[contract.retry]
    if rule.scope == contract.SCOPE_UNSPECIFIED or retry == contract.RETRY_CLASS_UNSPECIFIED:
        raise ValueError(f"{path} cannot be served: it has no authorisation rule or no retry class")
    if descriptor.client_streaming:
        raise ValueError(f"{path} cannot be served: a rule is decided on one request, so none may stream in")
    needs_roles = rule.scope in (contract.SCOPE_TENANT, contract.SCOPE_PLATFORM)
    if needs_roles != bool(rule.roles) or (rule.scope == contract.SCOPE_TENANT) != bool(rule.tenant_field):
        raise ValueError(f"{path} cannot be served: its rule does not fit its scope")
    tenant_path = tuple(rule.tenant_field.split(".")) if rule.tenant_field else ()
    _resolve(path, descriptor.input_type, tenant_path)
    return Method(
        path=path,
        scope=rule.scope,
        roles=frozenset(_ROLES[role] for role in rule.roles),
        tenant_path=tenant_path,
        callers=frozenset(_KINDS[kind] for kind in rule.callers),
        retry=retry,
        streams=descriptor.server_streaming,
    )


def authorise(method: Method, principal: Principal | None, request: Message) -> None:
    """Return if the caller may make this request; raise the problem that says why not."""
    if method.scope in (contract.SCOPE_PUBLIC, contract.SCOPE_PEER):
        return
    if principal is None:
        raise Problem(Code.TOKEN_MISSING, method=method.path)
    if method.callers and principal.kind not in method.callers:
        raise Problem(Code.CALLER_KIND_REFUSED, method=method.path, kind=principal.kind)
    if method.scope == contract.SCOPE_AUTHENTICATED:
        return
    if method.scope == contract.SCOPE_PLATFORM:
        _demand_role(method, principal.platform_roles)
        return
    for tenant in _tenants(method, request):
        held = principal.roles_in(tenant)
        if not held:
            raise Problem(Code.TENANT_FOREIGN, tenant=tenant)
        _demand_role(method, held)


def _demand_role(method: Method, held: frozenset[Role]) -> None:
    if not held & method.roles:
        raise Problem(Code.ROLE_MISSING, method=method.path, roles=", ".join(sorted(method.roles)))


def _tenants(method: Method, request: Message) -> set[str]:
    """Every tenant the request names; at least one, or the request is refused."""
    names = list(_values(request, method.tenant_path))
    tenants = {tenant_of(name) for name in names}
    if not names or "" in tenants:
        field = ".".join(method.tenant_path)
        raise Problem(Code.TENANT_UNNAMED, method=method.path, field=field)
    return tenants


def _values(message: Message, path: Sequence[str]) -> Iterator[str]:
    value = getattr(message, path[0])
    for item in value if message.DESCRIPTOR.fields_by_name[path[0]].is_repeated else [value]:
        if len(path) == 1:
            yield item
        else:
            yield from _values(item, path[1:])


def _resolve(method: str, message: Descriptor, path: Sequence[str]) -> None:
    """Refuse a rule whose tenant field does not lead to text in the request."""
    for depth, name in enumerate(path):
        field = message.fields_by_name.get(name)
        is_last = depth == len(path) - 1
        wanted = FieldDescriptor.TYPE_STRING if is_last else FieldDescriptor.TYPE_MESSAGE
        if field is None or field.type != wanted:
            raise ValueError(f"{method} cannot be served: `{'.'.join(path)}` names no text in its request")
        if field.message_type is not None:
            message = field.message_type
