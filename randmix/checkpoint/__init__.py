"""Verified checkpoints: Orbax's, each with a manifest of SHA-256 sums."""

from randmix.checkpoint.checkpoints import (
    BEST,
    FOLDER,
    SET_ASIDE,
    Checkpoints,
    how_to_train,
    newest_fingerprint,
    set_aside,
)

__all__ = [
    "BEST",
    "FOLDER",
    "SET_ASIDE",
    "Checkpoints",
    "how_to_train",
    "newest_fingerprint",
    "set_aside",
]
