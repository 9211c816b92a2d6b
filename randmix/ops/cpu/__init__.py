"""Forms of the operators for XLA:CPU, and calls that it compiles separately instead of fusing.

XLA:CPU fuses elementwise operations into every consumer: the activation and the padding before a
sum of k^2 shifted products into each product, a GELU into each pass of the following norm. Where
that computes or moves more than it saves, the piece becomes a call that can't be inlined; an
`optimization_barrier` doesn't prevent the fusion. Only for programs that run on CPUs: on other
platforms such a call would prevent useful fusions.
"""

import functools
from collections.abc import Callable

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(function: Callable) -> Callable:
    """Wraps a function of arrays and static keyword arguments in a call that XLA doesn't inline."""

    @functools.partial(jax.jit, static_argnums=0)
    @functools.wraps(function)
    def compiled(static, *arrays):
        return function(*arrays, **dict(static))

    @functools.wraps(function)
    def call(*arrays, **static):
        with set_xla_metadata(inlineable="false"):
            return compiled(tuple(static.items()), *arrays)

    return call
