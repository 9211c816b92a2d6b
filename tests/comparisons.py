"""Records of finished runs that nobody trained, with chosen settings and metrics."""

import json

import numpy as np

from randmix import config as configs
from randmix.experiments import records

DEVICE = {"kind": "cpu", "platform": "cpu", "count": 1}


def record(metrics, log=(), *, model="convmixer", seconds=2.0, ensemble=None, **settings):
    """A run's record; settings write dots as double underscores."""
    config = configs.default(model)
    config.user = settings.pop("user", {})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
    result = {
        "mode": config.mode,
        "metrics": metrics,
        "parameters": {"trainable": 10 * config.model.depth, "frozen": 5},
        "step": 4,
        "seed": config.seed,
        "wall_seconds": seconds,
        "commit": "abc",
        "versions": {"jax": "1"},
        "device": DEVICE,
    }
    if ensemble:
        result["ensemble"] = ensemble
    return records.Record(json.loads(configs.to_json(config)), result, None, [*log], {})


def accuracies(values, **settings):
    """Records with test accuracies, one for each seed from 0."""
    return [record({"test_accuracy": v}, seed=seed, **settings) for seed, v in enumerate(values)]


_RNG = np.random.default_rng(0)
ACCURACIES = {
    (mode, depth): _RNG.uniform(0.2, 0.9, 3)
    for depth in (10, 2)
    for mode in ("space", "chans", "full")
}
"""Accuracies of three seeds by mode and depth."""

GRID = [
    each
    for (mode, depth), seeds in ACCURACIES.items()
    for each in accuracies(seeds, mode=mode, model__depth=depth)
]
"""The records of these runs."""
