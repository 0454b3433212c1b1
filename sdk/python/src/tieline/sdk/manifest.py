"""`plugin.toml` as the contract's message, for whoever wants to look at one: the platform, a test."""

from tieline.sdk._convert.manifest import ManifestError, read_manifest

__all__ = ["ManifestError", "read_manifest"]
