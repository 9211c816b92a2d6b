"""The balls of radius epsilon in which attacks stay, and random points in them."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from randmix.errors import check_choice

Array = jax.Array


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


BALLS = {
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
NORMS = tuple(BALLS)


def ball(norm: str) -> Ball:
    """Returns the ball of a norm, one of ``NORMS``; raises a UserError for any other."""
    check_choice("norm", norm, BALLS)
    return BALLS[norm]


def move(images: Array, points: Array, step: Array, epsilon: float | Array, norm: str) -> Array:
    """Steps from ``points``, projects into the ball around ``images`` and clips to [0, 1].

    Clipping moves each pixel closer to the clean one, which is in [0, 1], so the result stays in
    the ball.
    """
    return jnp.clip(images + ball(norm).project(points - images + step, epsilon), 0, 1)


def random_point(
    images: Array, epsilon: float | Array, keys: Array | None, restart: int | Array, norm: str
) -> Array:
    """A random point in the ball, drawn anew for each restart and independent of ``noise``."""

    def sample(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return ball(norm).inside(jax.random.fold_in(key, restart + 1), shape, dtype)

    return move(images, images, epsilon * draw(sample, keys, images), epsilon, norm)


def draw(sample: Callable[..., Array], keys: Array | None, images: Array) -> Array:
    """[N, H, W, C] samples, one per example's key; ``sample`` is a function as in ``Ball``."""
    return jax.vmap(lambda key: sample(key, images.shape[1:], images.dtype))(require_keys(keys))


def require_keys(keys: Array | None) -> Array:
    """Returns the keys; raises a ValueError for None."""
    if keys is None:
        raise ValueError("keys: got None, allowed [N] keys; this attack draws at random")
    return keys
