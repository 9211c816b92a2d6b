"""Build models by name: ``models.build("convmixer", width=128, depth=8, ...)``.

Every model is a Linen module, a pure function ``model.apply(variables, images, train=...)``. Its
variables hold the parameters of each role in a separate collection (see ``models.parameters``).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.errors import UserError, check_choice
from randmix.models import filters as filter_banks
from randmix.models.arguments import complete
from randmix.models.convmixer import VARIANTS as CONVMIXER_VARIANTS
from randmix.models.convmixer import ConvMixer
from randmix.models.filters import Transplant
from randmix.models.metaformer import MetaFormer
from randmix.models.own import OwnModel
from randmix.models.parameters import ROLES
from randmix.models.resnet import ResNet

__all__ = [
    "DTYPES",
    "MODELS",
    "ROLES",
    "ConvMixer",
    "MetaFormer",
    "Model",
    "OwnModel",
    "ResNet",
    "build",
    "split",
    "with_averages",
]

# The families, and the published models, whose names fix some of their family's arguments.
MODELS: dict[str, tuple[type[ConvMixer | ResNet | MetaFormer], Mapping[str, Any]]] = {
    "convmixer": (ConvMixer, {}),
    "resnet": (ResNet, {}),
    "metaformer": (MetaFormer, {}),
    **{name: (ConvMixer, fixed) for name, fixed in CONVMIXER_VARIANTS.items()},
}
# What ``build`` returns, or a model of the user's own.
Model = nn.Module | OwnModel
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
        **arguments: attributes of the model, for example ``width=128``; see `ConvMixer`,
            `ResNet` and `MetaFormer`. A ConvMixer's ``smooth_stem`` is True or False here: whether
            its patch stem is smoothed like the filters.

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
    plain = filter_banks.build("random", keep_norm=smoothing_keep_norm)
    if arguments.get("mixer", "depthwise") != "depthwise" and bank != plain:
        raise UserError(
            f"model {name}: filters: got {filters!r} of rank {filter_rank} and smoothing index "
            f"{smoothing_index:g} with the mixer {arguments['mixer']!r}, which has none; allowed "
            "is 'random' without rank and smoothing, or the mixer 'depthwise'"
        )
    if "smooth_stem" in arguments:
        arguments["smooth_stem"] = bank.smoothing if arguments["smooth_stem"] else None
    return model(filters=bank, dtype=DTYPES[dtype], **arguments)


def split(variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a model's variables into ``(params, batch_stats)``; params holds the roles."""
    # Transformations of JAX sort the keys; a model of the user's own may have other roles.
    others = sorted(variables.keys() - {*ROLES, "batch_stats"})
    params = {role: variables[role] for role in (*ROLES, *others) if role in variables}
    return params, variables.get("batch_stats", {})


def with_averages(variables: dict[str, Any], averages: dict[str, Any]) -> dict[str, Any]:
    """Returns variables with averages of them in their place, where those aren't None."""
    return jax.tree.map(
        lambda average, own: own if average is None else average,
        averages,
        variables,
        is_leaf=lambda node: node is None,
    )
