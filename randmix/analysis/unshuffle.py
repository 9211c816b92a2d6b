"""Pictures of pixel un-shuffling: test images, their shuffled versions and the reconstructions."""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from randmix import config as configs
from randmix.analysis import linear, plots
from randmix.data import feeds
from randmix.errors import UserError
from randmix.models import reach
from randmix.runtime import distributed
from randmix.training import groups, loading, runs, tasks
from randmix.workdir import artifacts

LINEAR = "linear regression"  # what the name of this baseline starts with
_NAME = "reconstructions"
_SHARED_KEYS = ("data.name", "permutation_seed")
_LABEL_WIDTH = 24  # characters


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the picture.

    Attributes:
        label: text beside the row.
        images: [N, H, W, C] float32; values outside [0, 1] are clipped for display.
        psnr: [N], the PSNR of each image in dB; None for rows that show none.
        source: what the images come from, for the table: a run's folder, or a baseline.
        mean_psnr: of a baseline, the mean over the whole test split in dB, infinite if it is exact.
    """

    label: str
    images: np.ndarray
    psnr: np.ndarray | None = None
    source: str = ""
    mean_psnr: float | None = None


def draw(
    workdirs: Sequence[epath.PathLike], folder: epath.PathLike, *, examples: int = 8
) -> list[epath.Path]:
    """Draws runs into a folder and returns the files written.

    With several processes all must call it; only process 0 draws, and the others return [].

    Args:
        workdirs: folders of un-shuffling runs, at least one, in the order of the rows.
        folder: folder to write to; created if missing.
        examples: number of test images, starting with the first.

    Raises:
        UserError: a workdir holds no un-shuffling run or no checkpoint, the runs differ in their
            data set or permutation, or the folder can't be written.
    """
    rows = reconstructions(workdirs, examples=examples)
    table = [
        {"run": row.source, "image": i, "psnr": float(psnr)}
        for row in rows
        if row.psnr is not None
        for i, psnr in enumerate(row.psnr)
    ]
    if not distributed.is_primary():
        return []
    return plots.save(figure(rows), epath.Path(folder) / _NAME, table)


def draw_missing(workdir: epath.PathLike) -> None:
    """Draws a run that has no picture yet into its own folder; all processes must call it."""
    if not epath.Path(workdir, f"{_NAME}.png").exists():
        draw([workdir], workdir)


def reconstructions(workdirs: Sequence[epath.PathLike], *, examples: int) -> list[Row]:
    """Rows of the original images, the shuffled ones, two baselines, and each run's reconstruction.

    Reconstructs with the latest checkpoint of each run. The baselines are the mean training image
    and, for each receptive field among the runs, linear regression within it (see
    `randmix.analysis.linear`); data sets that don't fit in memory have none. Arguments and errors
    are those of ``draw``.
    """
    run_configs = [_read_config(workdir) for workdir in workdirs]
    _check_comparable(workdirs, run_configs)
    config = run_configs[0]
    data_set = runs.find_dataset(config)
    train, test = (
        feeds.Split(data_set, split, config.data.data_dir, runs.reading(config, data_set))
        for split in ("train", "test")
    )
    images = test.arrays(examples)["image"].astype(np.float32) / 255
    _, height, width, _ = images.shape
    permutation = tasks.pixel_permutation(config.permutation_seed, height, width)
    shuffled = tasks.shuffle(images, permutation)
    labels = _labels(run_configs)
    return [
        Row("original", images),
        Row("shuffled", shuffled),
        *_baselines(train, test, permutation, run_configs, examples),
        *(_reconstruct(*named, shuffled, images) for named in zip(workdirs, labels, strict=True)),
    ]


def _baselines(
    train: feeds.Split,
    test: feeds.Split,
    permutation: np.ndarray,
    run_configs: Sequence[configs.Config],
    examples: int,
) -> Iterator[Row]:
    """Yields a row of the mean training image, and one of linear regression per receptive field."""
    if train.data_set.streamed:
        return
    given, wanted = train.arrays()["image"], test.arrays()["image"]
    mean = np.broadcast_to(tasks.mean_image(given), wanted.shape)
    yield _baseline("mean training image", mean, wanted, examples)
    if given[0].size > linear.MOST_NUMBERS:
        return
    fields = [
        reach.windows(c.model.depth, c.model.kernel_size, c.model.patch_size, wanted.shape[1:3])
        for c in run_configs
    ]
    apart = {(rows.tobytes(), columns.tobytes()): (rows, columns) for rows, columns in fields}
    for field in apart.values():
        share = 100 * reach.permutation_reach(permutation, field)
        restored = linear.reconstruct(given, wanted, permutation, field)
        yield _baseline(f"{LINEAR}, reach {share:.1f} %", restored, wanted, examples)


def _baseline(name: str, restored: np.ndarray, wanted: np.ndarray, examples: int) -> Row:
    psnr = tasks.psnr(restored, wanted)
    label = "\n".join([*name.split(", "), f"mean {psnr.mean():.2f} dB"])
    return Row(label, restored[:examples], psnr[:examples], name, float(psnr.mean()))


@plots.style()
def figure(rows: Sequence[Row]) -> Figure:
    """Lays out the rows, one column per image."""
    columns = len(rows[0].images)
    figure = plots.new_figure(1.6 + 0.8 * columns, 0.95 * len(rows))
    for row, axes in zip(rows, figure.subplots(len(rows), columns, squeeze=False), strict=True):
        axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=6)
        for i, (axis, image) in enumerate(zip(axes, row.images, strict=True)):
            plots.show_image(axis, image)
            if row.psnr is not None:
                axis.set_xlabel(f"{row.psnr[i]:.1f} dB", labelpad=2)
    return figure


def _read_config(workdir: epath.PathLike) -> configs.Config:
    config = runs.read_config(workdir)
    if config.task != "unshuffling":
        raise UserError(
            f"{workdir}: got a run with the task {config.task!r}, allowed are runs with the task "
            "'unshuffling'; train one with --config=configs/unshuffle.py"
        )
    return config


def _check_comparable(
    workdirs: Sequence[epath.PathLike], run_configs: Sequence[configs.Config]
) -> None:
    first, *others = (configs.flatten(config) for config in run_configs)
    for workdir, other in zip(workdirs[1:], others, strict=True):
        for key in _SHARED_KEYS:
            if other[key] != first[key]:
                raise UserError(
                    f"{workdirs[0]} and {workdir}: config.{key}: got {first[key]!r} and "
                    f"{other[key]!r}, allowed in one picture are runs that share the data set and "
                    "the permutation; draw them separately"
                )


def _labels(run_configs: Sequence[configs.Config]) -> list[str]:
    """A label for each run: what it trains, and the value of every key in which the runs differ."""
    trained = [groups.source(c.mode, c.train, c.groups)[1] for c in run_configs]
    flat = [configs.flatten(config) for config in run_configs]
    ignored = configs.DISPLAY_KEYS | {"mode", "train", "groups"}
    keys = dict.fromkeys(key for one in flat for key in one if key not in ignored)
    differing = [key for key in keys if len({repr((key in one, one.get(key))) for one in flat}) > 1]
    return [
        "\n".join(
            [
                *textwrap.wrap(name, _LABEL_WIDTH),
                *(f"{key} {one[key]}" for key in differing if key in one),
            ]
        )
        for name, one in zip(trained, flat, strict=True)
    ]


def _reconstruct(
    workdir: epath.PathLike, label: str, shuffled: np.ndarray, images: np.ndarray
) -> Row:
    run = loading.load(workdir)
    outputs = jax.jit(run.model.apply)(run.variables, shuffled)
    psnr = tasks.unshuffling_metrics(outputs, {"target": jnp.asarray(images)})["psnr"]
    if result := artifacts.read_result(epath.Path(workdir)):
        label += f"\nmean {result['metrics']['test_psnr']:.2f} dB"
    else:
        label += f"\nat step {run.step}"
    return Row(label, np.asarray(outputs), np.asarray(psnr), str(workdir))


def main(options: Any) -> None:
    """Draws runs with the options of ``commands/unshuffle.py`` and prints the files written."""
    for file in draw(options.workdirs, options.out, examples=options.examples):
        print(file)
