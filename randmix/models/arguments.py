"""Completes and validates the arguments of a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from randmix import ranges
from randmix.errors import UserError, check_choice, did_you_mean
from randmix.models.convmixer import HEADS
from randmix.models.layers import BETWEEN
from randmix.models.metaformer import MIXERS, NORMS, SHARES
from randmix.models.mixers import ATTENTION_ROLES
from randmix.models.resnet import STAGES
from randmix.ops.depthwise import METHODS

# Attributes that aren't arguments, and those that ``models.build`` builds from other arguments.
_NOT_GIVEN = ("name", "parent")
_BUILT = ("filters", "dtype")
# Arguments of ``models.build`` that go into ``filters``.
_OF_FILTERS = ("filter_rank", "smoothing_index", "smoothing_keep_norm")

_CHOICES = {
    "activation": ("gelu", "relu"),
    "head": HEADS,
    "between": BETWEEN,
    "depthwise_method": METHODS,
    "stem": tuple(STAGES),
    "mixer": MIXERS,
    "norm": NORMS,
    "attention_roles": ATTENTION_ROLES,
}
_CLASSES = ranges.integers(1, ranges.INT32)


def complete(
    name: str, model: type[nn.Module], fixed: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns all attributes of a model except ``filters`` and ``dtype``.

    Each value is the given one, the one that the name fixes, or the default.

    Args:
        name: the model's name, for error messages.
        model: its class.
        fixed: the values that the name fixes; a given value must be equal.
        given: the values that the user gave.

    Raises:
        UserError: as in ``models.build``.
    """
    what = f"model {name}"
    fields = {f.name: f for f in dataclasses.fields(model) if f.name not in _NOT_GIVEN}
    for key in given:
        if key not in fields:
            allowed = sorted({*fields, *_OF_FILTERS})
            raise UserError(
                f"{what}: no argument {key!r}, allowed {', '.join(allowed)}"
                f"{did_you_mean(key, allowed)}"
            )
        if key in fixed and given[key] != fixed[key]:
            raise UserError(
                f"{what}: {key}: got {given[key]!r}, allowed {fixed[key]!r}, which the name fixes; "
                "to choose another, build the model by the name of its family"
            )
    values: dict[str, Any] = {
        key: None if field.default is dataclasses.MISSING else field.default
        for key, field in fields.items()
        if key not in _BUILT
    }
    values |= {**fixed, **given}
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    allowed = {**ranges.MODEL, "num_classes": _CLASSES}
    if values.get("head") == "image":
        del allowed["num_classes"]
        _check_image_head(what, values)
    for key, value in values.items():
        if key in _CHOICES:
            check_choice(f"{what}: {key}", value, _CHOICES[key])
        elif key in allowed:
            ranges.check(f"{what}: {key}", value, allowed[key])
    if not isinstance(values["remat"], bool):
        raise UserError(f"{what}: remat: got {values['remat']!r}, allowed True or False")
    if values["scan"] and not isinstance(values["scan"], tuple):
        raise UserError(
            f"{what}: scan: got {values['scan']!r}, allowed False, or runs of equal blocks from "
            "randmix.models.stack.equal_runs; only a config has True"
        )
    if "mixer" in values:
        _check_stages(what, values)
    if len(values["mean"]) != len(values["std"]):
        raise UserError(f"{what}: mean and std: give both, of equal length, or neither")
    return values


def _check_image_head(what: str, values: Mapping[str, Any]) -> None:
    if values["num_classes"] is not None:
        raise UserError(
            f"{what}: num_classes: got {values['num_classes']!r}, allowed None with head 'image', "
            "which returns as many channels as the images have"
        )
    if values["patch_size"] != 1:
        raise UserError(
            f"{what}: patch_size: got {values['patch_size']!r}, allowed 1 with head 'image', "
            "which maps pixel to pixel"
        )


def _check_stages(what: str, values: Mapping[str, Any]) -> None:
    """Checks what a MetaFormer's sizes must divide."""
    stages, depth, head_dim = (values[key] for key in ("stages", "depth", "head_dim"))
    if len(stages) not in SHARES:
        raise UserError(f"{what}: stages: got {stages!r}, allowed one number, or four")
    if len(stages) > 1 and depth % 6:
        raise UserError(
            f"{what}: depth: got {depth}, allowed with four stages are the multiples of 6: they "
            "have 1/6, 1/6, 1/2 and 1/6 of the blocks"
        )
    for width in (values["width"] * multiple for multiple in stages):
        if values["mixer"] == "attention" and width % head_dim:
            raise UserError(
                f"{what}: head_dim: got {head_dim}, which doesn't divide the width {width}; "
                "allowed is a divisor of the width of each stage"
            )
