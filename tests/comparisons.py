"""Records of finished runs that nobody trained, with chosen settings and metrics."""

import json

from randmix import config as configs
from randmix.experiments import records

DEVICE = {"kind": "cpu", "platform": "cpu", "count": 1}


def record(metrics, log=(), *, model="convmixer", seconds=2.0, ensemble=None, **settings):
    """A run's record; settings write dots as double underscores."""
    config = configs.default(model)
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
