"""Every error the suite can report, with its number, its status in each protocol and its words.

Numbers are stable and never reused: scripts and clients may hold on to them. A sentence says what is
wrong and where; `remedy` says what to do next. The braces name the data an error must carry.
"""

from __future__ import annotations

import enum
import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Code(enum.IntEnum):
    """1xx callers and identity, 2xx requests, 3xx dependencies, 4xx an installation, 9xx ourselves."""

    TOKEN_MISSING = 100
    TOKEN_INVALID = 101
    ROLE_MISSING = 102
    TENANT_FOREIGN = 103
    TENANT_UNNAMED = 104
    CALLER_KIND_REFUSED = 105
    TENANT_SUSPENDED = 106
    INVALID_ARGUMENT = 200
    NOT_FOUND = 201
    HTTP_METHOD_NOT_ALLOWED = 202
    DEADLINE_TOO_SHORT = 203
    DEADLINE_EXCEEDED = 204
    CONFLICT = 205
    ALREADY_EXISTS = 206
    UNIMPLEMENTED = 207
    SIGNATURE_INVALID = 208
    BODY_TOO_LARGE = 209
    DELIVERY_REFUSED = 210
    STATE_REFUSES = 211
    ROTATION_BY_PERSON = 212
    KEY_REUSED = 213
    DEPENDENCY_UNAVAILABLE = 300
    SCHEMA_OUTDATED = 301
    SHUTTING_DOWN = 302
    SECRET_UNOPENABLE = 303
    CREDENTIAL_UNUSABLE = 304
    CREDENTIAL_REFRESHING = 305
    PROVIDER_UNAVAILABLE = 306
    SETTINGS_INVALID = 400
    ADDRESS_IN_USE = 401
    NOT_RUNNING = 402
    INSTALLATION_UNUSABLE = 403
    PROCESS_FAILED = 404
    INTERNAL = 900
    REMOTE_UNKNOWN = 901


@dataclass(frozen=True, slots=True)
class Meaning:
    grpc: str
    """The status by name: whoever only wants a sentence need not load gRPC for it."""
    http: int
    sentence: str
    remedy: str = ""
    exit: int = 1
    retry_after: int = 0
    """Seconds after which it is worth asking again, said to those who ask over HTTP; 0: not said."""

    @property
    def fields(self) -> frozenset[str]:
        texts = (self.sentence, self.remedy)
        return frozenset(name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name)


