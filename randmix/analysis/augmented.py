"""Figure of training images before and after augmentation."""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from randmix.analysis import plots
from randmix.config import Config
from randmix.data import catalog, feeds, loader
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import runs

_NAME = "augmented"
_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Shown:
    """Examples before and after augmentation.

    Attributes:
        before: [N, H, W, C] float32 in [0, 1].
        after: [N, H, W, C] float32, not clipped to [0, 1].
        labels: [N] int32.
        mixed_labels: [N] int32, labels of the images mixed into them; equal to ``labels`` if
            nothing is mixed.
        weights: [N] float32 in [0, 1], the weights of ``labels``.
    """

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    mixed_labels: np.ndarray
    weights: np.ndarray


def draw(
    config: Config, folder: epath.PathLike, *, examples: int = 16, step: int = 0
) -> list[epath.Path]:
    """Draws the first examples of a step and writes the figure and its table to a folder.

    Args:
        config: a run's config.
        folder: output folder; created if it doesn't exist.
        examples: how many, up to the batch size.
        step: steps taken before the one that is shown, from 0.

    Returns:
        The files written.

    Raises:
        UserError: a config value is invalid, a batch has fewer examples, the data set isn't
            prepared, or the folder can't be written.
    """
    parts = runs.assemble(config)
    if not 1 <= examples <= parts.step.batch_size:
        raise UserError(
            f"--examples: got {examples}, allowed is 1 to the batch size, {parts.step.batch_size}; "
            "set a smaller one, or a larger --config.batch_size"
        )
    shown = at_step(parts, step, examples)
    names = catalog.class_names(parts.data.dataset.name, parts.data.data_dir)
    table = [
        {
            "example": i,
            "label": names[label],
            "mixed_label": names[mixed],
            "label_weight": float(weight),
        }
        for i, (label, mixed, weight) in enumerate(
            zip(shown.labels, shown.mixed_labels, shown.weights, strict=True)
        )
    ]
    return plots.save(figure(shown, names), epath.Path(folder) / _NAME, table)


def at_step(parts: runs.Parts, step: int, examples: int) -> Shown:
    """Returns the first examples of a step's global batch, by the functions that training uses."""
    data, options = parts.data, parts.step
    feed = feeds.Split(data.dataset, "train", data.data_dir, data.reading).for_training(
        seed=parts.seed,
        batch_size=options.batch_size,
        total_steps=step + 1,
        examples=data.train_examples,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )
    with contextlib.closing(feed):
        data, order = feed.arguments(step)

    @partial(jax.jit, static_argnames="augmentation")
    def batch(
        data: loader.Data, order: jax.Array | None, augmentation: Augmentation
    ) -> dict[str, jax.Array]:
        batch = loader.train_batch(
            data,
            order,
            jnp.int32(step),
            jnp.uint32(parts.seed),
            batch_size=options.batch_size,
            augmentation=augmentation,
        )
        return {name: array[:examples] for name, array in batch.items()}

    before, after = jax.device_get(
        [batch(data, order, one) for one in (Augmentation(), options.augmentation)]
    )
    return Shown(
        before=before["image"],
        after=after["image"],
        labels=after["label"],
        mixed_labels=after.get("mixed_label", after["label"]),
        weights=after.get("label_weight", np.ones(examples, np.float32)),
    )


@plots.style()
def figure(shown: Shown, names: Sequence[str]) -> Figure:
    """Figure with pairs of rows, before and after, of up to eight examples each."""
    n = len(shown.labels)
    columns = min(n, _COLUMNS)
    rows = 2 * -(-n // columns)
    figure = plots.new_figure(0.6 + 1.0 * columns, 1.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for i in range(n):
        above, below = (grid[2 * (i // columns) + k, i % columns] for k in (0, 1))
        for axes, image in ((above, shown.before[i]), (below, shown.after[i])):
            axes.set_visible(True)
            plots.show_image(axes, image)
        above.set_title(names[int(shown.labels[i])], pad=2)
        below.set_title(_after_title(shown, i, names), pad=2)
        above.set_ylabel("before" if i % columns == 0 else "")
        below.set_ylabel("after" if i % columns == 0 else "")
    return figure


def _after_title(shown: Shown, i: int, names: Sequence[str]) -> str:
    label, mixed, weight = names[shown.labels[i]], names[shown.mixed_labels[i]], shown.weights[i]
    if weight == 1:
        return ""
    return f"{weight:.2f} {label}\n{1 - weight:.2f} {mixed}"


def main(options: Any) -> None:
    """Draws the figure with the options of ``commands/show.py`` and prints the files written."""
    for file in draw(options.config, options.out, examples=options.examples, step=options.step):
        print(file)
