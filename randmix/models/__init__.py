"""Models by name: ``models.build("convmixer", width=128, depth=8, ...)``.

Every model is a Linen module, a pure function ``model.apply(variables, images, train=...)`` of variables
that hold each role's parameters in a collection of their own (see ``models.parameters``).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from randmix import filters as filter_banks
from randmix.errors import check_choice
from randmix.models.arguments import complete
from randmix.models.convmixer import VARIANTS as CONVMIXER_VARIANTS
from randmix.models.convmixer import ConvMixer
from randmix.models.parameters import ROLES
from randmix.models.resnet import ResNet

__all__ = ["DTYPES", "MODELS", "ROLES", "ConvMixer", "ResNet", "build", "split"]

# The families, and the published models, whose names fix some of their family's arguments.
MODELS = {"convmixer": (ConvMixer, {}), "resnet": (ResNet, {})} | {
    name: (ConvMixer, fixed) for name, fixed in CONVMIXER_VARIANTS.items()
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
    name: str,
    *,
    filters: str = "random",
    smoothing_index: float = 0.0,
    smoothing_keep_norm: bool = True,
    dtype: str = "float32",
    **arguments: Any,
) -> nn.Module:
    """Builds a model from plain values, as a config or a command line gives them.

    Args:
        name: a key of ``MODELS``. A published model such as "convmixer_768_32" takes only what its name leaves
            open: ``models.build("convmixer_768_32", num_classes=1000)``.
        filters: the bank that the depthwise filters start from; see ``randmix.filters``.
        smoothing_index: how strongly the bank "smoothed" smooths, from 0.
        smoothing_keep_norm: whether smoothing keeps each filter's L2 norm.
        dtype: "float32" or "bfloat16", the arithmetic's type.
        **arguments: the model's own attributes, for example ``width=128``; see `ConvMixer` and `ResNet`.

    Returns:
        A Linen module; ``module.init(key, images)`` gives its variables.

    Raises:
        UserError: an unknown name, a missing or unknown argument, a value that no model could have, or one
            that contradicts the name.
    """
    check_choice("model name", name, MODELS)
    check_choice(f"model {name}: dtype", dtype, DTYPES)
    model, fixed = MODELS[name]
    arguments = complete(name, model, fixed, arguments)
    bank = filter_banks.build(filters, index=smoothing_index, keep_norm=smoothing_keep_norm)
    return model(filters=bank, dtype=DTYPES[dtype], **arguments)


def split(variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts a model's variables into ``(params, batch_stats)``; params holds the roles."""
    params = {role: variables[role] for role in ROLES if role in variables}
    return params, variables.get("batch_stats", {})
