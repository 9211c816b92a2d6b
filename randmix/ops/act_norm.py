"""Activation and batch normalisation as one operator that saves little for the backward pass.

Differentiated by JAX, GELU followed by BatchNorm keeps several arrays as large as the activations. The
operators here keep their input, in its own dtype, and two float32 vectors; the backward pass computes the
activation again, which costs less than reading it from memory.

`act_norm` is ConvMixer's order, activation then norm; `norm_act` the pre-activation ResNet's. Under
`jax.jit` with a batch sharded over devices the statistics are those of the global batch.

How the batch's statistics are taken depends on the dtype of x.

* float32: mean, then mean of squared deviations. Accurate for any mean; two reductions, of which the second
  waits for the first, and two exchanges between devices. For a CPU the passes are those of
  `randmix.ops.norm_cpu`.
* bfloat16: both moments about a shift s in one pass and one exchange, var = E[(u - s)^2] - (E[u] - s)^2,
  which is exact for any s. Rounding makes it wrong by about 2^-24 (1 + (E[u] - s)^2 / var) of the variance. A
  bfloat16 number has 8 bits: were the mean more than 2^8 deviations from zero, the input itself wouldn't hold
  the deviations. So the error stays below 2^-8 with s = 0, and with the running mean for s it vanishes.

bfloat16 is what accelerators train in, so that form is made for them: x is neither flattened nor hidden from XLA
(`optimization_barrier`), and the bias of the layer before is added here. On a TPU the sums are then taken
where a convolution or product writes its result, and normalising is part of the next one that reads it.
"""

import functools
import math

import jax
import jax.numpy as jnp

from randmix.ops import norm_cpu, sum_dtype
from randmix.ops.activations import ACTIVATIONS

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

    Args:
        x: [..., C], any floating dtype.
        scale: [C] float32.
        bias: [C] float32.
        activation: a key of `ACTIVATIONS`.
        epsilon: added to the variance.
        offset: [C], added to x before all else: the bias of the layer that x comes from; None is zero. Added here, it
            costs a bfloat16 x no array of its own, and neither does its gradient; it is added in float32.
        shift: [C] float32, what the mean is expected to be, such as the running mean; None is zero. It matters
            for bfloat16 alone, as the module's docstring says, and has no gradient.

    Returns:
        ``(y, mean, variance)``: y [..., C] in ``x.dtype``; mean and biased variance of the activated x over
        all axes but the last, [C] float32 also where x is bfloat16. The two are for running statistics: no
        gradient flows through them.

    Raises:
        ValueError: an unknown activation, or a scale, bias, offset or shift that isn't [C].
    """
    return _train(activation, "identity", x, scale, bias, epsilon, offset, shift)


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

    Arguments, results and errors are those of `act_norm`; the statistics are those of x itself.
    """
    return _train("identity", activation, x, scale, bias, epsilon, offset, shift)


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
    """`act_norm` with given statistics: mean and variance [C] float32. Differentiable in everything.

    Returns:
        [..., C] in ``x.dtype``, one multiply-add in float32 after the activation.
    """
    return _infer(activation, "identity", x, mean, variance, scale, bias, epsilon, offset)


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
    return _infer("identity", activation, x, mean, variance, scale, bias, epsilon, offset)


def act_norm_reference(
    x: Array, scale: Array, bias: Array, *, activation: str = "gelu", epsilon: float = 1e-5
) -> tuple[Array, Array, Array]:
    """`act_norm` as one would write it, differentiated by JAX."""
    y, mean, variance = _normalize_reference(
        ACTIVATIONS[activation](_wide(x)), scale, bias, epsilon
    )
    return y.astype(x.dtype), mean, variance


def norm_act_reference(
    x: Array, scale: Array, bias: Array, *, activation: str = "relu", epsilon: float = 1e-5
) -> tuple[Array, Array, Array]:
    """`norm_act` as one would write it, differentiated by JAX."""
    z, mean, variance = _normalize_reference(_wide(x), scale, bias, epsilon)
    return ACTIVATIONS[activation](z).astype(x.dtype), mean, variance


def _normalize_reference(u, scale, bias, epsilon):
    axes = tuple(range(u.ndim - 1))
    mean, variance = u.mean(axes), u.var(axes)
    return (u - mean) / jnp.sqrt(variance + epsilon) * scale + bias, mean, variance


def _train(before, after, x, scale, bias, epsilon, offset, shift):
    offset, shift = (
        jnp.zeros_like(scale) if vector is None else vector for vector in (offset, shift)
    )
    _check(before, after, x, scale, bias, offset, shift)
    scale, bias, offset, shift = (
        a.astype(sum_dtype(x.dtype)) for a in (scale, bias, offset, shift)
    )
    shift = shift if x.dtype == jnp.bfloat16 else None
    y, mean, variance = _normalize(before, after, epsilon, x, scale, bias, offset, shift)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


