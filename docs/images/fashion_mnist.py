"""Draws the README's picture from runs in three modes, here of three seeds.

    for mode in full chans space; do for seed in 0 1 2; do
      python -m randmix.main --config=configs/convmixer_mnist.py:fashion_mnist --config.mode=$mode \
          --config.seed=$seed --workdir=runs/fashion-$mode-$seed
    done; done
    python docs/images/fashion_mnist.py runs
"""

import json
import sys
from pathlib import Path

import numpy as np

import randmix
from randmix.analysis import plots

STEPS_PER_EPOCH = 60_000 // 128
LABELS = {
    "full": "full: all learned",
    "chans": "chans: spatial filters random",
    "space": "space: channel mixing random",
}


def accuracies(runs: Path, mode: str) -> tuple[list[float], np.ndarray]:
    """Epochs [E], and test accuracy in percent [seeds, E]."""
    rows = []
    for file in sorted(runs.glob(f"fashion-{mode}-*/metrics.jsonl")):
        log = map(json.loads, file.read_text().splitlines())
        rows.append([line for line in log if "test_accuracy" in line])
    epochs = [line["step"] / STEPS_PER_EPOCH for line in rows[0]]
    return epochs, 100 * np.array([[line["test_accuracy"] for line in row] for row in rows])


@plots.style()
def figure(runs: Path):
    """Accuracy by epoch on the left, filters of the second block on the right."""
    figure = plots.new_figure(7, 2.6)
    left, *right = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
    for i, (mode, label) in enumerate(LABELS.items()):
        epochs, values = accuracies(runs, mode)
        plots.mean_and_spread(left, epochs, values, label=label, **plots.series(i))
        final = f"{values[:, -1].mean():.1f}"
        left.annotate(
            final, (epochs[-1], values[:, -1].mean()), (6, -3), textcoords="offset points"
        )
    left.set(xlabel="epoch", ylabel="test accuracy (%)", title="Fashion-MNIST", xticks=epochs)
    left.legend(loc="lower right")
    for axes, mode, title in zip(right, ("full", "chans"), ("learned", "random"), strict=True):
        spatial = randmix.load(runs / f"fashion-{mode}-0").variables["spatial"]
        kernel = np.asarray(spatial["block_01"]["depthwise"]["kernel"])[..., :16]
        filters = np.moveaxis(kernel, -1, 0).reshape(4, 4, *kernel.shape[:2])
        limit = np.abs(kernel).max()
        axes.imshow(plots.tile(filters), cmap=plots.SIGNED_MAP, vmin=-limit, vmax=limit)
        axes.set(title=f"{title} filters", xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    plots.save(figure(Path(sys.argv[1])), Path(__file__).with_suffix(""))
