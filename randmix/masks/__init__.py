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

- `tree`: a pytree as leaves with paths.
- `selectors`: `role`, `path`, `depth`, `leaf`, `where`, `everything`, `nothing` and the operators.
- `parsing`: `parse`, the text form.
- `rules`: `MODES`, `trainable`, `fraction`.
- `labelling`: `mask`, `paths`, `apply`, `labels`, `partition` and `merge`; inside a leaf,
  `channel_masks` and `blend`.
- `summaries` and `comparison`: `summary` and `diff`.
"""

from randmix.masks.comparison import Change, Comparison, diff
from randmix.masks.errors import MaskError
from randmix.masks.labelling import (
    apply,
    blend,
    channel_masks,
    labels,
    mask,
    merge,
    partition,
    paths,
)
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
from randmix.masks.summaries import Row, Summary, summary

__all__ = [
    "MODES",
    "Change",
    "Comparison",
    "Fraction",
    "MaskError",
    "Row",
    "Selector",
    "Summary",
    "apply",
    "blend",
    "channel_masks",
    "depth",
    "diff",
    "everything",
    "fraction",
    "labels",
    "leaf",
    "mask",
    "merge",
    "nothing",
    "parse",
    "partition",
    "path",
    "paths",
    "role",
    "summary",
    "trainable",
    "where",
]
