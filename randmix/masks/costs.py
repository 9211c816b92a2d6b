"""What a mask saves in a training step, by the compiled programs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from randmix.masks.rules import TRAIN
from randmix.masks.splitting import merge, partition
from randmix.masks.summaries import Cells, Table
from randmix.masks.tree import PyTree, flatten, flatten_labels

STATE, FLOPS, ACCESSED, PEAK = "optimizer state, bytes", "FLOPs", "bytes accessed", "peak bytes"


class Saving(NamedTuple):
    """One quantity of a training step.

    Attributes:
        quantity: its name and unit.
        full: its value if every leaf is trained.
        masked: its value with the mask.
    """

    quantity: str
    full: int
    masked: int

    @property
    def saved(self) -> int:
        """What the mask saves; negative if it costs something."""
        return self.full - self.masked


@dataclass(frozen=True, repr=False)
class Savings(Table):
    """The table that `savings` returns.

    Attributes:
        rows: one `Saving` for each quantity that the compiler reports.
    """

    rows: tuple[Saving, ...]

    def __getitem__(self, quantity: str) -> Saving:
        return {row.quantity: row for row in self.rows}[quantity]

    @property
    def flops(self) -> int:
        """Floating-point operations saved in a step."""
        return self[FLOPS].saved

    @property
    def bytes(self) -> int:
        """Bytes of device memory saved at the peak of a step."""
        return self[PEAK].saved

    def cells(self) -> tuple[Sequence[str], Cells, Cells, int]:
        """The cells to show, without totals."""
        body = [
            [row.quantity, f"{row.full:,}", f"{row.masked:,}", f"{row.saved:,}", _percent(row)]
            for row in self.rows
        ]
        return ["of a step", "all trained", "masked", "saved", ""], body, [], 1


def savings(
    loss: Callable[..., Any],
    labels: PyTree,
    params: PyTree,
    *args: Any,
    optimizer: optax.GradientTransformation | None = None,
    has_aux: bool = False,
) -> Savings:
    """What a mask saves in one training step, in FLOPs and bytes.

    Two steps are compiled and not run: one that differentiates `loss` with respect to the trainable
    half of a `partition`, and one that trains every leaf but integers. Both update with the
    optimizer and return the new parameters and state in the memory of the old ones. The figures are
    XLA's, for the default device; it counts FLOPs by its own rules, which differ between backends
    and versions.

    Args:
        loss: `loss(params, *args)`, a scalar; or (scalar, anything) with `has_aux`.
        labels: a tree of labels with the structure of `params`, from `labels`.
        params, *args: arrays or `jax.ShapeDtypeStruct`s.
        optimizer: an optax transform for any tree, by default `optax.adam(1e-3)`. It gets only what
            is trained, so it needs no mask itself.
        has_aux: whether `loss` returns a pair.

    Returns:
        A table for a terminal or a notebook.

    Raises:
        MaskError: the structures differ, or a label is not a str.

    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((8, 16)), "second": jnp.ones((16, 4))}
    >>> loss = lambda params, x: (x @ params["first"] @ params["second"]).sum()
    >>> labels = {"first": "freeze", "second": "train"}
    >>> table = savings(loss, labels, params, jnp.ones((32, 8)), optimizer=optax.sgd(0.1, 0.9))
    >>> table[STATE]
    Saving(quantity='optimizer state, bytes', full=768, masked=256)
    """
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    leaves, treedef = flatten(params)
    pairs = zip(leaves, flatten_labels(treedef, labels), strict=True)
    # Inside jit, the two programs differ in these labels alone. Integers, such as quantised
    # weights, have no gradient and keep theirs.
    all_trained = treedef.unflatten(
        [TRAIN if jnp.issubdtype(leaf.value.dtype, jnp.inexact) else label for leaf, label in pairs]
    )

    def measured(labels: PyTree) -> dict[str, int]:
        def step(params: PyTree, state: Any, *args: Any) -> tuple[PyTree, Any]:
            trainable, rest = partition(params, labels)
            gradients = jax.grad(lambda part: loss(merge(part, rest), *args), has_aux=has_aux)(
                trainable
            )
            gradients = gradients[0] if has_aux else gradients
            updates, state = optimizer.update(gradients, state, trainable)
            return merge(optax.apply_updates(trainable, updates), rest), state

        state = jax.eval_shape(optimizer.init, partition(params, labels)[0])
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *args).compile()
        return {
            STATE: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
            **_reported(compiled),
        }

    full, masked = measured(all_trained), measured(labels)
    return Savings(tuple(Saving(name, full[name], masked[name]) for name in full))


def _reported(compiled: Any) -> dict[str, int]:
    """What the compiler reports of a program; a backend may leave some out."""
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    names = {FLOPS: "flops", ACCESSED: "bytes accessed"}
    found = {name: int(costs[key]) for name, key in names.items() if key in costs}
    if memory is not None:
        found[PEAK] = (
            memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
    return found


def _percent(row: Saving) -> str:
    return f"{100 * row.saved / row.full:.1f} %" if row.full else ""
