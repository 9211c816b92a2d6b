"""Select, label and freeze the parameters of any pytree.

A *selector* picks leaves by their paths (`spatial/block_03/depthwise/kernel`) or by a predicate.
Ordered *rules* turn selectors into a tree of labels for `optax.multi_transform`:

>>> from randmix import masks
>>> params = {"spatial": {"block_00": {"kernel": 1.0}}, "channel": {"block_00": {"kernel": 2.0}}}
>>> chans = ~masks.role("spatial")
>>> masks.labels(params, [("train", chans), ("freeze", masks.everything)])
{'channel': {'block_00': {'kernel': 'train'}}, 'spatial': {'block_00': {'kernel': 'freeze'}}}

Linen dictionaries, `flax.nnx` states, registered dataclasses, lists and named tuples all work.
Labels are computed once, before the training step is compiled. This package imports nothing else of
randmix and can be used alone.

Modules, from the lowest layer up:

- `depths` and `tree`: a pytree as leaves with paths and depths.
- `selectors`: `role`, `path`, `depth`, `leaf`, `where`, `everything`, `nothing` and the operators.
- `parsing`: `parse`, the text form.
- `rules`: `MODES`, `trainable`, `fraction`; `strictness`: what is refused in them.
- `labelling`: `mask`, `paths`, `apply`, `labels` and `channel_masks`.
- `splitting`: `partition`, `merge`, `hold`, and `blend` inside a leaf.
- `transforms`: `transform`, an optax optimizer for labels.
- `summaries` and `comparison`: `summary` and `diff`.
- `linting` and `costs`: `lint`, what an optimizer does to frozen leaves, and `savings` of a step.
"""

from randmix.masks.comparison import Change, Comparison, diff
from randmix.masks.costs import Saving, Savings, savings
from randmix.masks.errors import MaskError
from randmix.masks.labelling import apply, channel_masks, labels, mask, paths
from randmix.masks.linting import Finding, Findings, lint
from randmix.masks.parsing import parse
from randmix.masks.rules import MODES, fraction, trainable
from randmix.masks.selectors import (
    Fraction,
    Selector,
    depth,
    everything,
    leaf,
    nothing,
    path,
    role,
    where,
)
from randmix.masks.splitting import blend, hold, merge, partition
from randmix.masks.strictness import MaskWarning
from randmix.masks.summaries import Row, Summary, summary
from randmix.masks.transforms import transform

__all__ = [
    "MODES",
    "Change",
    "Comparison",
    "Finding",
    "Findings",
    "Fraction",
    "MaskError",
    "MaskWarning",
    "Row",
    "Saving",
    "Savings",
    "Selector",
    "Summary",
    "apply",
    "blend",
    "channel_masks",
    "depth",
    "diff",
    "everything",
    "fraction",
    "hold",
    "labels",
    "leaf",
    "lint",
    "mask",
    "merge",
    "nothing",
    "parse",
    "partition",
    "path",
    "paths",
    "role",
    "savings",
    "summary",
    "trainable",
    "transform",
    "where",
]
