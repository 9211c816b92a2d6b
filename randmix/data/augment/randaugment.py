"""RandAugment (Cubuk et al., arXiv 1909.13719) on a batch, with Pillow's operations.

Under ``vmap`` a switch over fifteen operations would run all fifteen on every image. Here an
operation is a point in the parameters of three passes, each one computation for the entire batch:
a table maps values, a blend weakens or enhances, a warp moves pixels. All three receive the same
images, and each image uses one result. A chain would be equivalent, but XLA fuses it into one loop
that recomputes the first passes for each neighbour that a later pass reads.
`benchmarks/augment.py` measures the cost.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from randmix.data.augment import enhance, lookup, policies, warp
from randmix.data.augment.warp import Number

LOOKUP, ENHANCE, WARP = range(3)


class Parameters(NamedTuple):
    """An image's pass, and the parameters of all three; the defaults change nothing.

    ``taken`` is LOOKUP, ENHANCE or WARP. See ``lookup.apply``, ``enhance.apply`` and ``warp.apply``
    for the others. They are numbers in ``OPERATIONS``, and arrays after ``pack``.
    """

    taken: Any = LOOKUP
    stretch: Any = lookup.NONE
    add: Any = 0
    threshold: Any = 256
    bits: Any = 8
    degenerate: Any = enhance.BLACK
    factor: Any = 1.0
    matrix: Any = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


# (argument, height, width) -> parameters. Units of the arguments: rotate: degrees; posterize: bits;
# solarize and solarize_add: pixel values; shear: pixels per pixel; translate: pixels; the others:
# factors.
OPERATIONS: dict[str, Callable[[Number, int, int], Parameters]] = {
    "identity": lambda _, h, w: Parameters(),
    "autocontrast": lambda _, h, w: Parameters(stretch=lookup.AUTOCONTRAST),
    "equalize": lambda _, h, w: Parameters(stretch=lookup.EQUALIZE),
    "invert": lambda _, h, w: Parameters(threshold=0),
    "posterize": lambda bits, h, w: Parameters(bits=bits),
    "solarize": lambda threshold, h, w: Parameters(threshold=threshold),
    "solarize_add": lambda add, h, w: Parameters(add=add),
    "brightness": lambda factor, h, w: Parameters(ENHANCE, degenerate=enhance.BLACK, factor=factor),
    "contrast": lambda factor, h, w: Parameters(ENHANCE, degenerate=enhance.MEAN, factor=factor),
    "color": lambda factor, h, w: Parameters(ENHANCE, degenerate=enhance.GRAY, factor=factor),
    "sharpness": lambda factor, h, w: Parameters(ENHANCE, degenerate=enhance.SMOOTH, factor=factor),
    "rotate": lambda degrees, h, w: Parameters(WARP, matrix=warp.rotation(degrees, h, w)),
    "shear_x": lambda amount, h, w: Parameters(WARP, matrix=warp.shear_x(amount)),
    "shear_y": lambda amount, h, w: Parameters(WARP, matrix=warp.shear_y(amount)),
    "translate_x": lambda pixels, h, w: Parameters(WARP, matrix=warp.translation(pixels, 0.0)),
    "translate_y": lambda pixels, h, w: Parameters(WARP, matrix=warp.translation(0.0, pixels)),
}


def randaugment(
    keys: jax.Array,
    images: jax.Array,
    policy: policies.Timm | policies.Torchvision,
    *,
    fill: tuple[int, ...],
) -> jax.Array:
    """Applies ``policy.count`` random operations to each image, sequentially.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C] uint8, C = 1 or 3.
        policy: see ``policies.parse``; static.
        fill: C numbers in 0..255, the colour of areas that moved images uncover; see
            ``policy.fill``.

    Returns:
        [N, H, W, C] uint8.
    """
    _, h, w, _ = images.shape

    def operation(images: jax.Array, keys: jax.Array) -> tuple[jax.Array, None]:
        drawn = jax.vmap(partial(draw, policy=policy, height=h, width=w))(keys)
        return apply(
            images, drawn, fill=fill, interpolation=policy.interpolation, steepest=policy.steepest
        ), None

    # A scan compiles the passes once, not once per operation.
    keys = jax.vmap(partial(jax.random.split, num=policy.count), out_axes=1)(keys)
    return jax.lax.scan(operation, images, keys)[0]


def draw(
    key: jax.Array, *, policy: policies.Timm | policies.Torchvision, height: int, width: int
) -> Parameters:
    """Draws one operation with magnitude and sign, or no operation: scalars and a matrix [6]."""
    uniform_key, level_key = jax.random.split(key)
    which, used, signed = jax.random.uniform(uniform_key, (3,))
    sign = jnp.where(signed < 0.5, -1.0, 1.0)
    arguments = policy.arguments(policy.draw_level(level_key), sign, height, width)
    choices = [
        pack(OPERATIONS[name](argument, height, width))
        for name, argument in [("identity", 0.0), *arguments.items()]
    ]
    index = 1 + jnp.floor(which * (len(choices) - 1)).astype(jnp.int32)
    index = jnp.where(used < policy.probability, index, 0)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[index], *choices)


def pack(parameters: Parameters) -> Parameters:
    """Converts parameters to arrays: float32 for ``factor`` and ``matrix`` [6], else int32."""
    packed = {
        name: jnp.asarray(value, jnp.float32 if name == "factor" else jnp.int32)
        for name, value in parameters._asdict().items()
        if name != "matrix"
    }
    matrix = jnp.stack([jnp.asarray(number, jnp.float32) for number in parameters.matrix])
    return Parameters(**packed, matrix=matrix)


def apply(
    images: jax.Array,
    drawn: Parameters,
    *,
    fill: tuple[int, ...],
    interpolation: str,
    steepest: float = 1.0,
) -> jax.Array:
    """Runs the three passes and selects one result per image.

    Args:
        images: [N, H, W, C] uint8.
        drawn: parameters per image, [N], and [N, 6] for the matrix.
        fill, interpolation, steepest: see ``warp.apply``.

    Returns:
        [N, H, W, C] uint8.
    """
    taken = drawn.taken[:, None, None, None]
    return jnp.select(
        [taken == LOOKUP, taken == ENHANCE],
        [
            lookup.apply(images, drawn.stretch, drawn.add, drawn.threshold, drawn.bits),
            enhance.apply(images, drawn.degenerate, drawn.factor),
        ],
        warp.apply(images, drawn.matrix, fill, interpolation=interpolation, steepest=steepest),
    )