def _infer(before, after, x, mean, variance, scale, bias, epsilon, offset):
    offset = jnp.zeros_like(scale) if offset is None else offset
    _check(before, after, x, scale, bias, mean, variance, offset)
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    z = ACTIVATIONS[before](_wide(x) + offset) * factor + (bias - mean * factor)
    return ACTIVATIONS[after](z).astype(x.dtype)


def _check(before, after, x, *vectors):
    for name in (before, after):
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}; cast it first")
    for vector in vectors:
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"scale, bias, offset, shift and statistics of x {list(x.shape)} are [{x.shape[-1]}], "
                f"got {list(vector.shape)}"
            )


def _wide(x: Array) -> Array:
    """x in float32, or in float64 where it is that already: statistics and gradients are summed in it."""
    return x.astype(sum_dtype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _normalize(before, after, epsilon, x, scale, bias, offset, shift):
    """``after(scale (before(x + offset) - mean) rsqrt + bias)`` for x [..., C]; also the mean and the variance.

    shift: that of the moments in one pass; None for two passes.
    """
    return _normalize_forward(before, after, epsilon, x, scale, bias, offset, shift)[0]


def _normalize_forward(before, after, epsilon, x, scale, bias, offset, shift):
    if shift is None:
        options = {"before": before, "after": after, "epsilon": epsilon}
        y, mean, variance = jax.lax.platform_dependent(
            *(x, scale, bias, offset),
            cpu=functools.partial(norm_cpu.forward, **options),
            default=functools.partial(_forward, **options),
        )
    else:
        y, mean, variance = _forward(
            x, scale, bias, offset, shift, before=before, after=after, epsilon=epsilon
        )
    rsqrt = jax.lax.rsqrt(variance + epsilon)
    return (y.astype(x.dtype), mean, variance), (x, mean, rsqrt, scale, bias, offset, shift)


def _normalize_backward(before, after, epsilon, residuals, cotangents):
    *arrays, shift = residuals
    g = cotangents[0]  # those of mean and variance are left out: see act_norm
    options = {"before": before, "after": after}
    if shift is None:
        gradients = jax.lax.platform_dependent(
            *(g, *arrays),
            cpu=functools.partial(norm_cpu.backward, **options),
            default=functools.partial(_backward, **options),
        )
    else:
        gradients = _backward(g, *arrays, **options)
    # Mean and variance are the same for every shift.
    return (
        gradients[0].astype(g.dtype),
        *gradients[1:],
        None if shift is None else jnp.zeros_like(shift),
    )


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _forward(x, scale, bias, offset, shift=None, *, before, after, epsilon):
    u = ACTIVATIONS[before](_wide(x) + offset)
    mean, variance = _centred_moments(u) if shift is None else _moments(u, shift)
    rsqrt = jax.lax.rsqrt(variance + epsilon)
    return ACTIVATIONS[after]((u - mean) * (scale * rsqrt) + bias), mean, variance


def _backward(g, x, mean, rsqrt, scale, bias, offset, *, before, after):
    """The cotangents of x, scale, bias and offset."""
    u, before_gradient = jax.vjp(ACTIVATIONS[before], _wide(x) + offset)
    normal = (u - mean) * rsqrt
    _, after_gradient = jax.vjp(ACTIVATIONS[after], normal * scale + bias)
    (dz,) = after_gradient(_wide(g))
    dbias, dscale, count = _sum(dz), _sum(dz * normal), math.prod(x.shape[:-1])
    du = (scale * rsqrt) * (dz - (dbias + normal * dscale) / count)
    (dx,) = before_gradient(du)
    # The sum of dx, from sums that don't wait for those above: one pass and one exchange for all.
    (slope,) = before_gradient(jnp.ones_like(u))
    sums = _sum(dz * slope), _sum(slope), _sum(normal * slope)
    doffset = (scale * rsqrt) * (sums[0] - (dbias * sums[1] + dscale * sums[2]) / count)
    return dx, dscale, dbias, doffset


def _moments(u: Array, shift: Array) -> tuple[Array, Array]:
    """Mean and variance of u [..., C] in one pass; the rounding errors are those of moments about the shift."""
    centred = u - shift
    mean = _mean(centred)
    variance = _mean(jnp.square(centred)) - jnp.square(mean)
    return mean + shift, jnp.maximum(variance, 0)  # rounding may take a variance of zero below it


def _centred_moments(u: Array) -> tuple[Array, Array]:
    """Mean and variance of u [..., C] in two passes."""
    mean = _mean(u)
    return mean, _mean(jnp.square(u - mean))


def _mean(u: Array) -> Array:
    return u.mean(tuple(range(u.ndim - 1)))


def _sum(u: Array) -> Array:
    return u.sum(tuple(range(u.ndim - 1)))
