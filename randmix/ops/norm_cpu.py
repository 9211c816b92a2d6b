"""Two-pass form of `randmix.ops.act_norm` for XLA:CPU, where passes over memory dominate.

On its own, XLA writes erf(x) and reads it again for the activation, writes the centred activations
for the sum of their squares, and writes them once more, normalised, for the backward pass. That is
14 passes over x (reads or writes) in the forward direction; the form here takes 6. What makes the
difference:

- The activation is a call that isn't inlined (`randmix.ops.calls`), so it is computed in one pass
  and read afterwards.
- XLA:CPU is good at summing the rows of an array, but not of an expression that must be computed
  first. Sums of squares and of products are therefore computed over up to `_ROWS` rows at a time,
  written as one elementwise expression. The result, smaller by that factor, is summed by XLA.

Arrays are [N, M, C], where M is the number of pixels per image. Sums are grouped within images, so
that a batch sharded over devices stays in place. Vectors are [C].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from randmix.ops import match_rank
from randmix.ops.activations import ACTIVATIONS
from randmix.ops.calls import not_inlined

Array = jax.Array

# The most rows that one expression adds.
_ROWS = 32


def forward(
    x: Array, scale: Array, bias: Array, offset: Array, *, before: str, after: str, epsilon: float
) -> tuple[Array, Array, Array]:
    """``after(scale (before(x + offset) - mean) rsqrt + bias)``, the mean and the variance.

    The results have the dtype of the vectors, in which sums are computed.
    """
    u = _activated(x, offset, before)
    mean = _mean(u, u)
    variance = _mean(_squares(u, mean), u)
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    normal = (u - match_rank(mean, u)) * match_rank(factor, u)
    y = ACTIVATIONS[after](normal + match_rank(bias, u))
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
    """Cotangents of x, scale, bias and offset, given g, the cotangent of y, [..., C]."""
    # XLA reuses the result of the forward pass if both are in one program.
    u = _activated(x, offset, before)
    g, vectors = _flat(g), (mean, rsqrt, scale, bias)
    dbias, dscale = _gradient_sums(g, u, *vectors, after=after).sum((0, 1))
    dx = _input_gradient(g, _flat(x), offset, *vectors, dbias, dscale, before=before, after=after)
    return dx.reshape(x.shape), dscale, dbias, dx.sum((0, 1))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim > 2 else x.reshape(1, -1, x.shape[-1])


def _activated(x: Array, offset: Array, before: str) -> Array:
    x = _flat(x).astype(offset.dtype)
    if before == "identity":
        return x + match_rank(offset, x)
    return _activate(x, offset, before=before)


def _mean(terms: Array, u: Array) -> Array:
    return terms.sum((0, 1)) / math.prod(u.shape[:-1])


def _added_rows(term: Callable[..., Array], *arrays: Array) -> Array:
    """``term(*arrays)`` [N, M, C], summed over groups of equally many rows: [N, M / rows, C]."""
    n, m, c = arrays[0].shape
    rows = max(rows for rows in range(1, _ROWS + 1) if m % rows == 0)
    groups = [a.reshape(n, m // rows, rows, c) for a in arrays]
    return sum(  # pyright: ignore[reportReturnType] (rows >= 1, so it is no int 0)
        term(*(group[:, :, i] for group in groups)) for i in range(rows)
    )


@not_inlined
def _activate(x: Array, offset: Array, *, before: str) -> Array:
    return ACTIVATIONS[before](x + match_rank(offset, x))


@not_inlined
def _squares(u: Array, mean: Array) -> Array:
    return _added_rows(lambda u: jnp.square(u - match_rank(mean, u)), u)


@not_inlined
def _gradient_sums(g, u, mean, rsqrt, scale, bias, *, after):
    """Terms of dbias and dscale, summed over groups of rows: [N, M / rows, 2, C]."""
    # One expression for both, in which either factor is 0: two would each read g and u from memory.
    constant, linear = jnp.eye(2, dtype=scale.dtype)[:, :, None]

    def term(g, u):
        normal = (u - match_rank(mean, u)) * match_rank(rsqrt, u)
        dz = _before_activation(g, normal, scale, bias, after)[..., None, :]
        pair = normal[..., None, :]
        return dz * (match_rank(constant, pair) + match_rank(linear, pair) * pair)

    return _added_rows(term, g, u)


@not_inlined
def _input_gradient(g, x, offset, mean, rsqrt, scale, bias, dbias, dscale, *, before, after):
    shifted = x.astype(offset.dtype) + match_rank(offset, x)
    u, before_gradient = jax.vjp(ACTIVATIONS[before], shifted)
    normal = (u - match_rank(mean, u)) * match_rank(rsqrt, u)
    dz = _before_activation(g, normal, scale, bias, after)
    dnormal = match_rank(dbias, u) + normal * match_rank(dscale, u)
    du = match_rank(scale * rsqrt, u) * (dz - dnormal / math.prod(x.shape[:-1]))
    return before_gradient(du)[0]


def _before_activation(g, normal, scale, bias, after):
    """Cotangent of ``normal * scale + bias``."""
    z = normal * match_rank(scale, normal) + match_rank(bias, normal)
    _, gradient = jax.vjp(ACTIVATIONS[after], z)
    return gradient(g.astype(scale.dtype))[0]
