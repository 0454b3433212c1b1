"""Short-lived signed tokens (EdDSA JWT), verified where they arrive, from published public keys.

Claims: `sub` and `kind` name the principal, `roles` what it may do everywhere, `tenants` what it may do in
each tenant. Nothing is asked of anybody per request: a `KeySource` holds the keys in memory and is told of new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Protocol

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.principal import Kind, Principal, Role

ISSUER = "tieline"
ALGORITHM = "Ed25519"  # EdDSA on that curve, by the name RFC 9864 gives it
LEEWAY = timedelta(seconds=30)
LIFETIME_LIMIT = timedelta(hours=1)
"""A longer-lived token is refused whoever signed it: what cannot be revoked must end soon."""


class Authenticator(Protocol):
    def authenticate(self, token: str) -> Principal:
        """The principal a token proves, or the problem TOKEN_INVALID."""


class KeySource(Protocol):
    def key(self, kid: str) -> OKPKey | None:
        """The public key of that id, if it is one of the platform's present keys."""


class NoKeys:
    """No key is trusted, so no token is valid: what a process has before it is told of any."""

    def key(self, kid: str) -> OKPKey | None:  # noqa: ARG002
        return None


class TokenVerifier:
    def __init__(self, keys: KeySource, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    def authenticate(self, token: str) -> Principal:
        key = self._keys.key(_kid(token))
        if key is None:
            raise _invalid("it is signed with a key that is not, or no longer, ours")
        try:
            decoded = jwt.decode(token, key, algorithms=[ALGORITHM])
        except (JoseError, ValueError) as error:
            raise _invalid("its signature does not fit") from error
        return self._principal(decoded.claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        now = self._clock.now().timestamp()
        issued, expires = claims.get("iat"), claims.get("exp")
        if claims.get("iss") != ISSUER or not isinstance(issued, int) or not isinstance(expires, int):
            raise _invalid("it was not made for this platform")
        if now - LEEWAY.total_seconds() > expires:  # no arithmetic on a number of a stranger's choice
            raise _invalid("it has expired")
        if now + LEEWAY.total_seconds() < issued:
            raise _invalid("it is not valid yet")
        if expires - issued > LIFETIME_LIMIT.total_seconds():
            raise _invalid("it lives longer than a token may")
        try:
            principal = Principal(
                kind=Kind(claims["kind"]),
                name=str(claims["sub"]),
                platform_roles=frozenset(map(Role, claims.get("roles", ()))),
                tenant_roles=MappingProxyType(
                    {tenant: frozenset(map(Role, roles)) for tenant, roles in claims["tenants"].items()}
                ),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise _invalid("its claims are incomplete") from error
        held = principal.platform_roles.union(*principal.tenant_roles.values())
        if Role.SERVICE in held and principal.kind is not Kind.SERVICE:
            raise _invalid("it claims to be one of the platform's own processes")
        return principal


class TokenSigner:
    """Makes tokens; only the credentials service holds the private key for it."""

    def __init__(self, key: OKPKey, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    def sign(self, principal: Principal, lifetime: timedelta) -> str:
        now = int(self._clock.now().timestamp())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "sub": principal.name,
            "kind": principal.kind.value,
            "roles": sorted(principal.platform_roles),
            "tenants": {tenant: sorted(roles) for tenant, roles in principal.tenant_roles.items()},
            "iat": now,
            "exp": now + int(lifetime.total_seconds()),
        }
        header = {"alg": ALGORITHM, "kid": self._key.thumbprint()}
        return jwt.encode(header, claims, self._key, algorithms=[ALGORITHM])


def _kid(token: str) -> str:
    """The key id in a token's header, read before anything in it can be believed."""
    try:
        header = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError) as error:
        raise _invalid("it is not a signed token") from error
    return str(header.get("kid", ""))


def _invalid(why: str) -> Problem:
    return Problem(Code.TOKEN_INVALID, why=why)
