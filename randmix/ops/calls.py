"""Calls that XLA compiles on their own.

XLA:CPU fuses whatever is elementwise into all that reads it: the activation and the padding before a sum of k^2
shifted products into every product, a GELU into every pass of the norm that follows. Where that computes or
moves more than it saves, the piece becomes a call that can't be inlined. An `optimization_barrier` doesn't stop
it. For programs for CPUs alone: elsewhere such a call would keep XLA from fusing what it does well.
"""

import functools
from collections.abc import Callable

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(function: Callable) -> Callable:
    """Makes a function of arrays, with static keyword arguments, a call that XLA compiles on its own."""

    @functools.partial(jax.jit, static_argnums=0)
    @functools.wraps(function)
    def compiled(static, *arrays):
        return function(*arrays, **dict(static))

    @functools.wraps(function)
    def call(*arrays, **static):
        with set_xla_metadata(inlineable="false"):
            return compiled(tuple(static.items()), *arrays)

    return call
