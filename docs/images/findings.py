"""Draws the README's picture from the records in results/fashion_mnist.

python docs/images/findings.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from randmix import models
from randmix.analysis import plots
from randmix.experiments import records

RESULTS = Path(__file__).parents[2] / "results" / "fashion_mnist" / records.COMPRESSED
LABELS = {
    "full": "Full: all learned",
    "chans": "Chans: spatial mixing random",
    "space": "Space: channel mixing random",
    "floor": "Floor: both random",
}
ATTACKS = {"fgsm": "one step", "strong": "strong"}
MODEL = {"model.name": "convmixer", "model.depth": 4, "task": "classification"}


def by_mode() -> dict[str, list[records.Record]]:
    """The ConvMixers trained on all training images, by mode."""
    wanted = {**MODEL, "data.validation": 0.0, "data.name": "fashion_mnist"}
    found: dict[str, list[records.Record]] = {mode: [] for mode in LABELS}
    for record in records.read(RESULTS).values():
        settings = record.settings
        if all(settings.get(key) == value for key, value in wanted.items()):
            found[settings["mode"]].append(record)
    return found


def ladder(axes, runs):
    """Test accuracy of each mode: a mark for each seed, and the mean in numbers."""
    low, high = (np.mean([accuracy(run) for run in runs[mode]]) for mode in ("floor", "full"))
    for i, (mode, label) in enumerate(LABELS.items()):
        values = [accuracy(run) for run in runs[mode]]
        mean = np.mean(values)
        axes.plot(values, [i] * len(values), **{**plots.series(i), "linestyle": ""}, alpha=0.5)
        way = f"   {100 * (mean - low) / (high - low):.0f} % of the way"
        words = f"{mean:.1f} %" + (way if mode in ("chans", "space") else "")
        axes.annotate(label, (mean, i), (0, 9), textcoords="offset points", ha="center", size=6.5)
        axes.annotate(words, (mean, i), (0, -14), textcoords="offset points", ha="center", size=6.5)
    axes.set(xlabel="test accuracy (%), five seeds", ylim=(3.6, -0.6), xlim=(low - 2.5, high + 2.5))
    axes.set_yticks([])


def accuracy(run):
    """Test accuracy in per cent."""
    return 100 * run.result["metrics"]["test_accuracy"]


def robustness(axes, runs):
    """Accuracy under FGSM and under the strong attack by their size."""
    for i, mode in enumerate(("full", "chans")):
        for attack, line in (("fgsm", "-"), ("strong", ":")):
            curves = []
            for run in runs[mode]:
                (name,) = (name for name in run.measurements if name.startswith("attacks-"))
                rows = [r for r in run.measurements[name]["rows"] if r["attack"] == attack]
                curves.append([(row["epsilon"], row["accuracy"]) for row in rows])
            points = np.asarray([[point for point in curve if point[0]] for curve in curves])
            look = {**plots.series(i), "linestyle": line, "markersize": 3}
            label = f"{LABELS[mode].partition(':')[0]}, {ATTACKS[attack]}"
            plots.mean_and_spread(axes, points[0, :, 0], 100 * points[..., 1], label=label, **look)
    axes.set(xlabel="size of the attack (1/255)", ylabel="accuracy under attack (%)", xscale="log")
    axes.set(xlim=(0.45, 33))
    axes.set_xticks([0.5, 1, 2, 4, 8, 16, 32], labels=["½", "1", "2", "4", "8", "16", "32"])
    axes.minorticks_off()
    axes.legend(fontsize=6.5, loc="lower left")


def filters(axes, kernel, title):
    """16 filters, on one scale."""
    shown = np.moveaxis(np.asarray(kernel)[..., :16], -1, 0).reshape(4, 4, *kernel.shape[:2])
    limit = np.abs(shown).max()
    axes.imshow(plots.tile(shown), cmap=plots.SIGNED_MAP, vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=8)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


@plots.style()
def figure():
    """Accuracy, robustness, and learned and random filters of the second block."""
    runs = by_mode()
    figure = plots.new_figure(8, 2.6)
    left, middle, *right = figure.subplots(1, 4, width_ratios=(2.2, 2, 1, 1))
    ladder(left, runs)
    robustness(middle, runs)
    full = next(run for run in runs["full"] if run.settings["seed"] == 0)
    (name,) = (name for name in full.measurements if name.startswith("layers-"))
    filters(right[0], full.arrays(name)["block_01"], "learned filters")
    keys = ("width", "depth", "kernel_size", "patch_size")
    sizes = {key: full.settings[f"model.{key}"] for key in keys}
    model = models.build("convmixer", num_classes=10, **sizes)
    spatial = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["spatial"]
    filters(right[1], spatial["block_01"]["depthwise"]["kernel"], "random filters")
    return figure


if __name__ == "__main__":
    plots.save(figure(), Path(__file__).with_suffix(""))
