"""What of a request its signature vouches for."""

from __future__ import annotations

from collections.abc import Sequence

from tieline.plugin.v1.webhook_pb2 import Extractor, Signature, SignedPart


def is_covered(extractor: Extractor, signature: Signature) -> bool:
    """Whether nobody but the signer can have written what is found there."""
    source = extractor.WhichOneof("source")
    match signature.WhichOneof("scheme"):
        case "hmac":
            return _is_signed(extractor, source, signature.hmac.signed)
        case "certificate":
            return _is_signed(extractor, source, signature.certificate.signed)
        case "jwt":
            bound = {"json": signature.jwt.body_hash_claim, "form": signature.jwt.body_hash_claim}
            bound |= {"query": signature.jwt.request_hash_claim, "claim": "itself"}
            return bool(bound.get(source or "", ""))
        case "token" | "custom":
            # Whoever has the token writes the whole request; a plugin that verifies says so of all of it.
            return source in ("json", "form", "header", "query")
        case _:
            return False


def _is_signed(extractor: Extractor, source: str | None, signed: Sequence[SignedPart]) -> bool:
    if source in ("json", "form") and (not signed or any(part.body for part in signed)):
        return True
    if source == "json":
        members = {name for part in signed for name in part.members.names}
        return extractor.json.removeprefix("/") in members
    if source == "query" and any(part.url for part in signed):
        return True
    if source not in ("header", "query"):
        return False
    wanted = getattr(extractor, source).lower() if source == "header" else extractor.query
    return any(
        part.value.WhichOneof("source") == source
        and (part.value.header.lower() if source == "header" else part.value.query) == wanted
        for part in signed
    )
