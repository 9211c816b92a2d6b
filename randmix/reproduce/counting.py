"""E11: parameter counts of the preset's models in each mode, compared with equations 1 to 3."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
from flax.traverse_util import flatten_dict

from randmix.config import Config
from randmix.models import counts, split
from randmix.reproduce.numbers import Number, Numbers
from randmix.reproduce.plan import make_config
from randmix.reproduce.presets import Preset, Settings
from randmix.reproduce.titles import MODES
from randmix.training import runs

_KERNEL_SIZES = (3, 5, 7, 9)


def rows(
    preset: Preset, overrides: Settings, known: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each model of E2 and E5, and for the first of each at several kernel sizes.

    Args:
        preset: the models' preset.
        overrides: config keys that replace the preset's values; only those of the model are used.
        known: ``image_shape`` and ``num_classes`` of data sets by name; others are looked up.

    Returns:
        Rows with ``model``, ``data``, ``width``, ``depth`` and ``kernel_size``; the trainable
        parameters in each mode, ``full`` and so on; ``standard``, those of the same
        network with dense convolutions, or None where it has no separable ones; and ``differs``,
        whether a count deviates from the equations or from the ConvMixer's closed form.
    """
    found = []
    for settings in _models(preset):
        own = {k: v for k, v in overrides.items() if k.startswith("model.")}
        config = make_config({**settings, **own})
        image_shape, num_classes = _data(config, known)
        model = runs.build_model(config, num_classes, image_shape=image_shape)
        params, _ = split(counts.abstract_variables(model, image_shape))
        trainable = counts.trainable(counts.parameters(model, image_shape))
        separable = [*_separable(params)]
        dense = sum(
            counts.standard(k, c, out) - counts.separable(k, c, out, m)
            for k, c, out, m in separable
        )
        found.append(
            {
                "model": config.model.name,
                "data": config.data.name,
                "width": config.model.width,
                "depth": config.model.depth,
                "kernel_size": config.model.kernel_size,
                **trainable,
                "standard": trainable["full"] + dense if separable else None,
                "differs": trainable
                != counts.trainable(
                    _closed_form(config.model, params, image_shape[-1], num_classes)
                ),
            }
        )
    return found


def _data(
    config: Config, known: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[int, int, int], int]:
    """The image shape and the number of classes of a config's data set."""
    if (found := known.get(config.data.name)) is not None:
        return tuple(found["image_shape"]), found["num_classes"]
    dataset = runs.find_dataset(config)
    return dataset.image_shape, dataset.num_classes


def _models(preset: Preset) -> Iterator[Settings]:
    seen = []
    for experiment in ("E2", "E5"):
        models = [run for run in preset.runs.get(experiment, ()) if run["mode"] == "chans"]
        sizes = [{**run, "model.kernel_size": k} for run in models[:1] for k in _KERNEL_SIZES]
        for run in (*models, *sizes):
            shape = {
                key: value for key, value in run.items() if key.startswith(("model.", "data.name"))
            }
            config = make_config(shape)
            if (key := (config.model.to_dict(), config.data.name)) not in seen:
                seen.append(key)
                yield shape


def _separable(params: Mapping[str, Any]) -> Iterator[tuple[int, int, int, int]]:
    """(k, C_in, C_out, m) of each depthwise kernel [k, k, C_in, m] and its pointwise kernel."""
    channel = _leaves(params["channel"])
    for path, kernel in _leaves(params["spatial"]).items():
        if path.endswith("depthwise/kernel") and len(kernel.shape) == 4:
            k, _, c, m = kernel.shape
            pointwise = channel[path.replace("depthwise/kernel", "pointwise/kernel")]
            yield k, c, pointwise.shape[-1], m


def _leaves(params: Mapping[str, Any]) -> dict[str, Any]:
    # Flax's hint for the result lists only its nodes: FrozenDict, dict and the empty node.
    return cast(dict[str, Any], flatten_dict(params, sep="/"))


def _closed_form(
    settings: Mapping[str, Any], params: Mapping[str, Any], channels: int, num_classes: int
) -> dict[str, int]:
    """Parameters by role: from the equations; those of norms, shortcuts and heads by shape."""
    if settings["name"] == "convmixer":
        keys = ("width", "depth", "kernel_size", "patch_size")
        return counts.convmixer(
            **{key: settings[key] for key in keys},
            channels=channels,
            num_classes=num_classes,
        )
    separable = [*_separable(params)]
    shortcuts = [
        math.prod(x.shape) for path, x in _leaves(params["channel"]).items() if "shortcut" in path
    ]
    chans = sum(counts.chans(c, out, m) for _, c, out, m in separable)
    spatial = sum(counts.separable(*layer) for layer in separable) - chans
    others = {
        role: sum(math.prod(x.shape) for x in jax.tree.leaves(params[role]))
        for role in ("norm", "head")
    }
    return {"spatial": spatial, "channel": chans + sum(shortcuts), **others}


def numbers(rows: Sequence[Mapping[str, Any]], file: str) -> Numbers:
    """Numbers of the counts in each mode, and of the two metrics by which claim 8 is judged."""
    found = Numbers()
    chans: dict[tuple, set[int]] = {}
    for row in rows:
        model = {"model.name": row["model"], "data.name": row["data"]}
        model |= {f"model.{key}": row[key] for key in ("width", "depth")}
        settings = {**model, "model.kernel_size": row["kernel_size"]}
        chans.setdefault(tuple(model.items()), set()).add(row["chans"])
        found += (Number("E11", mode, settings, 0, "trainable", row[mode], file) for mode in MODES)
        differs = float(row["differs"])
        found.append(Number("E11", "", settings, 0, "differs_from_equations", differs, file))
    for model, by_kernel_size in chans.items():
        changes = float(len(by_kernel_size) > 1)
        found.append(Number("E11", "", dict(model), 0, "depends_on_kernel_size", changes, file))
    return found
