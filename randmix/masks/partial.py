"""Freezing inside a leaf: draw the share of its filters that is learned."""

import math
import numbers
import zlib
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from randmix.masks.errors import MaskError, shown
from randmix.masks.selectors import MAX_INTEGER, Selector, check_length, is_bounded
from randmix.masks.tree import Leaf

# The parts of one layer, by Flax's and PyTorch's names; they share one draw.
_PARTS = ("kernel", "weight", "scale", "bias")


@dataclass(frozen=True, slots=True, repr=False)
class Fraction:
    """A share of the filters of each selected leaf, for use in a rule; created by `fraction`."""

    selector: Selector
    share: float
    seed: int

    def __post_init__(self):
        if not isinstance(self.selector, Selector):
            raise MaskError(f"fraction expects a selector or its text, got {shown(self.selector)}")
        # `not (0 <= x <= 1)` rejects NaN too.
        real = isinstance(self.share, numbers.Real) and not isinstance(self.share, bool)
        if not real or not 0 <= self.share <= 1:
            raise MaskError(
                f"the share of a fraction must be a number from 0 to 1, got {shown(self.share)}"
            )
        if not is_bounded(self.seed):
            raise MaskError(
                f"the seed of a fraction must be an integer from 0 to {MAX_INTEGER:,}, "
                f"got {shown(self.seed)}"
            )
        # Python's own numbers, whose repr can be parsed; that of an np.float64 can't.
        object.__setattr__(self, "share", float(self.share))
        object.__setattr__(self, "seed", int(self.seed))
        check_length(self)

    def __repr__(self) -> str:
        return f"fraction({self.selector!r}, {self.share!r}, {self.seed!r})"

    def _refuse(self, *_: Any) -> NoReturn:
        raise MaskError(
            "fraction(...) is a rule, not a selector: combine selectors inside its brackets"
        )

    __and__ = __rand__ = __or__ = __ror__ = __sub__ = __rsub__ = __invert__ = __bool__ = _refuse


def filter_mask(leaf: Leaf, fraction: Fraction) -> np.ndarray:
    """Mask of the filters of a leaf that are learned: bool, broadcastable to the leaf.

    A filter is one index into the axes after the first two ([k, k, C] has C filters, [k, k, C, m]
    has C m), or into the last axis of a leaf with fewer than three axes; the other axes have length
    1 in the mask. Exactly `round(share * filters)` filters are learned. They are drawn without
    replacement from the seed and the path, so neither the order nor the rest of the tree matters.
    Draws with one seed are nested: a larger share adds filters and drops none. The kernel and the
    bias of a layer share one draw, so that a filter is learned together with its bias.
    """
    shape = np.shape(leaf.value)
    kept = 2 if len(shape) > 2 else max(len(shape) - 1, 0)
    filters = math.prod(shape[kept:])
    layer = leaf.path.rpartition("/")[0] if leaf.name in _PARTS else leaf.path
    # Ranked raw bits instead of Generator.permutation: NumPy guarantees the bits across versions.
    bits = np.random.Philox(np.random.SeedSequence([fraction.seed, zlib.crc32(layer.encode())]))
    order = np.argsort(bits.random_raw(filters), kind="stable")
    mask = np.zeros(filters, bool)
    mask[order[: round(fraction.share * filters)]] = True
    return mask.reshape((1,) * kept + shape[kept:])
