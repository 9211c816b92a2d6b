"""Accuracy under attack: measurement (`curves`), checks (`sanity`), files (`bits`, `report`)."""

from randmix.analysis.robustness.bits import load
from randmix.analysis.robustness.curves import Curves, Settings, jit_together, measure

__all__ = ["Curves", "Settings", "jit_together", "load", "measure"]
