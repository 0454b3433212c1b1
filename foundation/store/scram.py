"""SCRAM-SHA-256 verifiers, made on our side (RFC 5803).

`ALTER ROLE … PASSWORD` takes either a password or a verifier. A password would stand in the server's log as
soon as somebody turns on statement logging, and in `pg_stat_activity`; a verifier cannot be used to log in.
"""

import base64
import hashlib
import hmac
import secrets

from foundation.store.errors import StoreMisconfigured

_ITERATIONS = 4096  # PostgreSQL's own default; passwords here are random, so more would only slow logins
_SALT_BYTES = 16


def new_password() -> str:
    return secrets.token_urlsafe(32)


def verifier(password: str) -> str:
    return _verifier(password, secrets.token_bytes(_SALT_BYTES), _ITERATIONS)


def verifies(password: str, known: str) -> bool:
    """Whether `known`, as PostgreSQL stores it, was made of this password."""
    try:
        scheme, work, _keys = known.split("$")
        iterations, salt = work.split(":")
        again = _verifier(password, base64.b64decode(salt), int(iterations))
    except ValueError:  # not a SCRAM verifier
        return False
    return scheme == "SCRAM-SHA-256" and hmac.compare_digest(again, known)


def _verifier(password: str, salt: bytes, iterations: int) -> str:
    if not (password and password.isascii() and password.isprintable()):
        # Anything else would have to be normalised (SASLprep) exactly as the server does it.
        raise StoreMisconfigured("a database password must be printable ASCII")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
