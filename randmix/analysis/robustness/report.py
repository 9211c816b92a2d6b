"""Files of a measurement under attack: a table, a figure, bits, and the sanity checks."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from matplotlib.figure import Figure

from randmix.analysis import plots
from randmix.analysis.robustness import bits, sanity
from randmix.analysis.robustness.curves import Curves
from randmix.errors import writing
from randmix.runtime import durable, progress
from randmix.workdir import artifacts

_NAME = "attacks"
# In the order of ``plots.series``, so that an attack looks the same in every figure.
_TITLES = {
    "strong": "strong",
    "fgsm": "FGSM",
    "pgd2": "PGD-2",
    "pgd": "PGD",
    "noise": "random noise",
    "square": "Square (black box)",
    "targeted": "targeted",
}


def write(curves: Curves, folder: epath.PathLike, about: Mapping[str, Any]) -> list[epath.Path]:
    """Writes attacks.csv, .png, .svg, .npz and .json, and returns the files.

    The .npz has the outcome for each image, see ``bits.load``.

    Args:
        curves: the measured accuracies.
        folder: folder to write to; created if missing.
        about: the run and examples attacked, for the figure's title and the JSON file; at least
            "data" and "examples".

    Raises:
        UserError: the folder can't be written.
    """
    path = epath.Path(folder) / _NAME
    title = "\n".join([f"{about['data']}: {about['examples']} examples", *_on_fewer(curves)])
    files = plots.save(figure(curves, title), path, rows(curves))
    document = {
        **about,
        "settings": dataclasses.asdict(curves.settings),
        "clean_accuracy": curves.clean,
        "attacked_examples": {name: rows.shape[1] for name, rows in curves.correct.items()},
        "checks": [check._asdict() for check in sanity.checks(curves)],
        **artifacts.provenance(jax.devices()),
    }
    bits_file, json_file = (path.parent / f"{_NAME}.{suffix}" for suffix in ("npz", "json"))
    bits.write(bits_file, curves)
    durable.write(json_file, json.dumps(document, indent=2) + "\n")
    return [*files, bits_file, json_file]


def _on_fewer(curves: Curves) -> list[str]:
    """A line on the attacks that were measured on fewer examples, if there are any."""
    fewer = {
        name: n for name, rows in curves.correct.items() if (n := rows.shape[1]) < curves.examples
    }
    return [f"{', '.join(fewer)}: the first {min(fewer.values()):,}"] if fewer else []


def require_writable(folder: epath.PathLike) -> None:
    """Creates the folder; raises a UserError if it can't be written."""
    trial = epath.Path(folder) / f"{_NAME}.tmp"
    with writing(folder, "give an --out that you may write to"):
        trial.parent.mkdir(parents=True, exist_ok=True)
        trial.write_text("")
        trial.unlink()


def rows(curves: Curves) -> list[dict[str, Any]]:
    """Table rows: attack, epsilon (in 1/255), accuracy (in [0, 1]) and number of examples."""
    return [
        {
            "attack": attack,
            "epsilon": epsilon,
            "accuracy": accuracy,
            "examples": curves.correct[attack].shape[1],
        }
        for attack in curves.settings.attacks
        for epsilon, accuracy in zip(curves.settings.epsilons, curves.accuracy(attack), strict=True)
    ]


def text(curves: Curves) -> str:
    """Accuracies as text, one row per epsilon and one column per attack, and the sanity checks."""
    names = curves.settings.attacks
    accuracies = zip(*(curves.accuracy(name) for name in names), strict=True)
    table = progress.table(
        [
            {"epsilon": f"{epsilon:g}/255"}
            | {name: f"{value:.4f}" for name, value in zip(names, row, strict=True)}
            for epsilon, row in zip(curves.settings.epsilons, accuracies, strict=True)
        ]
    )
    return "\n".join([table, *_on_fewer(curves), *map(str, sanity.checks(curves))])


@plots.style()
def figure(curves: Curves, title: str) -> Figure:
    """Accuracy against epsilon, one line per attack.

    The axis of epsilon is linear up to the smallest positive epsilon, then logarithmic.
    """
    drawing = plots.new_figure(4.2, 3)
    axes = drawing.subplots()
    epsilons = curves.settings.epsilons
    for i, (attack, label) in enumerate(_TITLES.items()):
        if attack in curves.correct:
            axes.plot(epsilons, 100 * curves.accuracy(attack), label=label, **plots.series(i))
    if positive := [epsilon for epsilon in epsilons if epsilon]:
        axes.set_xscale("symlog", base=2, linthresh=positive[0])
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.minorticks_off()
    ball = {"linf": "", "l2": ", L2 norm"}[curves.settings.norm]
    axes.set(xlabel=f"epsilon (1/255{ball})", ylabel="accuracy (%)", ylim=(-3, 103), title=title)
    axes.legend()
    return drawing
