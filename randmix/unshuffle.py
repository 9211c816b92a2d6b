"""A picture of pixel un-shuffling: test images, what the models were shown of them, and what each run gives back.

    python -m randmix.unshuffle --workdirs=runs/full
    python -m randmix.unshuffle --workdirs=runs/full,runs/chans,runs/space --out=figures

A column is a test image, the first ones in the data set's own order, which is a mixed one. Below the rows
"original" and "shuffled" comes a row for each run, with the PSNR of each image under it and the mean over the
whole test split beside it. Pixels are clipped to [0, 1] to be shown; the PSNR is of the model's output as it is.
Runs in one picture must have been given the same data set and the same permutation.

It writes reconstructions.png, .svg and, with each PSNR, .csv. A run with the task "unshuffling" draws its own when
it ends. Exit status: 0 done, 2 a mistake in the command.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from randmix import artifacts, cli, distributed, groups, plots, runs, tasks
from randmix import config as configs
from randmix.data import catalog, feeds
from randmix.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = "reconstructions"
_SHARED_KEYS = ("data.name", "permutation_seed")
_LABEL_WIDTH = 24  # characters


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the picture.

    Attributes:
        label: what stands beside it.
        images: [N, H, W, C] float32; what lies outside of [0, 1] is clipped where it is shown.
        psnr: of each image, [N], in dB; None: not shown.
    """

    label: str
    images: np.ndarray
    psnr: np.ndarray | None = None


def draw(
    workdirs: Sequence[epath.PathLike], folder: epath.PathLike, *, examples: int = 8
) -> list[epath.Path]:
    """Draws runs into a folder and returns the files; on several processes all must call it, and process 0 draws.

    Args:
        workdirs: of un-shuffling runs, one at least, in the order of their rows.
        folder: it is made where it doesn't exist.
        examples: how many test images, from the first on.

    Raises:
        UserError: a workdir without such a run or a checkpoint, runs of different data sets or permutations, or
            a folder that can't be written to.
    """
    original, shuffled, *reconstructed = reconstructions(workdirs, examples=examples)
    table = [
        {"run": str(workdir), "image": i, "psnr": float(psnr)}
        for workdir, row in zip(workdirs, reconstructed, strict=True)
        for i, psnr in enumerate(row.psnr)
    ]
    if not distributed.is_primary():
        return []
    return plots.save(
        figure([original, shuffled, *reconstructed]), epath.Path(folder) / _NAME, table
    )


def reconstructions(workdirs: Sequence[epath.PathLike], *, examples: int) -> list[Row]:
    """The original images, the shuffled ones, and what the latest checkpoint of each run makes of those.

    Arguments and errors are those of ``draw``.
    """
    run_configs = [_read_config(workdir) for workdir in workdirs]
    _check_comparable(workdirs, run_configs)
    config = run_configs[0]
    data_set = catalog.get(
        config.data.name, config.data.data_dir, image_size=config.data.image_size
    )
    split = feeds.Split(data_set, "test", config.data.data_dir, feeds.reading(config.data))
    images = split.arrays(examples)["image"]
    images = images.astype(np.float32) / 255
    _, height, width, _ = images.shape
    shuffled = tasks.shuffle(
        images, tasks.pixel_permutation(config.permutation_seed, height, width)
    )
    labels = _labels(run_configs)
    return [
        Row("original", images),
        Row("shuffled", shuffled),
        *(_reconstruct(*named, shuffled, images) for named in zip(workdirs, labels, strict=True)),
    ]


@plots.style()
def figure(rows: Sequence[Row]) -> "Figure":
    """Lays rows out, a column an image."""
    columns = len(rows[0].images)
    figure = plots.new_figure(1.6 + 0.8 * columns, 0.95 * len(rows))
    for row, axes in zip(rows, figure.subplots(len(rows), columns, squeeze=False), strict=True):
        axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=6)
        for i, (axis, image) in enumerate(zip(axes, row.images, strict=True)):
            image = np.clip(image, 0, 1)
            gray = image.shape[-1] == 1
            axis.imshow(
                image[..., 0] if gray else image,
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axis.grid(False)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row.psnr is not None:
                axis.set_xlabel(f"{row.psnr[i]:.1f} dB", labelpad=2)
    return figure


def _read_config(workdir: epath.PathLike) -> ConfigDict:
    config = artifacts.read_config(workdir)
    if config.task != "unshuffling":
        raise UserError(
            f"{workdir}: a run with the task {config.task!r}, allowed are runs with the task 'unshuffling'; "
            "train one with --config=configs/unshuffle.py"
        )
    return config


def _check_comparable(
    workdirs: Sequence[epath.PathLike], run_configs: Sequence[ConfigDict]
) -> None:
    first, *others = (configs.flatten(config) for config in run_configs)
    for workdir, other in zip(workdirs[1:], others, strict=True):
        for key in _SHARED_KEYS:
            if other[key] != first[key]:
                raise UserError(
                    f"{workdirs[0]} and {workdir}: config.{key}: got {first[key]!r} and {other[key]!r}, allowed "
                    "in one picture are runs of one data set and one permutation; draw them apart"
                )


def _labels(run_configs: Sequence[ConfigDict]) -> list[str]:
    """What tells runs apart: what each trains, and every key in which they differ."""
    sources = [groups.source(config) for config in run_configs]
    trained = [
        key if key == "groups" else config[key]
        for key, config in zip(sources, run_configs, strict=True)
    ]
    flat = [configs.flatten(config) for config in run_configs]
    ignored = configs.DISPLAY_KEYS | {"mode", "train", "groups"}
    differing = [
        key for key in flat[0] if key not in ignored and any(f[key] != flat[0][key] for f in flat)
    ]
    return [
        "\n".join([*textwrap.wrap(name, _LABEL_WIDTH), *(f"{key} {f[key]}" for key in differing)])
        for name, f in zip(trained, flat, strict=True)
    ]


def _reconstruct(
    workdir: epath.PathLike, label: str, shuffled: np.ndarray, images: np.ndarray
) -> Row:
    run = runs.load(workdir)
    outputs = jax.jit(run.model.apply)(run.variables, shuffled)
    psnr = tasks.unshuffling_metrics(outputs, {"target": images})["psnr"]
    if result := artifacts.read_result(epath.Path(workdir)):
        label += f"\nmean {result['metrics']['test_psnr']:.2f} dB"
    else:
        label += f"\nat step {run.step}"
    return Row(label, np.asarray(outputs), np.asarray(psnr))


def define_flags() -> None:
    """Defines the command line's flags; not at import, which a program with flags of its own may do."""
    flags.DEFINE_list("workdirs", [], "The folders of the runs, in the order of their rows.")
    flags.DEFINE_string(
        "out",
        None,
        "The folder to write to. Default: the run's where there is one run, else runs/unshuffle.",
    )
    flags.DEFINE_integer("examples", 8, "How many test images.", lower_bound=1, upper_bound=32)


def main(argv: list[str]) -> None:
    """Draws the runs that the command line names, and prints the files."""
    options = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"got {argv[1]!r}, allowed are flags only; see --help")
    if not options.workdirs:
        raise UserError(
            "--workdirs is missing; give the folders of runs, for example --workdirs=runs/a,runs/b"
        )
    out = options.out or (options.workdirs[0] if len(options.workdirs) == 1 else "runs/unshuffle")
    for file in draw(options.workdirs, out, examples=options.examples):
        print(file)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
