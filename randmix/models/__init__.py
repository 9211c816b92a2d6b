"""Build models by name: ``models.build("convmixer", width=128, depth=8, ...)``.

Every model is a Linen module, a pure function ``model.apply(variables, images, train=...)``. Its
variables hold the parameters of each role in a separate collection (see ``models.parameters``).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from randmix.errors import check_choice
from randmix.models import filters as filter_banks
from randmix.models.arguments import complete
from randmix.models.convmixer import VARIANTS as CONVMIXER_VARIANTS
from randmix.models.convmixer import ConvMixer
from randmix.models.filters import Transplant
from randmix.models.parameters import ROLES
from randmix.models.resnet import ResNet

__all__ = ["DTYPES", "MODELS", "ROLES", "ConvMixer", "ResNet", "build", "split"]

# The families, and the published models, whose names fix some of their family's arguments.
MODELS: dict[str, tuple[type[ConvMixer] | type[ResNet], Mapping[str, Any]]] = {
    "convmixer": (ConvMixer, {}),
    "resnet": (ResNet, {}),
    **{name: (ConvMixer, fixed) for name, fixed in CONVMIXER_VARIANTS.items()},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
    name: str,
    *,
    filters: str | Transplant = "random",
    filter_rank: int | None = None,
    smoothing_index: float = 0.0,
    smoothing_keep_norm: bool = True,
    dtype: str = "float32",
    **arguments: Any,
) -> nn.Module:
    """Builds a model from plain values, such as those of a config or a command line.

    Args:
        name: a key of ``MODELS``. The name of a published model such as "convmixer_768_32" fixes
            some arguments; pass the others: ``models.build("convmixer_768_32", num_classes=1000)``.
        filters: the bank that initialises the depthwise filters, a name in ``filters.NAMES`` or
            a ``filters.Transplant``.
        filter_rank: number of linearly independent filters among those of each channel, or in a
            ConvMixer, of each layer; None leaves it to the bank. See ``filters.build``.
        smoothing_index: strength of the smoothing of these filters, at least 0.
        smoothing_keep_norm: whether smoothing keeps the L2 norm of each filter.
        dtype: "float32" or "bfloat16", the dtype of the computation.
        **arguments: attributes of the model, for example ``width=128``; see `ConvMixer` and
            `ResNet`. A ConvMixer's ``smooth_stem`` is True or False here: whether its patch stem is
            smoothed like the filters.

    Returns:
        A Linen module; ``module.init(key, images)`` returns its variables.

    Raises:
        UserError: the name is unknown, an argument is missing or unknown, or a value is invalid or
            contradicts the name.
    """
    check_choice("model name", name, MODELS)
    check_choice(f"model {name}: dtype", dtype, DTYPES)
    model, fixed = MODELS[name]
    arguments = complete(name, model, fixed, arguments)
    bank = filter_banks.build(
        filters, rank=filter_rank, index=smoothing_index, keep_norm=smoothing_keep_norm
    )
    if "smooth_stem" in arguments:
        arguments["smooth_stem"] = bank.smoothing if arguments["smooth_stem"] else None
    return model(filters=bank, dtype=DTYPES[dtype], **arguments)


def split(variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a model's variables into ``(params, batch_stats)``; params holds the roles."""
    params = {role: variables[role] for role in ROLES if role in variables}
    return params, variables.get("batch_stats", {})
