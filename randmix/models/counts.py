"""What a model costs: parameters by role, and multiply-adds; and the closed forms that they follow.

The paper's equations 1 to 3 count one convolution: `standard`, `separable`, and `chans`, which is what a
channels-only model trains. The third doesn't depend on the kernel's size, and at m = k^2 it equals the first.
"""

import math
from collections.abc import Mapping
from typing import Any

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
    """Trainable parameters of a separable convolution whose spatial half is frozen, equation 3.

    >>> chans(16, 32, 9)
    4608
    """
    return multiplier * in_channels * out_channels


def convmixer(
    *, width: int, depth: int, kernel_size: int, patch_size: int, channels: int, num_classes: int
) -> dict[str, int]:
    """Parameters of a ConvMixer with a classifier by role, biases with their kernels.

    >>> sum(convmixer(width=768, depth=32, kernel_size=7, patch_size=7, channels=3, num_classes=1000).values())
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
    """Trainable parameters in each mode: Chans freezes the role "spatial", Space the role "channel".

    >>> trainable({"spatial": 4, "channel": 3, "norm": 2, "head": 1})
    {'full': 10, 'chans': 6, 'space': 7}
    """
    total = sum(by_role.values())
    return {"full": total, "chans": total - by_role["spatial"], "space": total - by_role["channel"]}


def parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters of any model by role; nothing is computed or allocated.

    Args:
        model: the model.
        image_shape: (height, width, channels).
    """
    variables = _abstract_variables(model, image_shape)
    return {
        role: sum(math.prod(x.shape) for x in jax.tree.leaves(variables[role])) for role in ROLES
    }


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds that one image costs in each kernel of the forward pass: {"spatial/stem/kernel": ...}.

    A kernel costs its own size at each position of its layer's result: k^2 C m H' W' for a depthwise one,
    C m C_out H' W' for the pointwise one after it. The network is counted as it is defined: a separable
    convolution in its two steps, also where they are computed as one. Norms, activations and biases aren't
    counted, nor the padding left out.

    Args:
        model: the model.
        image_shape: (height, width, channels).

    Returns:
        Path of the kernel -> multiply-adds; their sum is the model's.
    """
    if getattr(model, "scan", ()):
        model = model.clone(scan=())  # inside a scan nothing can be captured
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
    results = {  # a layer may give its bias beside its result
        path[:-1]: jax.tree.leaves(result)[0].shape
        for path, result in flatten_dict(captured["intermediates"]).items()
    }
    costs = {}
    for role in ROLES:
        for (*place, leaf), value in flatten_dict(variables[role]).items():
            if leaf == "kernel":
                # The two kernels of a separable convolution lie one component below it.
                shape = results.get(tuple(place)) or results[tuple(place[:-1])]
                costs["/".join((role, *place, leaf))] = math.prod(value.shape) * math.prod(
                    shape[:-1]
                )
    return costs


def _abstract_images(image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def _abstract_variables(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), _abstract_images(image_shape))