CATALOGUE: Mapping[Code, Meaning] = MappingProxyType(
    {
        Code.TOKEN_MISSING: Meaning(
            "UNAUTHENTICATED",
            401,
            "{method} needs a token and the request carries none.",
            "Send `authorization: Bearer <token>`.",
        ),
        Code.TOKEN_INVALID: Meaning(
            "UNAUTHENTICATED",
            401,
            "The token is not valid: {why}.",
            "Ask for a new token.",
        ),
        Code.ROLE_MISSING: Meaning(
            "PERMISSION_DENIED",
            403,
            "{method} needs one of the roles {roles}, and the caller holds none of them there.",
            "Ask an administrator for the role.",
        ),
        Code.TENANT_FOREIGN: Meaning(
            "PERMISSION_DENIED",
            403,
            "The caller has no access to tenant {tenant}.",
            "Name a tenant of yours, or ask an administrator for membership.",
        ),
        Code.TENANT_UNNAMED: Meaning(
            "INVALID_ARGUMENT",
            400,
            "{method} needs a tenant, and `{field}` names none.",
            "Fill `{field}` with `tenants/<tenant>` or a name below it.",
        ),
        Code.CALLER_KIND_REFUSED: Meaning(
            "PERMISSION_DENIED",
            403,
            "{method} is not for callers of kind {kind}.",
        ),
        Code.INVALID_ARGUMENT: Meaning(
            "INVALID_ARGUMENT",
            400,
            "`{field}` is not acceptable: {why}.",
        ),
        Code.NOT_FOUND: Meaning("NOT_FOUND", 404, "There is no {what}."),
        Code.HTTP_METHOD_NOT_ALLOWED: Meaning(
            "UNIMPLEMENTED", 405, "{path} does not take {method} requests."
        ),
        Code.DEADLINE_TOO_SHORT: Meaning(
            "DEADLINE_EXCEEDED",
            504,
            "{method} was not begun: {remaining_ms} ms are too little for it.",
            "Allow more time.",
        ),
        Code.DEADLINE_EXCEEDED: Meaning(
            "DEADLINE_EXCEEDED",
            504,
            "{method} did not finish in time.",
            "Allow more time, or ask what became of it before you repeat it.",
        ),
        Code.DEPENDENCY_UNAVAILABLE: Meaning(
            "UNAVAILABLE",
            503,
            "{dependency} cannot be reached: {why}.",
            "Try again; `tieline status` shows when it is back.",
        ),
        Code.SCHEMA_OUTDATED: Meaning(
            "UNAVAILABLE",
            503,
            "The database schema {schema} is at revision {found}, this program needs {needed}.",
            "Run the migrations of the version you deploy, or deploy the version the database has.",
        ),
        Code.CONFLICT: Meaning(
            "ABORTED",
            409,
            "Somebody else changed the same thing at the same moment: {why}.",
            "Read it again, then try again.",
        ),
        Code.ALREADY_EXISTS: Meaning("ALREADY_EXISTS", 409, "There is a {what} already."),
        Code.UNIMPLEMENTED: Meaning(
            "UNIMPLEMENTED", 501, "{method} is part of the contract, and this version does not serve it yet."
        ),
        Code.SIGNATURE_INVALID: Meaning(
            "UNAUTHENTICATED",
            401,
            "The delivery is not signed with a secret of this endpoint.",
            "Enter the same secret at the provider and in the connection's credential.",
        ),
        Code.BODY_TOO_LARGE: Meaning(
            "RESOURCE_EXHAUSTED", 413, "The body is larger than the {limit} bytes this endpoint takes."
        ),
        Code.DELIVERY_REFUSED: Meaning("FAILED_PRECONDITION", 404, "The delivery was not taken: {why}."),
        Code.STATE_REFUSES: Meaning(
            "FAILED_PRECONDITION",
            409,
            "{what} cannot be {wanted}: {why}.",
            "Change that first, then try again.",
        ),
        Code.ROTATION_BY_PERSON: Meaning(
            "FAILED_PRECONDITION",
            409,
            "{credential} is of kind {kind}, of which the vault cannot make a new version itself.",
            "Make one at the provider, then `tieline credential rotate` with its value.",
        ),
        Code.KEY_REUSED: Meaning(
            "INVALID_ARGUMENT",
            400,
            "The idempotency key {key} stands for other arguments of {action}: {operation}.",
            "Send the same arguments again, or another key.",
        ),
        Code.TENANT_SUSPENDED: Meaning(
            "UNAVAILABLE",
            503,
            "{tenant} is not served now: {why}.",
            "Ask whoever runs the platform; what is sent again later is taken then.",
            retry_after=300,
        ),
        Code.SECRET_UNOPENABLE: Meaning(
            "DATA_LOSS",
            500,
            "{what} cannot be opened: {why}.",
            "Restore the root key or the row from a backup; nobody can guess it.",
        ),
        Code.CREDENTIAL_UNUSABLE: Meaning(
            "FAILED_PRECONDITION",
            409,
            "{credential} cannot be used: {why}.",
            "Give it a new version, or authorise it again.",
        ),
        Code.CREDENTIAL_REFRESHING: Meaning(
            "UNAVAILABLE", 503, "{credential} is being refreshed.", "Try again in a moment."
        ),
        Code.PROVIDER_UNAVAILABLE: Meaning(
            "UNAVAILABLE", 503, "{provider} did not answer as it should: {why}.", "It is tried again."
        ),
        Code.SHUTTING_DOWN: Meaning("UNAVAILABLE", 503, "{service} is shutting down.", "Try again."),
        Code.SETTINGS_INVALID: Meaning(
            "FAILED_PRECONDITION",
            500,
            "The settings are not usable: {where}: {why}.",
            "docs/reference/settings.md lists every setting.",
            exit=2,
        ),
        Code.ADDRESS_IN_USE: Meaning(
            "FAILED_PRECONDITION",
            500,
            "{address} cannot be listened on: {why}.",
            "Stop what uses it, or choose another with {option}.",
            exit=2,
        ),
        Code.NOT_RUNNING: Meaning(
            "UNAVAILABLE",
            503,
            "Nothing runs on the data directory {path}.",
            "Start it with `tieline up --data {path}`, or name another with --data.",
        ),
        Code.INSTALLATION_UNUSABLE: Meaning(
            "FAILED_PRECONDITION", 500, "{sentence}", "`tieline doctor` says more.", exit=2
        ),
        Code.PROCESS_FAILED: Meaning(
            "INTERNAL",
            500,
            "{process} did not come up: {why}.",
            "Its log is {log}.",
        ),
        Code.INTERNAL: Meaning(
            "INTERNAL",
            500,
            "Something went wrong on our side (reference {reference}).",
            "Report the reference: the log holds the rest.",
        ),
        Code.REMOTE_UNKNOWN: Meaning(
            "UNKNOWN",
            502,
            "{method} failed with {status}: {why}.",
        ),
    }
)
