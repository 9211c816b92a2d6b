"""A picture of training images before and after augmentation: what the model is shown.

    python -m randmix.data.show --config=configs/convmixer_cifar10.py
    python -m randmix.data.show --config=configs/convmixer_cifar10.py --examples=8 --step=100 --out=figures

It draws the first examples of the batch of a step, above as they are in the data set (photographs as they were cropped) and below as the model sees them
in that very step, each with its class. A mixed image has both classes, with the share of each. It writes
augmented.png, .svg and, with each label, .csv to --out. Exit status: 0 done, 2 a mistake in the command.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from randmix import cli, plots, sharding
from randmix import config as configs
from randmix.data import catalog, feeds, loader
from randmix.data.augment import Augmentation
from randmix.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME = "augmented"
_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Shown:
    """Examples before and after augmentation.

    Attributes:
        before: [N, H, W, C] float32 in [0, 1].
        after: the same, not cut off to [0, 1].
        labels: of each, [N] int32.
        mixed_labels: of the images mixed into them, [N] int32; the same as ``labels`` where nothing is mixed.
        weights: of ``labels``, [N] float32 in [0, 1].
    """

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    mixed_labels: np.ndarray
    weights: np.ndarray


def draw(
    config: ConfigDict, folder: epath.PathLike, *, examples: int = 16, step: int = 0
) -> list[epath.Path]:
    """Draws the first examples of a step into a folder and returns the files.

    Args:
        config: of a run; its model counts for its normalisation only.
        folder: it is made where it doesn't exist.
        examples: how many, up to the batch size.
        step: steps taken before the one that is shown, from 0.

    Raises:
        UserError: a value that no run could have, more examples than a batch has, a data set that isn't prepared, or
            a folder that can't be written to.
    """
    configs.check(config)
    if not 1 <= examples <= config.batch_size:
        raise UserError(
            f"--examples: got {examples}, allowed is 1 to the batch size, {config.batch_size}; "
            "set a smaller one, or a larger --config.batch_size"
        )
    shown = at_step(config, step, examples)
    names = catalog.class_names(config.data.name, config.data.data_dir)
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


def at_step(config: ConfigDict, step: int, examples: int) -> Shown:
    """The first examples of the global batch of a step, by the functions that training uses."""
    data_set = catalog.get(
        config.data.name, config.data.data_dir, image_size=config.data.image_size
    )
    augmentation = feeds.augmentation(config, data_set)
    split = feeds.Split(data_set, "train", config.data.data_dir, feeds.reading(config.data))
    count = max(1, round(config.data.subset * split.examples()))
    configs.total_steps(config, count)  # says so where an epoch has no whole batch
    feed = split.for_training(
        seed=config.seed,
        batch_size=config.batch_size,
        total_steps=step + 1,
        examples=count,
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
            np.int32(step),
            np.uint32(config.seed),
            batch_size=config.batch_size,
            augmentation=augmentation,
        )
        return {name: array[:examples] for name, array in batch.items()}

    before, after = jax.device_get(
        [batch(data, order, one) for one in (Augmentation(), augmentation)]
    )
    return Shown(
        before=before["image"],
        after=after["image"],
        labels=after["label"],
        mixed_labels=after.get("mixed_label", after["label"]),
        weights=after.get("label_weight", np.ones(examples, np.float32)),
    )


@plots.style()
def figure(shown: Shown, names: Sequence[str]) -> "Figure":
    """Pairs of rows, before and after, of up to eight examples."""
    n = len(shown.labels)
    columns = min(n, _COLUMNS)
    rows = 2 * -(-n // columns)
    figure = plots.new_figure(0.6 + 1.0 * columns, 1.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for i in range(n):
        above, below = (grid[2 * (i // columns) + k, i % columns] for k in (0, 1))
        _show(above, shown.before[i], names[shown.labels[i]])
        _show(below, shown.after[i], _after_title(shown, i, names))
        above.set_ylabel("before" if i % columns == 0 else "")
        below.set_ylabel("after" if i % columns == 0 else "")
    return figure


def _after_title(shown: Shown, i: int, names: Sequence[str]) -> str:
    label, mixed, weight = names[shown.labels[i]], names[shown.mixed_labels[i]], shown.weights[i]
    if weight == 1:
        return ""
    return f"{weight:.2f} {label}\n{1 - weight:.2f} {mixed}"


def _show(axes: "Axes", image: np.ndarray, title: str) -> None:
    image = np.clip(image, 0, 1)
    gray = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if gray else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_visible(True)
    axes.set_title(title, pad=2)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def define_flags() -> None:
    """Defines the command line's flags; not at import, which a program with flags of its own may do."""
    config_flags.DEFINE_config_file(
        "config",
        help_string="The config file, for example configs/digits.py, or configs/NAME.py:VARIANT.",
    )
    flags.DEFINE_string("out", "runs/augmented", "The folder to write to.")
    flags.DEFINE_integer(
        "examples", 16, "How many images, up to the batch size.", lower_bound=1, upper_bound=64
    )
    flags.DEFINE_integer("step", 0, "Steps taken before the one that is shown.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Draws what the command line names, and prints the files."""
    options = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"got {argv[1]!r}, allowed are flags only; see --help")
    if options.config is None:
        raise UserError("--config is missing; give one, for example --config=configs/digits.py")
    for file in draw(options.config, options.out, examples=options.examples, step=options.step):
        print(file)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
