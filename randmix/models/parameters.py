"""Declare parameters directly in the collection of their role.

A model's variables are its parameters by role, ``{"spatial", "channel", "norm", "head"}``, and the
state ``batch_stats``. Within a role, the path names the layer:
``spatial/block_03/depthwise/kernel``.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

ROLES = ("spatial", "channel", "norm", "head")

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


@runtime_checkable
class ByPath(Protocol):
    """A family of initialisers, one for each parameter."""

    def at(self, path: str) -> Initializer:
        """Returns the initialiser of the parameter of this path."""
        ...


def declare(
    module: nn.Module, role: str, name: str, init: Initializer, shape: tuple[int, ...]
) -> jax.Array:
    """Declares or reads the float32 parameter ``name`` of ``module`` in the collection ``role``.

    The random key of the initial value is the "params" key folded with the crc32 of the parameter's
    path. Adding a parameter, or declaring them in another order, therefore doesn't change the
    initial values of the others.

    Args:
        module: the Linen module that owns the parameter.
        role: one of `ROLES`.
        name: name of the parameter within the module.
        init: initialiser ``(key, shape, dtype) -> array``, or one `ByPath`.
        shape: shape of the parameter.

    Raises:
        ValueError: the value that was passed to ``apply`` has another shape, which Linen itself
            doesn't check.
    """
    path = "/".join((role, *module.path, name))

    def initial_value() -> jax.Array:
        # The key of the root scope, because make_rng would depend on the number of calls.
        assert module.scope is not None, "a compact method runs in a scope"
        rng: Any = module.scope.root.rngs["params"]  # Flax's hints say PRNGKey; it is a LazyRng
        root = rng.as_jax_rng()
        initializer = init.at(path) if isinstance(init, ByPath) else init
        key = jax.random.fold_in(root, zlib.crc32(path.encode()))
        return initializer(key, shape, jnp.float32)

    value = module.variable(role, name, initial_value).value
    if value.shape != shape:
        raise ValueError(f"{path}: got shape {value.shape}, expected {shape}")
    return value


def uniform_fan_in(fan_in: int) -> Initializer:
    """PyTorch's default for the kernel and the bias of a layer: uniform in +-1 / sqrt(fan_in).

    Args:
        fan_in: number of inputs of each output, at least 1.
    """
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
