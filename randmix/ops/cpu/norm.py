"""Two-pass form of `randmix.ops.act_norm` for XLA:CPU, where passes over memory dominate.

On its own, XLA writes erf(x) and reads it again for the activation, writes the centred activations
for the sum of their squares, and writes them once more, normalised, for the backward pass. That is
14 passes over x (reads or writes) in the forward direction; the form here takes 6. What makes the
difference:

- The activation is a call that isn't inlined (`randmix.ops.cpu`), so it is computed in one pass
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
from randmix.ops.cpu import not_inlined
from randmix.ops.statistics import Norm, Statistics, activated, normalized

Array = jax.Array

# The most rows that one expression adds.
_ROWS = 32


def forward(
    x: Array, scale: Array, bias: Array, offset: Array, *, norm: Norm
) -> tuple[Array, Array, Array]:
    """The result, the mean and the variance, in the dtype of the vectors."""
    u = _activated(x, offset, norm)
    mean = _mean(u, u)
    variance = _mean(_squares(u, mean), u)
    y = normalized(norm, u, mean, scale * jax.lax.rsqrt(variance + norm.epsilon), bias)
    return y.reshape(x.shape), mean, variance


def backward(
    g: Array, x: Array, statistics: Statistics, *, norm: Norm
) -> tuple[Array, Array, Array, Array]:
    """Cotangents of x, scale, bias and offset, given g, that of the result."""
    # XLA reuses the result of the forward pass if both are in one program.
    u, g = _activated(x, statistics.offset, norm), _flat(g)
    dbias, dscale = _gradient_sums(g, u, statistics, norm=norm).sum((0, 1))
    dx = _input_gradient(g, _flat(x), statistics, dscale, dbias, norm=norm)
    return dx.reshape(x.shape), dscale, dbias, dx.sum((0, 1))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim > 2 else x.reshape(1, -1, x.shape[-1])


def _activated(x: Array, offset: Array, norm: Norm) -> Array:
    call = activated if norm.before == "identity" else not_inlined(activated)
    return call(_flat(x), offset, norm=norm)


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
def _squares(u: Array, mean: Array) -> Array:
    return _added_rows(lambda u: jnp.square(u - match_rank(mean, u)), u)


@not_inlined
def _gradient_sums(g: Array, u: Array, statistics: Statistics, *, norm: Norm) -> Array:
    """Terms of dbias and dscale, summed over groups of rows: [N, M / rows, 2, C]."""
    # One expression for both, in which either factor is 0: two would each read g and u from memory.
    constant, linear = jnp.eye(2, dtype=u.dtype)[:, :, None]

    def term(g, u):
        normal = statistics.normal(u)
        dz = statistics.after_gradient(norm, g, normal)[..., None, :]
        pair = normal[..., None, :]
        return dz * (match_rank(constant, pair) + match_rank(linear, pair) * pair)

    return _added_rows(term, g, u)


@not_inlined
def _input_gradient(
    g: Array, x: Array, statistics: Statistics, dscale: Array, dbias: Array, *, norm: Norm
) -> Array:
    u, before_gradient = statistics.activated(norm, x)
    normal = statistics.normal(u)
    dz = statistics.after_gradient(norm, g, normal)
    count = math.prod(x.shape[:-1])
    return before_gradient(statistics.centred_gradient(dz, normal, dscale, dbias, count))[0]
