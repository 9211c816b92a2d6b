"""Parameters declared straight into the collection of their role.

A model's variables are ``{"spatial", "channel", "norm", "head"}``, the parameters by role, and the state
``batch_stats``. Under a role the path names the place: ``spatial/block_03/depthwise/kernel``.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix import filters

ROLES = ("spatial", "channel", "norm", "head")

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


def declare(
    module: nn.Module, role: str, name: str, init: Initializer, shape: tuple[int, ...]
) -> jax.Array:
    """Declares, or reads, the float32 parameter ``name`` of ``module`` in the collection ``role``.

    The key of the initial value is the "params" key folded with the crc32 of the parameter's path, so that
    adding a parameter, or asking in another order, moves no other one's value.

    Raises:
        ValueError: a value of another shape was given to ``apply``, which Linen itself doesn't check.
    """
    path = "/".join((role, *module.path, name))

    def initial_value() -> jax.Array:
        # The root's own key: make_rng would count the calls.
        root = module.scope.root.rngs["params"].as_jax_rng()
        return init(jax.random.fold_in(root, zlib.crc32(path.encode())), shape, jnp.float32)

    value = module.variable(role, name, initial_value).value
    if value.shape != shape:
        raise ValueError(f"{path}: got shape {value.shape}, expected {shape}")
    return value


def uniform_fan_in(fan_in: int) -> Initializer:
    """PyTorch's default: uniform in +-1/sqrt(fan_in), for a kernel and for its bias."""
    return lambda key, shape, dtype: filters.uniform_fan_in(key, shape, fan_in, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """0 everywhere."""
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """1 everywhere."""
    return jnp.ones(shape, dtype)
