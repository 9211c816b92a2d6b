"""Parameter and multiply-add counts of a model, and the closed forms that they follow.

Equations 1 to 3 of the paper count the parameters of one convolution: `standard`, `separable` and
`chans`, the part that a channels-only model trains. The third doesn't depend on the kernel size;
for m = k^2 it equals the first.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from randmix.models import layers
from randmix.models.parameters import ROLES

_MIXING = (layers.PatchStem, layers.Depthwise, layers.Pointwise, layers.Separable, layers.Head)


def standard(kernel_size: int, in_channels: int, out_channels: int) -> int:
    """Parameters of a dense convolution, equation 1.

    >>> standard(3, 16, 32)
    4608
    """
    return kernel_size**2 * in_channels * out_channels


def separable(kernel_size: int, in_channels: int, out_channels: int, multiplier: int) -> int:
    """Parameters of a separable convolution, equation 2.

    >>> separable(3, 16, 32, 9)
    5904
    """
    return multiplier * kernel_size**2 * in_channels + chans(in_channels, out_channels, multiplier)


def chans(in_channels: int, out_channels: int, multiplier: int) -> int:
    """Trainable parameters of a separable convolution with a frozen spatial half, equation 3.

    >>> chans(16, 32, 9)
    4608
    """
    return multiplier * in_channels * out_channels


def convmixer(
    *, width: int, depth: int, kernel_size: int, patch_size: int, channels: int, num_classes: int
) -> dict[str, int]:
    """Parameters of a ConvMixer with a classifier by role; biases count with their kernels.

    >>> sizes = {"width": 768, "depth": 32, "kernel_size": 7, "patch_size": 7}
    >>> sum(convmixer(**sizes, channels=3, num_classes=1000).values())
    21110248
    """
    stem = (patch_size**2 * channels + 1) * width
    return {
        "spatial": stem + depth * (kernel_size**2 + 1) * width,
        "channel": depth * (width + 1) * width,
        "norm": (1 + 2 * depth) * 2 * width,
        "head": (width + 1) * num_classes,
    }


def trainable(by_role: Mapping[str, int]) -> dict[str, int]:
    """Trainable parameters by mode; Chans freezes the role "spatial", Space "channel", Floor both.

    >>> trainable({"spatial": 4, "channel": 3, "norm": 2, "head": 1})
    {'full': 10, 'chans': 6, 'space': 7, 'floor': 3}
    """
    total, spatial, channel = sum(by_role.values()), by_role["spatial"], by_role["channel"]
    return {
        "full": total,
        "chans": total - spatial,
        "space": total - channel,
        "floor": total - spatial - channel,
    }


def parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters of any model by role, without computing or allocating anything.

    Args:
        model: the model.
        image_shape: (height, width, channels).
    """
    variables = _abstract_variables(model, image_shape)
    return {
        role: sum(math.prod(x.shape) for x in jax.tree.leaves(variables[role])) for role in ROLES
    }


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds per image of each kernel in the forward pass.

    A kernel costs its size times the number of positions in the result of its layer: k^2 C m H' W'
    for a depthwise kernel, C m C_out H' W' for the pointwise kernel after it. The network is
    counted as it is defined: a separable convolution counts as two steps, even if they are computed
    as one. Norms, activations and biases aren't counted; products with padding are.

    Args:
        model: the model.
        image_shape: (height, width, channels).

    Returns:
        Multiply-adds by path of the kernel, such as "spatial/stem/kernel"; their sum is the cost of
        the model.
    """
    if getattr(model, "scan", ()):
        model = model.clone(scan=())  # results inside a scan can't be captured
    variables = _abstract_variables(model, image_shape)
    _, captured = jax.eval_shape(
        lambda variables, images: model.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: isinstance(module, _MIXING),
            mutable=["intermediates"],
        ),
        variables,
        _abstract_images(image_shape),
    )
    results = {  # a layer may return its bias beside its result
        path[:-1]: jax.tree.leaves(result)[0].shape
        for path, result in flatten_dict(captured["intermediates"]).items()
    }
    costs = {}
    for role in ROLES:
        # Flax's hints leave out that the leaves are arrays.
        leaves = cast(Mapping[tuple[str, ...], Any], flatten_dict(variables[role]))
        for (*place, leaf), value in leaves.items():
            if leaf == "kernel":
                # The two kernels of a separable convolution are one component below it.
                shape = results.get(tuple(place)) or results[tuple(place[:-1])]
                costs["/".join((role, *place, leaf))] = math.prod(value.shape) * math.prod(
                    shape[:-1]
                )
    return costs


def _abstract_images(image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def _abstract_variables(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), _abstract_images(image_shape))
