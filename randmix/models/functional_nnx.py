"""nnx modules of the user's own; a module apart, because nnx takes a while to import."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from randmix.models.functional import PARAMS, STATE, Flat, mode


class Nnx:
    """An nnx module as a `Functional`; its parameters are its ``nnx.Param``."""

    def __init__(self, make: Callable[..., nnx.Module]):
        self.make = make
        module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        self.roles = getattr(module, "roles", None)
        self.graph, *self.states = _split(module)

    def init(self, key: jax.Array, images: jax.Array) -> Flat:
        """See `Functional`; the images aren't needed."""
        _, params, _, rest = _split(self.make(rngs=nnx.Rngs(key)))
        return _values(params, PARAMS) | _values(rest, STATE)

    def apply(
        self, variables: Flat, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[Any, Flat]:
        """See `Functional`."""
        params, rngs, rest = self.states
        if key is None:
            if jax.tree.leaves(rngs):
                raise ValueError("the module draws in training: give rngs={'dropout': key}")
            key = jax.random.key(0)
        module = nnx.merge(
            self.graph,
            _replaced(params, PARAMS, variables),
            _seeded(rngs, key),
            _replaced(rest, STATE, variables),
        )
        (module.train if train else module.eval)()
        outputs = module(images, **mode(module.__call__, train))  # pyright: ignore[reportCallIssue]
        *_, after = _split(module)
        after = _values(after, STATE)
        state = {path: leaf for path, leaf in variables.items() if path[0] == STATE}
        # A module may have recorded more than it started with.
        return outputs, {path: after[path] if train else leaf for path, leaf in state.items()}


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """The graph, the parameters, the random states and everything else."""
    graph, params, rngs, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return graph, params, rngs, rest


def _values(state: Any, collection: str) -> Flat:
    return {(collection, *map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def _replaced(state: Any, collection: str, variables: Flat) -> Any:
    """A state with the values of a collection."""
    return nnx.from_flat_state(
        (path, leaf.replace(variables[collection, *map(str, path)]))
        for path, leaf in nnx.to_flat_state(state)
    )


def _seeded(state: Any, key: jax.Array) -> Any:
    """Random states at their start, with a key of their own each."""

    def start(i: int, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.fold_in(key, i), leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return nnx.from_flat_state(
        (path, leaf.replace(start(i, leaf)))
        for i, (path, leaf) in enumerate(nnx.to_flat_state(state))
    )
