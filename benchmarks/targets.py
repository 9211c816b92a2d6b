"""The targets for a GPU, and whether the results of `benchmarks/gpu.py` meet them."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path


def summary(out: Path) -> list[dict[str, object]]:
    """The targets and what was measured, from the files of the results."""
    return [
        *(_step(out, precision) for precision in ("bfloat16", "float32")),
        _depthwise(out),
        _row(
            "eight seeds together / one: at most 3",
            [row["together / one"] for row in rows(out, "ensemble")],
            3,
        ),
        _row(
            "augmentation / step: below 0.1", [row["share"] for row in rows(out, "augment")], 0.0999
        ),
        _row(
            "resumed and undisturbed run differ: 0",
            [int(not row["equal"]) for row in rows(out, "resume")],
            0,
        ),
        _feed(out),
    ]


def rows(out: Path, pattern: str) -> list[dict]:
    """The rows of all results whose names fit."""
    files = sorted(out.glob(f"{pattern}.json"))
    return [row for file in files for row in json.loads(file.read_text()).get("rows", ())]


def _row(target: str, found: Sequence[float], most: float) -> dict[str, object]:
    """A target that no figure may exceed."""
    if not found:
        return {"target": target, "measured": "nothing", "met": ""}
    low, high = min(found), max(found)
    return {
        "target": target,
        "measured": f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}",
        "met": "yes" if all(figure <= most for figure in found) else "no",
    }


def _step(out: Path, precision: str) -> dict[str, object]:
    """Of PyTorch compiled or not, whichever was faster; medians of the rounds' ratios."""
    ratios = [
        row["vs torch"] for row in rows(out, f"step_{precision}_*") if "torch.compile ms" in row
    ]
    return _row(f"step / PyTorch's faster, {precision}: at most 0.6", ratios, 0.6)


def _depthwise(out: Path) -> dict[str, object]:
    """Forward and both gradients by our best method, as a ratio to the best of the others."""
    times = {"ours": {}, "theirs": {}}
    for row in rows(out, "depthwise*"):
        if row["part"] == "all" and row["ms"] is not None and not row["wrong"]:
            whose = times["ours" if row["method"] in ("shift_sum", "pallas") else "theirs"]
            whose[row["shape"]] = min(row["ms"], whose.get(row["shape"], math.inf))
    both = times["ours"].keys() & times["theirs"].keys()
    ratios = [times["ours"][shape] / times["theirs"][shape] for shape in both]
    return _row("depthwise / the best of cuDNN and PyTorch: at most 0.5", ratios, 0.5)


def _feed(out: Path) -> dict[str, object]:
    """The cores that decode for the fastest step at 224 x 224, which must be here."""
    steps = [row["batch"] / row["ours ms"] * 1e3 for row in rows(out, "step_*_convmixer_512_8")]
    file = out / "input.json"
    rate = json.loads(file.read_text())["images_per_second_a_core"] if file.exists() else {}
    cores = len(os.sched_getaffinity(0))
    found = [max(steps) / rate["stream, 2 threads"]] if steps and rate else []
    return _row(f"cores to feed ConvMixer-512/8: at most {cores}, all here", found, cores)
