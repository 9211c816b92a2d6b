"""L-infinity and L2 balls around images: the perturbations that an attack may choose from."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from randmix.errors import check_choice


class Ball(NamedTuple):
    """Perturbations [N, H, W, C] whose norm is at most epsilon; drawn ones are [H, W, C].

    Attributes:
        steepest: gradient -> the perturbation of norm 1 that a linear function rises most along; 0
            for a gradient of 0.
        project: (perturbation, epsilon) -> the nearest perturbation of norm at most epsilon.
        inside: (key, shape, dtype) -> a uniform sample from the ball of radius 1.
        surface: (key, shape, dtype) -> a perturbation of norm 1 in a random direction.
    """

    steepest: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, float | jax.Array], jax.Array]
    inside: Callable[..., jax.Array]
    surface: Callable[..., jax.Array]


def _unit(x: jax.Array) -> jax.Array:
    """Divides each example of [N, H, W, C] by its L2 norm; 0 stays 0."""
    # By the largest entry first: 1e-30, as in a confident classifier's gradient, squares to 0.
    x = x / _nonzero(jnp.abs(x).max((1, 2, 3), keepdims=True))
    return x / _nonzero(_length(x))


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True))


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)


def _shorten(x: jax.Array, epsilon: float | jax.Array) -> jax.Array:
    length = _length(x)
    return jnp.where(length > epsilon, x * (epsilon / _nonzero(length)), x)


def _in_l2_ball(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    # The first d of the d + 2 coordinates of a uniform point on a sphere are uniform in the ball.
    size = math.prod(shape)
    point = jax.random.normal(key, (size + 2,), dtype)
    return (point / jnp.linalg.norm(point))[:size].reshape(shape)


_BALLS = {
    "linf": Ball(
        steepest=jnp.sign,
        project=lambda x, epsilon: jnp.clip(x, -epsilon, epsilon),
        inside=partial(jax.random.uniform, minval=-1, maxval=1),
        surface=jax.random.rademacher,
    ),
    "l2": Ball(
        steepest=_unit,
        project=_shorten,
        inside=_in_l2_ball,
        surface=lambda key, shape, dtype: _unit(jax.random.normal(key, (1, *shape), dtype))[0],
    ),
}
NORMS = tuple(_BALLS)


def get(norm: str) -> Ball:
    """Returns the ball of a norm, one of ``NORMS``; raises a UserError for any other."""
    check_choice("norm", norm, _BALLS)
    return _BALLS[norm]
