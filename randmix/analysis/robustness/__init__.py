"""Accuracy under attack: measurement (`curves`), sanity checks (`sanity`), files (`report`)."""

from randmix.analysis.robustness.curves import Curves, Settings, jit_quick_curves, measure

__all__ = ["Curves", "Settings", "jit_quick_curves", "measure"]
