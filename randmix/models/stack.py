"""Blocks applied one after another: unrolled, recomputed on the way back, or as a scan over runs of equal blocks.

A model holds its blocks apart, ``spatial/block_03/...``, so that a selector can name a depth. Unrolled, XLA compiles
each of them: 32 blocks took 14 s where a scan took 1.3 s, with a step 14 % slower (ConvMixer on two CPU cores). A scan
takes the same variables, stacks those of a run inside the step, and leaves the tree as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Runs = tuple[tuple[int, int], ...]


def apply_blocks(
    parent: nn.Module,
    blocks: Sequence[Callable[..., nn.Module]],
    x: jax.Array,
    *,
    train: bool,
    remat: bool,
    scan: Runs,
) -> jax.Array:
    """Applies blocks to x inside the compact method of a model.

    Args:
        parent: the model, whose variables hold those of block i under ``block_name(i)``.
        blocks: makes each block from ``name`` and ``parent``.
        x: [N, H, W, C].
        train: given to each block.
        remat: keep only each block's input for the backward pass and compute the block again there.
        scan: runs [start, stop) of blocks with equal variables, applied by one `jax.lax.scan` each.
    """
    starts = {} if parent.is_initializing() else dict(scan)
    i = 0
    while i < len(blocks):
        if i in starts:
            x = _scan(parent, blocks[i], i, starts[i], x, train=train, remat=remat)
            i = starts[i]
        else:
            # A function of the module: nn.remat of the class would trace `train`.
            apply = nn.remat(_call(train)) if remat else _call(train)
            x = apply(blocks[i](name=block_name(i)), x)
            i += 1
    return x


def block_name(i: int) -> str:
    """The name of block i in every role's tree."""
    return f"block_{i:02d}"


def equal_runs(params: Mapping[str, Any], labels: Any = None) -> Runs:
    """The runs of two or more blocks in a row that one scan can take.

    Args:
        params: a model's parameters by role, or their shapes.
        labels: if given, blocks of a run have equal labels too, so that none computes a gradient for another's sake.

    >>> a, b = jnp.zeros(2), jnp.zeros(3)
    >>> equal_runs({"spatial": {"block_00": {"k": a}, "block_01": {"k": b}, "block_02": {"k": b}}})
    ((1, 3),)
    """
    names = sorted({name for role in params.values() for name in role if name.startswith("block_")})

    def kind(name: str) -> Any:
        shapes = jax.tree.map(
            jnp.shape, {role: tree.get(name, {}) for role, tree in params.items()}
        )
        marks = (
            None if labels is None else {role: tree.get(name, {}) for role, tree in labels.items()}
        )
        return shapes, marks

    runs = []
    for _, group in groupby(enumerate(names), key=lambda item: kind(item[1])):
        indices = [i for i, _ in group]
        if len(indices) > 1:
            runs.append((indices[0], indices[-1] + 1))
    return tuple(runs)


def _call(train: bool) -> Callable[[nn.Module, jax.Array], jax.Array]:
    return lambda block, x: block(x, train=train)


def _scan(parent, make_block, start, stop, x, *, train, remat):
    """Applies the equal blocks start .. stop - 1."""
    names = [block_name(i) for i in range(start, stop)]
    mutable = parent.is_mutable_collection("batch_stats")
    block = make_block(name=None, parent=None)
    of_each = [
        {role: tree[name] for role, tree in parent.variables.items() if name in tree}
        for name in names
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_each)

    def body(x, variables):
        if not mutable:
            return block.apply(variables, x, train=train), None
        y, updates = block.apply(variables, x, train=train, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    x, statistics = jax.lax.scan(jax.checkpoint(body) if remat else body, x, stacked)
    if mutable:
        for i, name in enumerate(names):
            parent.put_variable(
                "batch_stats", name, jax.tree.map(lambda leaf, i=i: leaf[i], statistics)
            )
    return x
