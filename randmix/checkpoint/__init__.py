"""Checkpoints that are whole or refused: Orbax's, each with a manifest of SHA-256 sums."""

from randmix.checkpoint.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
