"""Completes and validates the arguments of a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from randmix.errors import UserError, check_choice, did_you_mean
from randmix.models.convmixer import HEADS
from randmix.models.layers import BETWEEN
from randmix.models.resnet import STAGES
from randmix.ops.depthwise import METHODS

# Attributes that aren't arguments, and those that ``models.build`` builds from other arguments.
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
            allowed = sorted({*fields, "smoothing_index", "smoothing_keep_norm"})
            raise UserError(
                f"{what}: no argument {key!r}, allowed {', '.join(allowed)}"
                f"{did_you_mean(key, allowed)}"
            )
        if key in fixed and given[key] != fixed[key]:
            raise UserError(
                f"{what}: {key}: got {given[key]!r}, allowed {fixed[key]!r}, which the name fixes; "
                "to choose another, build the model by the name of its family"
            )
    defaults = {k: f.default for k, f in fields.items() if k not in _BUILT}
    values: dict[str, Any] = {
        **{k: None if v is dataclasses.MISSING else v for k, v in defaults.items()},
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
        raise UserError(f"{what}: got {got!r}, allowed an integer of at least 1")


def _check_head(what: str, values: Mapping[str, Any]) -> None:
    if values.get("head") != "image":
        return
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


def _check_normalization(what: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if len(mean) != len(std):
        raise UserError(f"{what}: mean and std: give both, of equal length, or neither")
    if not all(number > 0 for number in std):
        raise UserError(f"{what}: std: got {std!r}, allowed numbers greater than 0")
