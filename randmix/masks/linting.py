"""What an optimizer does to frozen leaves, found without a step of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.extend.core import Literal
from jax.interpreters.partial_eval import dce_jaxpr

from randmix.masks.errors import MaskError
from randmix.masks.rules import FREEZE
from randmix.masks.summaries import Cells, Table
from randmix.masks.tree import ABSENT, PyTree, flatten, flatten_labels, flatten_like

# Operations whose result is zero if the first, any or every operand is.
_BY_FIRST = {"broadcast_in_dim", "convert_element_type", "copy", "neg", "reshape", "div"}
_BY_FIRST |= {"integer_pow", "square", "sqrt"}
_BY_ANY = {"mul"}
_BY_EVERY = {"add", "add_any", "sub"}


class Finding(NamedTuple):
    """What an optimizer does to one frozen leaf.

    Attributes:
        path: slash-joined path of the leaf.
        shape: its shape.
        moves: whether its update is anything but a constant zero.
        decays: whether its update depends on its value, as with weight decay; it then moves even if
            its gradient is zero.
        gradient: whether its gradient is read: for its update, for moments, or for the norm that
            clips the gradients of others. It must then be computed.
        state: bytes of the optimizer's state for this leaf, such as moments.
    """

    path: str
    shape: tuple[int, ...]
    moves: bool
    decays: bool
    gradient: bool
    state: int


@dataclass(frozen=True, repr=False)
class Findings(Table):
    """The table that `lint` returns.

    Attributes:
        rows: one `Finding` for each frozen leaf that moves, decays, has its gradient read or has
            optimizer state; empty if the optimizer leaves frozen leaves alone.
        frozen: number of frozen leaves.
    """

    rows: tuple[Finding, ...]
    frozen: int

    @property
    def state(self) -> int:
        """Bytes of optimizer state for frozen leaves."""
        return sum(row.state for row in self.rows)

    def cells(self) -> tuple[Sequence[str], Cells, Cells, int]:
        """The cells to show; the totals count the frozen leaves concerned."""
        titles = ["frozen leaf", "shape", "moves", "decays", "gradient", "state bytes"]
        body = [
            [row.path, str(row.shape)]
            + ["yes" if found else "" for found in (row.moves, row.decays, row.gradient)]
            + [f"{row.state:,}"]
            for row in self.rows
        ]
        counts = [
            sum(getattr(row, name) for row in self.rows) for name in ("moves", "decays", "gradient")
        ]
        totals = [f"{len(self.rows)} of {self.frozen}", "", *map(str, counts), f"{self.state:,}"]
        return titles, body, [totals], 2


def lint(optimizer: optax.GradientTransformation, labels: PyTree, params: PyTree) -> Findings:
    """Lists the frozen leaves that an optimizer moves, decays, or spends gradients or memory on.

    It traces `optimizer.init` and two updates with shapes alone, and follows in the traced program
    what the last update of each frozen leaf, and all results, depend on. A dependence counts even
    where its effect is zero, such as a decay of 0.0; an update that depends on nothing is still
    only if it is zeros, and not noise, say. State belongs to the leaf whose path its own path ends
    with, so that of an optimizer that flattens the tree isn't found.

    Args:
        optimizer: an optax transform.
        labels: a tree of labels with the structure of `params`, from `labels`.
        params: the tree that `optimizer.init` gets, arrays or `jax.ShapeDtypeStruct`s. Pass the
            trainable half if you train a `partition`: leaves that are None cost nothing.

    Returns:
        A table for a terminal or a notebook; its `rows` are empty if all is well.

    Raises:
        MaskError: the structures differ, a label is not a str, or a frozen leaf is no array.

    >>> params = {"spatial": {"kernel": np.ones((3, 3))}, "head": {"bias": np.ones(2)}}
    >>> labels = {"spatial": {"kernel": "freeze"}, "head": {"bias": "train"}}
    >>> decay = optax.add_decayed_weights(0.1)
    >>> lint(optax.chain(decay, optax.sgd(0.1, momentum=0.9)), labels, params)
    frozen leaf     shape   moves  decays  gradient  state bytes
    --------------  ------  -----  ------  --------  -----------
    spatial/kernel  (3, 3)    yes     yes       yes           36
    --------------  ------  -----  ------  --------  -----------
    1 of 1                      1       1         1           36
    """
    leaves, structure = flatten(params)
    chosen = [n for n, label in enumerate(_labels(params, labels)) if label == FREEZE]
    shapes = [_shape(leaf.path, leaf.value) for leaf in leaves]
    state_bytes = _state_bytes(optimizer, structure, shapes, [leaf.path for leaf in leaves])
    steps = jax.make_jaxpr(lambda *flat: _two_steps(optimizer, structure, flat))
    program = steps(*shapes, *shapes).jaxpr
    results = range(len(program.outvars))
    _, read = dce_jaxpr(program, [True for _ in results])
    rows = []
    for index in chosen:
        needed, used = dce_jaxpr(program, [result == index for result in results])
        row = Finding(
            leaves[index].path,
            tuple(shapes[index].shape),
            moves=any(used) or not all(_are_zero(needed, [])),
            decays=used[len(shapes) + index],
            gradient=read[index],
            state=state_bytes[index],
        )
        if row.moves or row.gradient or row.state:
            rows.append(row)
    return Findings(tuple(rows), len(chosen))


def _labels(params: PyTree, labels: PyTree) -> list[str]:
    """The labels of the leaves that a tree has; its other half may hold some."""
    leaves, treedef = flatten(params, nones=True)
    flat = zip(leaves, flatten_like(treedef, labels, "labels"), strict=True)
    structure = jax.tree.structure(params)
    found = [label for leaf, label in flat if leaf.value is not ABSENT]
    return flatten_labels(structure, structure.unflatten(found))


def _two_steps(optimizer: optax.GradientTransformation, structure: Any, flat: Any) -> list[Any]:
    """Updates of the second of two steps with the same gradients, then the leaves of the state."""
    gradients = structure.unflatten(flat[: len(flat) // 2])
    params = structure.unflatten(flat[len(flat) // 2 :])
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    updates, state = optimizer.update(gradients, state, params)
    return [*jax.tree.leaves(updates), *jax.tree.leaves(state)]


def _are_zero(jaxpr: Any, given: list[bool]) -> list[bool]:
    """Which results of a program are zeros, given which arguments are; False if it can't tell."""
    known = dict(zip(jaxpr.invars, given, strict=True))

    def is_zero(atom: Any) -> bool:
        return not np.any(atom.val) if isinstance(atom, Literal) else known.get(atom, False)

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, list(map(is_zero, eqn.invars))
        if name in ("jit", "pjit"):
            found = _are_zero(eqn.params["jaxpr"].jaxpr, operands)
        elif name == "cond":
            branches = (_are_zero(one.jaxpr, operands[1:]) for one in eqn.params["branches"])
            found = list(map(all, zip(*branches, strict=True)))
        else:
            zero = name in _BY_FIRST and operands[0]
            zero |= name in _BY_ANY and any(operands)
            zero |= name in _BY_EVERY and all(operands)
            found = [zero] * len(eqn.outvars)
        known.update(zip(eqn.outvars, found, strict=True))
    return list(map(is_zero, jaxpr.outvars))


def _state_bytes(
    optimizer: optax.GradientTransformation, structure: Any, shapes: list[Any], paths: list[str]
) -> list[int]:
    """Bytes of the optimizer's initial state for each leaf."""
    state = jax.eval_shape(lambda *flat: optimizer.init(structure.unflatten(flat)), *shapes)
    numbers = {path: index for index, path in enumerate(paths)}
    total = [0] * len(paths)
    for leaf in flatten(state)[0]:
        # The longest path that it ends with: `mu/head/bias` is that of `head/bias`, not of `bias`.
        parts = leaf.path.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        owner = next((numbers[end] for end in ends if end in numbers), None)
        if owner is not None:
            total[owner] += leaf.value.size * leaf.value.dtype.itemsize
    return total


def _shape(path: str, value: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise MaskError(f"{path!r} is no array, but a {type(value).__name__}: leave it out")
    return jax.ShapeDtypeStruct(value.shape, jax.dtypes.canonicalize_dtype(value.dtype))
