"""Verified checkpoints: Orbax's, each with a manifest of SHA-256 sums."""

from randmix.checkpoint.checkpoints import BEST, FOLDER, SET_ASIDE, Checkpoints

__all__ = ["BEST", "FOLDER", "SET_ASIDE", "Checkpoints"]
