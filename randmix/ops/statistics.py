"""What a norm's two forms, for CPUs and for other platforms, have in common.

A norm computes ``after((u - mean) * rsqrt * scale + bias)`` with ``u = before(x + offset)``, where
one of the two activations is the identity.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from randmix.ops import match_rank
from randmix.ops.activations import ACTIVATIONS

Array = jax.Array


class Norm(NamedTuple):
    """The static part of a norm.

    Attributes:
        before, after: keys of `ACTIVATIONS`.
        epsilon: added to the variance.
    """

    before: str
    after: str
    epsilon: float


def activated(x: Array, offset: Array, *, norm: Norm) -> Array:
    """u, in float32."""
    wide = x.astype(jnp.float32)
    return ACTIVATIONS[norm.before](wide + match_rank(offset, x))


def normalized(norm: Norm, u: Array, mean: Array, factor: Array, bias: Array) -> Array:
    """The result, given ``factor = scale * rsqrt``."""
    normal = (u - match_rank(mean, u)) * match_rank(factor, u)
    return ACTIVATIONS[norm.after](normal + match_rank(bias, u))


class Statistics(NamedTuple):
    """What the backward pass needs besides x: [C] float32 each."""

    mean: Array
    rsqrt: Array
    scale: Array
    bias: Array
    offset: Array

    def activated(self, norm: Norm, x: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
        """u, and the function from its cotangent to that of x, both in float32."""
        wide = x.astype(jnp.float32)
        return jax.vjp(lambda x: activated(x, self.offset, norm=norm), wide)

    def normal(self, u: Array) -> Array:
        """u, [..., C], with mean 0 and variance 1."""
        return (u - match_rank(self.mean, u)) * match_rank(self.rsqrt, u)

    def after_gradient(self, norm: Norm, g: Array, normal: Array) -> Array:
        """Cotangent of ``normal * scale + bias``, given that of the result."""
        z = normal * match_rank(self.scale, normal) + match_rank(self.bias, normal)
        _, gradient = jax.vjp(ACTIVATIONS[norm.after], z)
        return gradient(g.astype(z.dtype))[0]

    def centred_gradient(
        self, dz: Array, normal: Array, dscale: Array, dbias: Array, count: int
    ) -> Array:
        """Cotangent of u, also through the mean and the variance of its ``count`` rows."""
        dnormal = match_rank(dbias, dz) + normal * match_rank(dscale, dz)
        return match_rank(self.scale * self.rsqrt, dz) * (dz - dnormal / count)
