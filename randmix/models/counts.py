"""Parameter and multiply-add counts of a model, and the closed forms that they follow.

Equations 1 to 3 of the paper count the parameters of one convolution: `standard`, `separable` and
`chans`, the part that a channels-only model trains. The third doesn't depend on the kernel size;
for m = k^2 it equals the first.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from randmix.models import layers, metaformer, mixers
from randmix.models.own import OwnModel
from randmix.models.parameters import ROLES

_FROZEN = {
    "full": (),
    "chans": ("spatial/",),
    "space": ("channel/",),
    "floor": ("spatial/", "channel/"),
}
_MIXING = (
    *(layers.PatchStem, layers.Depthwise, layers.Pointwise, layers.Separable, layers.Head),
    *(metaformer.Patches, mixers.Linear, mixers.AttentionProducts),
)


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
    return {
        mode: sum(count for role, count in by_role.items() if f"{role}/" not in frozen)
        for mode, frozen in _FROZEN.items()
    }


def parameters(model: nn.Module | OwnModel, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters of any model by role, without computing or allocating anything.

    Args:
        model: the model.
        image_shape: (height, width, channels).
    """
    variables = abstract_variables(model, image_shape)
    roles = [role for role in dict.fromkeys([*ROLES, *variables]) if role in variables]
    return {
        role: sum(math.prod(x.shape) for x in jax.tree.leaves(variables[role]))
        for role in roles
        if role != "batch_stats"
    }


def forward(model: nn.Module | OwnModel, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds per image of the forward pass of any model.

    For one of the user's own it is half of the floating-point operations that XLA counts, which
    include additions, activations and norms. The body of a loop, as of `nn.scan`, counts once,
    however often it runs.

    Args:
        model: the model.
        image_shape: (height, width, channels).
    """
    if not isinstance(model, OwnModel):
        return sum(multiply_adds(model, image_shape).values())
    variables = abstract_variables(model, image_shape)
    lowered = jax.jit(model.apply).lower(variables, _abstract_images(image_shape))
    return round((lowered.cost_analysis() or {}).get("flops", 0) / 2)


def multiply_adds(model: nn.Module | OwnModel, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds per image of each kernel in the forward pass.

    A kernel costs its size times the number of positions in the result of its layer: k^2 C m H' W'
    for a depthwise kernel, C m C_out H' W' for the pointwise kernel after it. The network is
    counted as it is defined: a separable convolution counts as two steps, even if they are computed
    as one. Norms, activations, biases, pooling and shifts aren't counted; products with padding
    are. The two products of attention over T positions cost 2 T^2 C.

    Args:
        model: the model.
        image_shape: (height, width, channels).

    Returns:
        Multiply-adds by path of the kernel, such as "spatial/stem/kernel", or of the products of
        attention, which have no role: "products/block_00/attention". Their sum is the cost of the
        model. {} for a model of the user's own, whose layers aren't known; see ``forward``.
    """
    if isinstance(model, OwnModel):
        return {}
    if getattr(model, "scan", ()):
        model = model.clone(scan=())  # results inside a scan can't be captured
    variables = abstract_variables(model, image_shape)
    attention = set()

    def is_counted(module: nn.Module, _: str) -> bool:
        if isinstance(module, mixers.AttentionProducts):
            attention.add(module.path)
        return isinstance(module, _MIXING)

    _, captured = jax.eval_shape(
        lambda variables, images: model.apply(
            variables,
            images,
            capture_intermediates=is_counted,
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
    for place in sorted(attention):
        _, positions, *channels = results[place]
        cost = 2 * positions**2 * math.prod(channels)
        costs["/".join(("products", *place[:-1]))] = cost
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


@functools.lru_cache(maxsize=128)
def abstract_variables(model: nn.Module | OwnModel, image_shape: tuple[int, int, int]) -> Any:
    """The shapes and dtypes of a model's variables, which equal models share: don't change them.

    Args:
        model: the model.
        image_shape: (height, width, channels).

    Returns:
        `jax.ShapeDtypeStruct`s in nested dictionaries, as ``model.init`` nests its arrays.
    """
    return jax.eval_shape(model.init, jax.random.key(0), _abstract_images(image_shape))


def training_step(by_kernel: Mapping[str, int], mode: str) -> int:
    """Multiply-adds per image that kernels and the products of attention cost in a training step.

    The gradient of a kernel costs as much as its layer's forward pass, and so does the gradient to
    the layer's input. A frozen kernel has no gradient. An input needs one if anything below it is
    learned: norms are, in every mode, and so all layers but the stem need it. Below the pointwise
    half of a separable stem is the depthwise half alone; a norm in between, which paths don't show,
    is left out. The products of attention have two inputs, and both need a gradient in every mode.

    Args:
        by_kernel: multiply-adds of the forward pass, from `multiply_adds`.
        mode: "full", "chans", "space" or "floor".

    >>> kernels = {"spatial/stem/kernel": 5, "channel/block_00/pointwise/kernel": 7}
    >>> {mode: training_step(kernels, mode) for mode in ("full", "chans", "space", "floor")}
    {'full': 31, 'chans': 26, 'space': 24, 'floor': 19}
    """
    frozen = _FROZEN[mode]
    total = 0
    for path, cost in by_kernel.items():
        own = not path.startswith(frozen)
        if path.split("/")[1] != "stem":
            below = True
        else:
            below = path.endswith("pointwise/kernel") and "spatial/" not in frozen
        total += cost * (1 + own + below)
    return total


def _abstract_images(image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
