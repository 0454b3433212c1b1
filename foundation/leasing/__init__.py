"""Secrets borrowed from the vault: asked for together, held in memory, given back by forgetting them."""

from foundation.leasing.borrowed import Borrowed, Held, Listener, Place

__all__ = ["Borrowed", "Held", "Listener", "Place"]
