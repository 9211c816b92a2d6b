"""Modules as pure functions of their variables: what they have in common, and Linen's.

Those of nnx are in `functional_nnx`, because nnx takes a while to import.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import linen as nn
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from randmix.models.parameters import ROLES

PARAMS, STATE = "params", "batch_stats"
# The names of an argument of `__call__` by which a module learns that it is trained, or that it
# isn't.
_TRAINING = ("train", "training", "is_training")
_EVALUATING = ("deterministic", "use_running_average")

Path = tuple[str, ...]
Flat = dict[Path, Any]  # leaves by their paths, of which the first component is the collection


class Functional(Protocol):
    """A module as pure functions of its variables."""

    def init(self, key: jax.Array, images: jax.Array) -> Flat:
        """Returns the initial variables."""
        ...

    def apply(
        self, variables: Flat, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[Any, Flat]:
        """Returns the outputs, and the variables that aren't parameters, which may have changed."""
        ...


class Linen:
    """A Linen module as a `Functional`."""

    def __init__(self, make: Callable[[], nn.Module]):
        self.module = make()
        self.roles = getattr(self.module, "roles", None)

    def init(self, key: jax.Array, images: jax.Array) -> Flat:
        """See `Functional`."""
        init: Callable[..., Any] = self.module.init
        variables = init(key, images, **mode(self.module.__call__, train=False))
        return _flat(meta.unbox(dict(variables)))

    def apply(
        self, variables: Flat, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[Any, Flat]:
        """See `Functional`."""
        trained = trained_collections({path[0] for path in variables})
        state = {path[0] for path in variables} - trained
        # Linen takes the key of "params" for every stream of keys that isn't given.
        apply: Callable[..., Any] = self.module.apply
        outputs, updated = apply(
            unflatten_dict(variables),
            images,
            **mode(self.module.__call__, train),
            mutable=[*state] if train else [],
            rngs=None if key is None else {"params": key},
        )
        updated = _flat(meta.unbox(dict(updated)))
        # A module may have recorded more than it started with.
        return outputs, {
            path: updated.get(path, leaf) for path, leaf in variables.items() if path[0] in state
        }


def trained_collections(collections: set[str]) -> set[str]:
    """The collections that hold parameters.

    They are ``params`` and those named as the roles of `randmix.models`; a module that has none of
    them has parameters in all but ``batch_stats``.
    """
    return collections & {PARAMS, *ROLES} or collections - {STATE}


def mode(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The arguments that tell a module's ``__call__`` whether it is trained."""
    taken = inspect.signature(call).parameters
    return {name: train for name in _TRAINING if name in taken} | {
        name: not train for name in _EVALUATING if name in taken
    }


def _flat(variables: Any) -> Flat:
    return typing.cast(Flat, flatten_dict(variables))
