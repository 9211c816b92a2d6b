"""The two-pass form of `randmix.ops.act_norm` for XLA:CPU, where the time goes into passes over memory.

Left to itself, XLA writes erf(x) and reads it again for the activation, writes the centred activations for a
sum of their squares, and writes them once more, normalised, for the way back: 14 passes over x (read or written)
forward where the form here takes 6. What makes the difference:

- The activation is a call that isn't inlined (`randmix.ops.calls`), so that it is computed in one pass and
  read thereafter.
- XLA:CPU sums an array over its rows well, but nothing that it would first have to compute. So sums of squares and of
  products are taken of up to `_ROWS` rows at a time, written out as one elementwise expression; what is left is
  that many times smaller, and summed by XLA.

Arrays are [N, M, C] here, M the pixels of an image, and sums are grouped inside images, so that a batch sharded over
devices stays where it is. Vectors are [C].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from randmix.ops.activations import ACTIVATIONS
from randmix.ops.calls import not_inlined

Array = jax.Array

# Rows added in one expression, at most.
_ROWS = 32


def forward(
    x: Array, scale: Array, bias: Array, offset: Array, *, before: str, after: str, epsilon: float
) -> tuple[Array, Array, Array]:
    """``after(scale (before(x + offset) - mean) rsqrt + bias)``, the mean and the variance, in the sums' dtype."""
    u = _activated(x, offset, before)
    mean = _mean(u, u)
    variance = _mean(_squares(u, mean), u)
    y = ACTIVATIONS[after]((u - mean) * (scale * jax.lax.rsqrt(variance + epsilon)) + bias)
    return y.reshape(x.shape), mean, variance


def backward(
    g: Array,
    x: Array,
    mean: Array,
    rsqrt: Array,
    scale: Array,
    bias: Array,
    offset: Array,
    *,
    before: str,
    after: str,
) -> tuple[Array, Array, Array, Array]:
    """The cotangents of x, scale, bias and offset, given that of y, g [..., C]."""
    u = _activated(
        x, offset, before
    )  # XLA finds it in the forward pass, if that is in the same program
    g, vectors = _flat(g), (mean, rsqrt, scale, bias)
    dbias, dscale = _gradient_sums(g, u, *vectors, after=after).sum((0, 1))
    dx = _input_gradient(g, _flat(x), offset, *vectors, dbias, dscale, before=before, after=after)
    return dx.reshape(x.shape), dscale, dbias, dx.sum((0, 1))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim > 2 else x.reshape(1, -1, x.shape[-1])


def _activated(x: Array, offset: Array, before: str) -> Array:
    x = _flat(x).astype(offset.dtype)
    return x + offset if before == "identity" else _activate(x, offset, before=before)


def _mean(terms: Array, u: Array) -> Array:
    return terms.sum((0, 1)) / math.prod(u.shape[:-1])


def _added_rows(term: Callable[..., Array], *arrays: Array) -> Array:
    """``term(*arrays)`` [N, M, C], summed over groups of rows of equal size: [N, M / rows, C]."""
    n, m, c = arrays[0].shape
    rows = max(rows for rows in range(1, _ROWS + 1) if m % rows == 0)
    groups = [a.reshape(n, m // rows, rows, c) for a in arrays]
    return sum(term(*(group[:, :, i] for group in groups)) for i in range(rows))


@not_inlined
def _activate(x: Array, offset: Array, *, before: str) -> Array:
    return ACTIVATIONS[before](x + offset)


@not_inlined
def _squares(u: Array, mean: Array) -> Array:
    return _added_rows(lambda u: jnp.square(u - mean), u)


@not_inlined
def _gradient_sums(g, u, mean, rsqrt, scale, bias, *, after):
    """The terms of dbias and dscale over groups of rows, [N, M / rows, 2, C]."""
    # As one expression of both, in which either factor is 0: of two, each would read g and u from memory.
    constant, linear = jnp.eye(2, dtype=scale.dtype)[:, :, None]

    def term(g, u):
        normal = (u - mean) * rsqrt
        return _before_activation(g, normal, scale, bias, after)[..., None, :] * (
            constant + linear * normal[..., None, :]
        )

    return _added_rows(term, g, u)


@not_inlined
def _input_gradient(g, x, offset, mean, rsqrt, scale, bias, dbias, dscale, *, before, after):
    u, before_gradient = jax.vjp(ACTIVATIONS[before], x.astype(offset.dtype) + offset)
    normal = (u - mean) * rsqrt
    dz = _before_activation(g, normal, scale, bias, after)
    (dx,) = before_gradient(
        (scale * rsqrt) * (dz - (dbias + normal * dscale) / math.prod(x.shape[:-1]))
    )
    return dx


def _before_activation(g, normal, scale, bias, after):
    """The cotangent of ``normal * scale + bias``."""
    _, gradient = jax.vjp(ACTIVATIONS[after], normal * scale + bias)
    return gradient(g.astype(scale.dtype))[0]
