"""The arguments of a model as a user gives them: named, complete and possible, or one line that says why not."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from randmix.errors import UserError, check_choice, did_you_mean
from randmix.models.convmixer import HEADS
from randmix.models.layers import BETWEEN, METHODS
from randmix.models.resnet import STAGES

# Attributes that a user doesn't give, or gives to ``models.build`` by another name or type.
_NOT_GIVEN = ("name", "parent")
_BUILT = ("filters", "dtype")

_CHOICES = {
    "activation": ("gelu", "relu"),
    "head": HEADS,
    "between": BETWEEN,
    "depthwise_method": METHODS,
    "stem": tuple(STAGES),
}
_COUNTS = ("width", "depth", "kernel_size", "patch_size", "multiplier", "num_classes")


def complete(
    name: str, model: type[nn.Module], fixed: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Every attribute of a model but ``filters`` and ``dtype``: given, fixed by the name, or its default.

    Args:
        name: the model's name, for the messages.
        model: its class.
        fixed: what the name fixes; a given value must be the same.
        given: what the user gave.

    Raises:
        UserError: see ``models.build``.
    """
    what = f"model {name}"
    fields = {f.name: f for f in dataclasses.fields(model) if f.name not in _NOT_GIVEN}
    for key in given:
        if key not in fields:
            allowed = sorted({*fields, "smoothing_index", "smoothing_keep_norm"})
            raise UserError(
                f"{what}: no argument {key!r}, allowed {', '.join(allowed)}{did_you_mean(key, allowed)}"
            )
        if key in fixed and given[key] != fixed[key]:
            raise UserError(
                f"{what}: {key}: got {given[key]!r}, allowed {fixed[key]!r} as the name says; "
                "build the family by its own name to choose"
            )
    defaults = {k: f.default for k, f in fields.items() if k not in _BUILT}
    values = {k: None if v is dataclasses.MISSING else v for k, v in defaults.items()} | {
        **fixed,
        **given,
    }
    _check_head(what, values)
    for key, value in values.items():
        if key in _CHOICES:
            check_choice(f"{what}: {key}", value, _CHOICES[key])
        elif key in _COUNTS and not (key == "num_classes" and values.get("head") == "image"):
            _check_count(f"{what}: {key}", value)
    _check_normalization(what, values["mean"], values["std"])
    return values


def _check_count(what: str, got: Any) -> None:
    if isinstance(got, bool) or not isinstance(got, int) or got < 1:
        raise UserError(f"{what}: got {got!r}, allowed a whole number from 1")


def _check_head(what: str, values: Mapping[str, Any]) -> None:
    if values.get("head") != "image":
        return
    if values["num_classes"] is not None:
        raise UserError(
            f"{what}: num_classes: got {values['num_classes']!r}, allowed None with head 'image', "
            "which has as many channels as the images"
        )
    if values["patch_size"] != 1:
        raise UserError(
            f"{what}: patch_size: got {values['patch_size']!r}, allowed 1 with head 'image', "
            "which maps pixel to pixel"
        )


def _check_normalization(what: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if len(mean) != len(std):
        raise UserError(f"{what}: mean and std: give both, of one length, or neither")
    if not all(number > 0 for number in std):
        raise UserError(f"{what}: std: got {std!r}, allowed numbers more than 0")
