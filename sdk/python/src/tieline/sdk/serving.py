"""`serve(Plugin())`: the last line of every plugin."""

from __future__ import annotations

from pathlib import Path

from tieline.sdk.core import Plugin


def serve(plugin: Plugin, manifest: Path = Path("plugin.toml")) -> None:
    """Serve the plugin where the platform asks for it, until it says to stop. The manifest lies beside it."""
    # A plugin's tests import it without paying for gRPC.
    from tieline.sdk._grpc import run  # noqa: PLC0415

    run(plugin, manifest)
