"""Who calls, and whether they may: principals, tokens, and the rules written in the contract."""

from foundation.identity.principal import Kind, Principal, Role
from foundation.identity.rules import Method, authorise, describe_method
from foundation.identity.tokens import Authenticator, KeySource, NoKeys, TokenSigner, TokenVerifier

__all__ = [
    "Authenticator",
    "KeySource",
    "Kind",
    "Method",
    "NoKeys",
    "Principal",
    "Role",
    "TokenSigner",
    "TokenVerifier",
    "authorise",
    "describe_method",
]
