"""What a report lists for other programs: verdicts.json and results.csv."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from randmix.analysis import plots
from randmix.reproduce import claims
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.verdicts import Judgement

_COLUMNS = ("experiment", "claim", "mode", "size", "seed", "metric", "value", "run")
# What a number depends on beside its run.
_PLACES = ("epsilon", "layer", "filters", "index", "epoch", "step", "check")
_SIZES = (
    *("model.name", "model.mixer", "model.width", "model.depth", "model.kernel_size"),
    *("model.multiplier", "model.filters", "model.filter_rank", "total_steps"),
)


def of_verdicts(judged: Sequence[Judgement]) -> str:
    """The content of verdicts.json; numbers that aren't finite are null."""
    rows = [
        {
            "claim": one.claim.id,
            "data": one.data,
            "text": one.claim.text,
            "source": one.claim.source,
            "primary": one.claim.primary,
            "verdict": one.verdict,
            "reason": one.reason,
            "p": _finite(one.p),
            "rule": one.claim.rule,
            "gates": [gate._asdict() for gate in one.gates],
            "effects": [_finite(dataclasses.asdict(result)) for result in one.results],
        }
        for one in judged
    ]
    return json.dumps(rows, indent=2) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_numbers(numbers: Numbers) -> str:
    """The content of results.csv: a line for each number, with the run that it comes from."""
    rows = [
        {
            "experiment": number.experiment,
            "claim": " ".join(claim.id for claim in claims.of(number.experiment)),
            "mode": number.mode,
            "size": _size(number.settings),
            "seed": number.seed,
            "metric": number.metric,
            "value": number.value,
            "run": number.run,
        }
        for number in numbers
    ]
    return plots.csv_text(rows, _COLUMNS)


def _size(settings: Mapping[str, Any]) -> str:
    """All settings but mode and seed that distinguish a number, as "key=value" joined by spaces."""
    shown = [("data", settings.get("data.name"))]
    shown += [(key.rpartition(".")[2], settings.get(key)) for key in _SIZES]
    shown += [(key, settings.get(key)) for key in _PLACES]
    if settings.get("model.smoothing_index"):
        shown.append(("smoothing_index", settings["model.smoothing_index"]))
    if settings.get("defense.epsilon"):
        shown.append(("defended", settings["defense.epsilon"]))
    if settings.get("data.validation"):
        shown.append(("held_out", settings["data.validation"]))
    if 0 < settings.get("share", 0) < 1:
        shown.append(("share", settings["share"]))
    return " ".join(f"{key}={value}" for key, value in shown if value is not None)
