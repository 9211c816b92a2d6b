"""Accuracy under attack: the curves (`curves`), whether to believe them (`sanity`), and what is shown of them (`report`)."""

from randmix.robustness.curves import Curves, Settings, jit_quick_curves, measure

__all__ = ["Curves", "Settings", "jit_quick_curves", "measure"]
