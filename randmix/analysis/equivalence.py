"""What each frozen bank of 3 x 3 filters can express, as a figure that needs no runs.

The pointwise weights that are learned after frozen filters reach the dense kernels in the span of
the filters, so the rank of a bank decides, not its kind (see `randmix.models.rewriting`).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from randmix import models
from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.models import filters, rewriting

# Title, bank and number m of filters per channel, from the top down.
BANKS = (
    ("Different, m = 9", "random", 9),
    ("Same, m = 9", "same", 9),
    ("Different, m = 3", "random", 3),
    ("Different, m = 1", "random", 1),
    ("Box, m = 9", "box", 9),
    ("Identity, m = 9", "identity", 9),
)
_SIDE, _CHANNELS, _OUTPUTS = 3, 16, 16
_WIDTH, _CLASSES, _IMAGES = 8, 10, (32, 8, 8, 3)


@plots.style()
def equivalence(*, draws: int = 10) -> dict[str, Picture]:
    """Dots per bank: the residual of dense kernels, and the error of a rewritten ResNet's logits.

    The residual is `rewriting.residual` of kernels with independent normal weights and a new bank
    each time. The logits are those of a ResNet-8 of width 8 with random weights, once as it is and
    once with the bank's filters and the best pointwise kernels for them, both in float32 and
    normalised by the batch. Their difference is relative to the logits' variation over
    random images: that of two unrelated networks is about the square root of 2.

    Args:
        draws: number of kernels, and of networks, per bank.

    Returns:
        The picture "equivalence", with one row per bank and draw.
    """
    figure = plots.new_figure(6.4, 2.6)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = []
    for place, (title, name, m) in enumerate(BANKS):
        found = [_of_random(name, m, seed) for seed in range(draws)]
        errors = [_logit_error(name, m, seed) for seed in range(draws)]
        _dots(left, place, [row["residual"] for row in found], **plots.series(0))
        _dots(right, place, errors, **plots.series(0))
        rows += [
            {"filters": title, "draw": draw, **row, "logit_error": error}
            for draw, (row, error) in enumerate(zip(found, errors, strict=True))
        ]
    _finish(left, right, rows)
    return {"equivalence": Picture(figure, rows)}


def _finish(left: Axes, right: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    rank = {row["filters"]: row["rank"] for row in rows}
    left.set_yticks(range(len(BANKS)), [f"{title}: rank {rank[title]}" for title, _, _ in BANKS])
    left.invert_yaxis()
    left.set(xlim=(-0.05, 1.05), xlabel="out of reach, of a dense kernel's norm")
    right.set(xscale="log", xlim=(1e-7, 10), xlabel="relative change of the logits (float32)")
    for axes in (left, right):
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)


def _dots(axes: Axes, place: int, values: Sequence[float], **appearance: Any) -> None:
    spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
    axes.plot(values, place + spread, **{**appearance, "linestyle": "", "alpha": 0.7})


def _of_random(name: str, m: int, seed: int) -> dict[str, Any]:
    kernel = np.random.default_rng(seed).normal(size=(_SIDE, _SIDE, _CHANNELS, _OUTPUTS))
    bank = _bank(jax.random.key(seed), name, _CHANNELS, m)
    rank = int(rewriting.ranks(bank).min())
    return {"rank": rank, "residual": rewriting.residual(kernel, bank)}


def _bank(key: jax.Array, name: str, channels: int, m: int) -> np.ndarray:
    # One shape for all layers, since each shape is a program to compile.
    shape = (_SIDE, _SIDE, max(channels, 4 * _WIDTH), m)
    return np.asarray(filters.build(name)(key, shape))[:, :, :channels]


def _logit_error(name: str, m: int, seed: int) -> float:
    """Relative error of the logits of a network that was rewritten with a bank's filters."""
    variables = _initial(seed)
    places, tree = jax.tree.flatten(variables["spatial"])
    keys = jax.random.split(jax.random.key(seed), len(places))
    frozen = [_bank(key, name, leaf.shape[2], m) for key, leaf in zip(keys, places, strict=True)]
    spatial = jax.tree.unflatten(tree, frozen)
    rewritten = rewriting.with_filters(variables, spatial, exact=False)
    as_stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), rewritten)
    expected, got = _logits(9)(variables), _logits(m)(as_stored)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected - expected.mean(0)))


def _resnet(m: int) -> Any:
    return models.build("resnet", width=_WIDTH, depth=1, multiplier=m, num_classes=_CLASSES)


@functools.cache
def _initial(seed: int) -> dict[str, Any]:
    """The network's variables: kernels and the head's bias normal, norms as before training."""
    # Drawn in NumPy: compiling the model's own initialisation takes longest of all.
    image = jax.ShapeDtypeStruct((1, *_IMAGES[1:]), jnp.float32)
    shapes = jax.eval_shape(_resnet(9).init, jax.random.key(0), image)
    rng = np.random.default_rng(1000 + seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[0].key in ("norm", "batch_stats"):
            return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _logits(m: int) -> Any:
    """``variables -> logits`` of fixed random images, normalised by the batch."""
    images = jnp.asarray(np.random.default_rng(0).random(_IMAGES), jnp.float32)

    @jax.jit
    def logits(variables: Any) -> jax.Array:
        return _resnet(m).apply(variables, images, train=True, mutable=["batch_stats"])[0]

    return lambda variables: np.asarray(logits(variables), np.float64)
