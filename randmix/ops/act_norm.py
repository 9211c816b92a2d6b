"""Fused activation and batch normalisation that saves little for the backward pass.

Differentiated by JAX, GELU followed by BatchNorm keeps several arrays as large as the activations.
The operators here keep their input, in its own dtype, and two float32 vectors. The backward pass
recomputes the activation, which costs less than reading it from memory.

`act_norm` is ConvMixer's order, activation then norm; `norm_act` is that of the pre-activation
ResNet. Under `jax.jit` with a batch sharded over devices, the statistics are those of the global
batch.

How the batch statistics are computed depends on the dtype of x.

* float32: the mean, then the mean of squared deviations. This is accurate for any mean, but takes
  two reductions, of which the second waits for the first, and two exchanges between devices. On a
  CPU the passes are those of `randmix.ops.cpu.norm`.
* bfloat16: both moments about a shift s in one pass and one exchange,
  var = E[(u - s)^2] - (E[u] - s)^2, which is exact for any s. The relative rounding error of the
  variance is about 2^-24 (1 + (E[u] - s)^2 / var). A bfloat16 number has 8 bits: if the mean of
  x were more than 2^8 deviations from zero, x itself couldn't represent the deviations. So with
  s = 0 the error stays below 2^-8, unless the offset, which is added in float32, moves the mean
  farther. It vanishes with the running mean as s.

Accelerators train in bfloat16, so that form is designed for them: x is neither flattened nor hidden
from XLA by an `optimization_barrier`, and the bias of the preceding layer is added here. On a TPU
the sums are then computed where a convolution or product writes its result, and the normalisation
is fused into the next one that reads it.
"""

import functools
import math

import jax
import jax.numpy as jnp

from randmix.ops import match_rank
from randmix.ops.activations import ACTIVATIONS
from randmix.ops.cpu import norm as norm_cpu
from randmix.ops.statistics import Norm, Statistics, activated, normalized

Array = jax.Array


