"""Sequential application of blocks: unrolled, rematerialised, or as a scan over equal blocks.

A model stores its blocks separately, ``spatial/block_03/...``, so that a selector can name a depth.
Unrolled, XLA compiles each block: for a ConvMixer of 32 blocks on two CPU cores, compilation took
14 s unrolled and 1.3 s with a scan, whose step was 14 % slower. A scan uses the same variables: it
stacks those of a run inside the step and leaves the tree unchanged.
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
    """Applies blocks to x, within the compact method of a model.

    Args:
        parent: the model; its variables hold those of block i under ``block_name(i)``.
        blocks: a factory for each block that accepts ``name`` and ``parent``.
        x: [N, H, W, C], the input of the first block.
        train: passed to each block.
        remat: save only the input of each block and recompute the block in the backward pass.
        scan: runs [start, stop) of blocks with equal variables, each applied with one
            `jax.lax.scan`.

    Returns:
        The output of the last block.
    """
    starts = {} if parent.is_initializing() else dict(scan)
    i = 0
    while i < len(blocks):
        if i in starts:
            x = _scan(parent, blocks[i], i, starts[i], x, train=train, remat=remat)
            i = starts[i]
        else:
            # Lifts a function of the module, because nn.remat of the class would trace `train`.
            apply = nn.remat(_call(train)) if remat else _call(train)
            x = apply(blocks[i](name=block_name(i)), x)
            i += 1
    return x


def block_name(i: int) -> str:
    """Name of block i in the tree of each role."""
    return f"block_{i:02d}"


def is_block(name: str) -> bool:
    """Whether a component of a path names a block."""
    return name.startswith("block_")


def equal_runs(params: Mapping[str, Any], labels: Any = None) -> Runs:
    """Runs of two or more consecutive blocks that one scan can apply.

    Args:
        params: a model's parameters by role, or their shapes.
        labels: a tree of labels, or None. If given, the blocks of a run also have equal labels, so
            that no block computes a gradient only because another one needs it.

    Returns:
        Pairs (start, stop) of block numbers, stop exclusive.

    >>> a, b = jnp.zeros(2), jnp.zeros(3)
    >>> equal_runs({"spatial": {"block_00": {"k": a}, "block_01": {"k": b}, "block_02": {"k": b}}})
    ((1, 3),)
    """
    found = {name for role in params.values() for name in role if is_block(name)}
    names = sorted(found, key=lambda name: (len(name), name))  # block_100 after block_99

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


def _scan(
    parent: nn.Module,
    make_block: Callable[..., nn.Module],
    start: int,
    stop: int,
    x: jax.Array,
    *,
    train: bool,
    remat: bool,
) -> jax.Array:
    """Applies the equal blocks start to stop - 1."""
    names = [block_name(i) for i in range(start, stop)]
    block = make_block(name=None, parent=None)
    of_each = [
        {role: tree[name] for role, tree in parent.variables.items() if name in tree}
        for name in names
    ]
    mutable = "batch_stats" in of_each[0] and parent.is_mutable_collection("batch_stats")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_each)

    def body(x: Any, variables: Any) -> tuple[Any, Any]:
        if not mutable:
            return block.apply(variables, x, train=train), None
        y, updates = block.apply(variables, x, train=train, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    # Inside a scan, XLA can't merge what is recomputed with what was computed: no barriers needed.
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    x, statistics = jax.lax.scan(body, x, stacked)
    if mutable:
        for i, name in enumerate(names):
            parent.put_variable(
                "batch_stats", name, jax.tree.map(lambda leaf, i=i: leaf[i], statistics)
            )
    return x
