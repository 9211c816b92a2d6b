"""The proposal of roles for a model: a table, its doubts, and the lines for a config."""

import collections
import dataclasses
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from randmix import masks
from randmix.analysis.roles.detection import BIAS, Guess, Parameter, detect
from randmix.analysis.roles.selection import shortest
from randmix.masks.summaries import Cells, Table
from randmix.masks.tree import flatten
from randmix.models.parameters import ROLES

_NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True, repr=False)
class Proposal(Table):
    """Roles of a model's parameters; its text has the table, the doubts and a config's lines.

    Attributes:
        parameters: path and shape of every parameter, in the order of the tree.
        guesses: the role of each, why, and the doubt about it.
        selectors: selector texts by role, in the order in which they are asked; {} if the model
            declares its roles, or if they would be longer than a selector may be.
    """

    parameters: tuple[Parameter, ...]
    guesses: tuple[Guess, ...]
    selectors: Mapping[str, str]

    @property
    def roles(self) -> dict[str, str]:
        """The role of each parameter by its path."""
        pairs = zip(self.parameters, self.guesses, strict=True)
        return {one.path: guess.role for one, guess in pairs}

    @property
    def doubts(self) -> list[str]:
        """A sentence for each kind of guess that isn't sure, with the layers it is about."""
        about: dict[str, dict[str, list[str]]] = {}
        for one, guess in zip(self.parameters, self.guesses, strict=True):
            if guess.doubt and guess.why != BIAS:
                alike = about.setdefault(guess.doubt, {})
                alike.setdefault(_NUMBER.sub("*", one.path), []).append(one.path)
        return [
            f"{_enumerated([_joined(paths) for paths in alike.values()])} {doubt}."
            for doubt, alike in about.items()
        ]

    @property
    def config(self) -> str:
        """The lines to paste into a config; "" without selectors."""
        lines = [f"    {json.dumps(role)}: {json.dumps(t)}," for role, t in self.selectors.items()]
        return "\n".join(["config.roles = {", *lines, "}"]) if lines else ""

    def cells(self) -> tuple[Sequence[str], Cells, Cells, int]:
        """One row for equal parameters of numbered layers, and the totals of each role."""
        header = ["path", "shape", "role", "why", "sure", "leaves", "count"]
        body, leaves, counts = [], collections.Counter(), collections.Counter()
        for path, alike, guess in self._rows():
            count = sum(math.prod(one.shape) for one in alike)
            sure = "unsure" if guess.doubt else "sure"
            numbers = [f"{len(alike):,}", f"{count:,}"]
            body.append([path, str(alike[0].shape), guess.role, guess.why, sure, *numbers])
            leaves[guess.role] += len(alike)
            counts[guess.role] += count
        footer = [
            ["", "", role, "", "", f"{leaves[role]:,}", f"{counts[role]:,}"] for role in leaves
        ]
        return header, body, footer, 5

    def __str__(self) -> str:
        return "\n\n".join([super().__str__(), *self._words()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return super()._repr_html_() + "".join(
            f"<pre>{html.escape(part)}</pre>" for part in self._words()
        )

    def _words(self) -> list[str]:
        """The paragraphs after the table."""
        doubts = [f"- {doubt}" for doubt in self.doubts]
        parts = ["\n".join(["Not sure:", *doubts])] if doubts else []
        return [*parts, *filter(None, [self.config])]

    def _rows(self) -> list[tuple[str, list[Parameter], Guess]]:
        """Parameters that differ in one number of their paths alone, under a path with a star."""
        pairs = list(zip(self.parameters, self.guesses, strict=True))
        keys = [[(path, one.shape, guess) for path in _starred(one.path)] for one, guess in pairs]
        sizes = collections.Counter(key for several in keys for key in several)
        groups: dict[Any, list[Parameter]] = {}
        for (one, guess), several in zip(pairs, keys, strict=True):
            most = max(several, key=sizes.__getitem__, default=(one.path, one.shape, guess))
            groups.setdefault(most, []).append(one)
        return [
            (path if len(alike) > 1 else alike[0].path, alike, guess)
            for (path, _, guess), alike in groups.items()
        ]


def propose(
    params: Any,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    tokens: int | None = None,
) -> Proposal:
    """Proposes a role for each parameter of any model, from names and shapes alone.

    Args:
        params: any pytree of arrays or `jax.ShapeDtypeStruct`s: Linen's, a state of `flax.nnx`, an
            Equinox module's arrays, PyTorch's state dict. The result of `jax.eval_shape` is enough.
        image_shape: (height, width, channels) of the images; it tells a patch embedding, and how
            many positions a token-mixing layer sees.
        num_classes: number of the model's outputs; it tells the head.
        tokens: number of positions, for a model whose patches don't tell.

    Returns:
        The proposal. Its selectors, as the rules of `masks.labels`, give every parameter the role
        in its table.

    >>> import numpy as np
    >>> filters, dense = np.zeros((7, 7, 1, 64)), np.zeros((64, 256))
    >>> print(propose({"depthwise": {"kernel": filters}, "mlp": {"kernel": dense}}).config)
    config.roles = {
        "spatial": "path('.*depthwise.*')",
        "channel": "everything",
    }
    """
    leaves, _ = flatten(params)
    parameters = tuple(
        Parameter(leaf.path, tuple(getattr(leaf.value, "shape", ()))) for leaf in leaves
    )
    guesses = detect(parameters, image_shape=image_shape, num_classes=num_classes, tokens=tokens)
    proposal = Proposal(parameters, tuple(guesses), {})
    proposal = dataclasses.replace(proposal, selectors=shortest(proposal.roles, ROLES))
    if proposal.selectors:
        labels = masks.labels(params, list(proposal.selectors.items()), strict=True)
        assert jax.tree.leaves(labels) == [guess.role for guess in guesses]
    return proposal


def declared(params: Any) -> Proposal:
    """Returns the roles of a model that declares them as the collections of its parameters."""
    parameters = tuple(Parameter(leaf.path, leaf.value.shape) for leaf in flatten(params)[0])
    guesses = (Guess(one.components[0], "declared") for one in parameters)
    return Proposal(parameters, tuple(guesses), {})


def _starred(path: str) -> list[str]:
    """The path with a star for one of its numbers, for each of them."""
    return [f"{path[: n.start()]}*{path[n.end() :]}" for n in _NUMBER.finditer(path)]


def _joined(paths: Sequence[str]) -> str:
    """One path for several that differ in numbers alone, with stars for those numbers."""
    numbers = zip(*map(_NUMBER.findall, paths), strict=True)
    shown = iter([one[0] if len(set(one)) == 1 else "*" for one in numbers])
    return _NUMBER.sub(lambda _: next(shown), paths[0])


def _enumerated(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