def act_norm(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    activation: str = "gelu",
    epsilon: float = 1e-5,
    offset: Array | None = None,
    shift: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Activation, then batch normalisation with the statistics of this batch.

    Supports reverse mode only: `jax.jvp` isn't defined.

    Args:
        x: [..., C], any floating dtype.
        scale: [C] float32.
        bias: [C] float32.
        activation: a key of `ACTIVATIONS`.
        epsilon: added to the variance.
        offset: [C], the bias of the layer that computed x, added to x first; None means zero. It is
            added in float32. Added here, neither the sum nor its gradient needs an array of its own
            for a bfloat16 x.
        shift: [C] float32, an estimate of the mean, such as the running mean; None means zero. It
            only matters for bfloat16, as the module's docstring explains, and has no gradient.

    Returns:
        ``(y, mean, variance)``: y is [..., C] in ``x.dtype``. The mean and the biased variance of
        the activated x over all axes but the last are [C], float32 even if x is bfloat16. They are
        meant for running statistics: no gradient flows through them.

    Raises:
        ValueError: x isn't floating, the activation is unknown, or scale, bias, offset or shift
            isn't [C].
    """
    return _by_batch(Norm(activation, "identity", epsilon), x, scale, bias, offset, shift)


def norm_act(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    activation: str = "relu",
    epsilon: float = 1e-5,
    offset: Array | None = None,
    shift: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Batch normalisation with the statistics of this batch, then activation.

    Arguments, results and errors are those of `act_norm`, except that mean and variance are those
    of x itself.
    """
    return _by_batch(Norm("identity", activation, epsilon), x, scale, bias, offset, shift)


def act_norm_inference(
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array,
    bias: Array,
    *,
    activation: str = "gelu",
    epsilon: float = 1e-5,
    offset: Array | None = None,
) -> Array:
    """`act_norm` with given statistics, differentiable in all array arguments.

    Args:
        x: [..., C], any floating dtype.
        mean: [C] float32.
        variance: [C] float32.
        scale: [C] float32.
        bias: [C] float32.
        activation: a key of `ACTIVATIONS`.
        epsilon: added to the variance.
        offset: [C], added to x first, as in `act_norm`; None means zero.

    Returns:
        [..., C] in ``x.dtype``: one multiply-add in float32 after the activation.

    Raises:
        ValueError: as in `act_norm`.
    """
    norm = Norm(activation, "identity", epsilon)
    return _by_given(norm, x, mean, variance, scale, bias, offset)


def norm_act_inference(
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array,
    bias: Array,
    *,
    activation: str = "relu",
    epsilon: float = 1e-5,
    offset: Array | None = None,
) -> Array:
    """`norm_act` with given statistics; see `act_norm_inference`."""
    norm = Norm("identity", activation, epsilon)
    return _by_given(norm, x, mean, variance, scale, bias, offset)


def act_norm_reference(
    x: Array, scale: Array, bias: Array, *, activation: str = "gelu", epsilon: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Plain reference for `act_norm`, differentiated by JAX."""
    return _reference(Norm(activation, "identity", epsilon), x, scale, bias)


def norm_act_reference(
    x: Array, scale: Array, bias: Array, *, activation: str = "relu", epsilon: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Plain reference for `norm_act`, differentiated by JAX."""
    return _reference(Norm("identity", activation, epsilon), x, scale, bias)


def _reference(norm: Norm, x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    u = ACTIVATIONS[norm.before](x.astype(jnp.float32))
    axes = tuple(range(u.ndim - 1))
    mean, variance = u.mean(axes), u.var(axes)
    deviation = jnp.sqrt(variance + norm.epsilon)
    normal = (u - match_rank(mean, u)) / match_rank(deviation, u)
    z = normal * match_rank(scale, u) + match_rank(bias, u)
    return ACTIVATIONS[norm.after](z).astype(x.dtype), mean, variance


def _by_batch(
    norm: Norm, x: Array, scale: Array, bias: Array, offset: Array | None, shift: Array | None
) -> tuple[Array, Array, Array]:
    offset, shift = (jnp.zeros_like(scale) if a is None else a for a in (offset, shift))
    _check(norm, x, scale, bias, offset, shift)
    return _normalize(norm, x, scale, bias, offset, shift if x.dtype == jnp.bfloat16 else None)


def _by_given(
    norm: Norm,
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array,
    bias: Array,
    offset: Array | None,
) -> Array:
    offset = jnp.zeros_like(scale) if offset is None else offset
    _check(norm, x, scale, bias, mean, variance, offset)
    factor = scale * jax.lax.rsqrt(variance + norm.epsilon)
    u = activated(x, offset, norm=norm)
    z = u * match_rank(factor, x) + match_rank(bias - mean * factor, x)
    return ACTIVATIONS[norm.after](z).astype(x.dtype)


def _check(norm: Norm, x: Array, *vectors: Array) -> None:
    for name in (norm.before, norm.after):
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}; cast it first")
    for vector in vectors:
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"scale, bias, offset, shift and statistics of x {list(x.shape)} must be "
                f"[{x.shape[-1]}], got {list(vector.shape)}"
            )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(
    norm: Norm, x: Array, scale: Array, bias: Array, offset: Array, shift: Array | None
) -> tuple[Array, Array, Array]:
    """The result, the mean and the variance.

    With a shift, both moments are computed about it in one pass; with None, in two passes.
    """
    return _normalize_forward(norm, x, scale, bias, offset, shift)[0]


# Jitted so that layers of equal shapes are traced once, inlined so that the program is the same.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _normalize_forward(norm, x, scale, bias, offset, shift):
    arguments = (x, scale, bias, offset)
    if shift is None:
        y, mean, variance = jax.lax.platform_dependent(
            *arguments,
            cpu=functools.partial(norm_cpu.forward, norm=norm),
            default=functools.partial(_forward, norm=norm),
        )
    else:
        y, mean, variance = _forward(*arguments, shift, norm=norm)
    rsqrt = jax.lax.rsqrt(variance + norm.epsilon)
    saved = (x, Statistics(mean, rsqrt, scale, bias, offset), shift)
    return (y.astype(x.dtype), mean, variance), saved


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _normalize_backward(norm, saved, cotangents):
    x, statistics, shift = saved
    g = cotangents[0]  # those of mean and variance are dropped: see act_norm
    if shift is None:
        dx, *vectors = jax.lax.platform_dependent(
            *(g, x, statistics),
            cpu=functools.partial(norm_cpu.backward, norm=norm),
            default=functools.partial(_backward, norm=norm),
        )
    else:
        dx, *vectors = _backward(g, x, statistics, norm=norm)
        shift = jnp.zeros_like(shift)  # mean and variance do not depend on it
    return (dx.astype(g.dtype), *vectors, shift)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _forward(
    x: Array, scale: Array, bias: Array, offset: Array, shift: Array | None = None, *, norm: Norm
) -> tuple[Array, Array, Array]:
    u = activated(x, offset, norm=norm)
    mean, variance = _moments(u, shift)
    factor = scale * jax.lax.rsqrt(variance + norm.epsilon)
    return normalized(norm, u, mean, factor, bias), mean, variance


def _backward(
    g: Array, x: Array, statistics: Statistics, *, norm: Norm
) -> tuple[Array, Array, Array, Array]:
    """Cotangents of x, scale, bias and offset, given g, that of the result."""
    u, before_gradient = statistics.activated(norm, x)
    normal = statistics.normal(u)
    dz = statistics.after_gradient(norm, g, normal)
    dbias, dscale, count = _sum(dz), _sum(dz * normal), math.prod(x.shape[:-1])
    (dx,) = before_gradient(statistics.centred_gradient(dz, normal, dscale, dbias, count))
    # The sum of dx, computed from sums that don't depend on those above: one pass and one exchange
    # suffice for all of them.
    (slope,) = before_gradient(jnp.ones_like(u))
    sums = _sum(dz * slope), _sum(slope), _sum(normal * slope)
    centred = sums[0] - (dbias * sums[1] + dscale * sums[2]) / count
    doffset = (statistics.scale * statistics.rsqrt) * centred
    return dx, dscale, dbias, doffset


def _moments(u: Array, shift: Array | None) -> tuple[Array, Array]:
    """Mean and variance of u [..., C], in two passes or, about a shift, in one."""
    if shift is None:
        mean = _mean(u)
        return mean, _mean(jnp.square(u - match_rank(mean, u)))
    centred = u - match_rank(shift, u)
    mean = _mean(centred)
    variance = _mean(jnp.square(centred)) - jnp.square(mean)
    return mean + shift, jnp.maximum(variance, 0)  # rounding may yield less than zero


def _mean(u: Array) -> Array:
    return u.mean(tuple(range(u.ndim - 1)))


def _sum(u: Array) -> Array:
    return u.sum(tuple(range(u.ndim - 1)))
