"""Models of the user's own: any Linen or nnx module, with the interface of `randmix.models`.

An `OwnModel` has the ``init`` and ``apply`` of a Linen module whose parameters are in the
collections of their roles, which the training step, the masks and the attacks rely on. The module
itself keeps its own variables; they are moved on the way in and out:

    the module's                      the model's
    params/encoder/query/kernel       spatial/encoder/query/kernel
    batch_stats/encoder/norm/mean     batch_stats/encoder/norm/mean
    cache/encoder/keys                batch_stats/cache/encoder/keys
"""

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from randmix import masks, parts
from randmix.errors import UserError
from randmix.models.functional import (
    PARAMS,
    STATE,
    Flat,
    Functional,
    Linen,
    Path,
    trained_collections,
)

KEY = "config.model"
# Arguments that a config need not have: they follow from the data set and config.precision.
FILLED = ("num_classes", "image_shape", "mean", "std", "dtype")
_RESERVED = ("parent", "name", "rngs")
_NO_ROLE = "-"


@dataclasses.dataclass(frozen=True, eq=False)
class OwnModel:
    """A model of the user's own.

    Attributes:
        name: MODULE:CLASS.
        part: the class, of a Linen or an nnx module.
        arguments: those that the class is called with.
        roles: the config's, role -> selector; if empty, those of the attribute ``roles`` of the
            module, or else its collections.
    """

    name: str
    part: type
    arguments: Mapping[str, Any]
    roles: Mapping[str, str]

    @property
    def num_classes(self) -> int | None:
        """The number of classes, if it is one of the class's arguments."""
        return self.arguments.get("num_classes")

    def clone(self, **changed: Any) -> "OwnModel":
        """Returns the model with other values of those arguments that the class takes."""
        taken = parts.parameters(self.part)
        changed = {name: value for name, value in changed.items() if name in taken}
        return dataclasses.replace(self, arguments={**self.arguments, **changed})

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Returns the initial variables: parameters by role, and the state ``batch_stats``.

        Args:
            key: typed key.
            images: [N, H, W, C] float32.
        """
        return _moved(self._functional.init(key, images), self._places(images.shape[1:]))

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        *,
        train: bool = False,
        mutable: Any = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Returns the outputs, float32, and with ``mutable`` also ``{"batch_stats": ...}``.

        Args:
            variables: as from ``init``.
            images: [N, H, W, C] float32 in [0, 1].
            train: whether dropout and batch statistics are those of training.
            mutable: any true value, as in Linen.
            rngs: {"dropout": typed key}, needed if the module draws in training; in evaluation,
                what it draws is always the same.
        """
        places = self._places(images.shape[1:])
        back = {there: here for here, there in places.items()}
        own = {back[path]: leaf for path, leaf in flatten_dict(dict(variables)).items()}
        key = (rngs or {}).get("dropout") if train else jax.random.key(0)
        outputs, state = self._functional.apply(own, images, train, key)
        outputs = jax.tree.map(
            lambda x: (
                jnp.asarray(x, jnp.float32)
                if jnp.issubdtype(jnp.result_type(x), jnp.floating)
                else x
            ),
            outputs,
        )
        state = {STATE: _moved(state, places)[STATE]}
        return (outputs, state) if mutable else outputs

    def check_image_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raises a UserError if the module can't process images [N, H, W, C] of this shape."""
        images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        with parts.running(f"{KEY}.name", self.name):
            variables = jax.eval_shape(self.init, key, images)
            for train in (False, True):
                apply = functools.partial(self.apply, train=train, mutable=True)
                _, after = jax.eval_shape(
                    lambda v, x, k, apply=apply: apply(v, x, rngs={"dropout": k}),
                    *(variables, images, key),
                )
        if changed := sorted(_forms(variables[STATE]) ^ _forms(after[STATE])):
            raise UserError(
                f"{KEY}.name: {self.name} changes the shape of its state in training "
                f"({changed[0][0]}), but a step's must fit the next; sow values into "
                "'intermediates', or give `sow` a reduce_fn and an init_fn"
            )

    @functools.cached_property
    def _functional(self) -> Functional:
        kind: Callable[..., Functional] = Linen
        if not issubclass(self.part, nn.Module):
            from randmix.models.functional_nnx import Nnx as kind  # nnx takes a while to import
        with parts.running(f"{KEY}.name", self.name):
            return kind(functools.partial(self.part, **self.arguments))

    @functools.cached_property
    def _places(self) -> Callable[[tuple[int, ...]], Mapping[Path, Path]]:
        """Image shape -> where the model's variables have each of the module's."""

        @functools.cache
        def places(image_shape: tuple[int, ...]) -> Mapping[Path, Path]:
            images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
            key = jax.eval_shape(lambda: jax.random.key(0))
            leaves = jax.eval_shape(self._functional.init, key, images)
            collections = {path[0] for path in leaves}
            trained = trained_collections(collections)
            short = trained == {PARAMS}
            inside = {p: p[1:] if short else p for p in leaves if p[0] in trained}
            state = {p: p if p[0] == STATE else (STATE, *p) for p in leaves if p not in inside}
            roles = self._roles_of({inside[p]: leaves[p] for p in inside})
            if roles is None:
                return state | {p: p for p in inside}
            return state | {p: (roles[q], *q) for p, q in inside.items()}

        return places

    def _roles_of(self, leaves: Flat) -> dict[Path, str] | None:
        """The role of each parameter; None if the collections are the roles."""
        given = self.roles or getattr(self._functional, "roles", None) or {}
        key = "config.roles" if self.roles else f"the attribute roles of {self.name}"
        if not given:
            return None
        rules = [*given.items(), (_NO_ROLE, masks.everything)]
        try:
            labels = masks.labels(unflatten_dict(leaves), rules, strict=True)
        except masks.MaskError as error:
            raise UserError(f"{key}: {error}") from error
        roles = typing.cast(dict[Path, str], flatten_dict(labels))
        if left := ["/".join(path) for path, role in roles.items() if role == _NO_ROLE]:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UserError(
                f"{key}: no role selects {left[0]!r}{more}; give one more role, last, with the "
                "selector 'everything'"
            )
        return roles


def _forms(tree: Any) -> set[tuple[str, Any]]:
    """The path, shape and dtype of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {(jax.tree_util.keystr(path), (x.shape, str(x.dtype))) for path, x in leaves}


def _moved(variables: Flat, places: Mapping[Path, Path]) -> dict[str, Any]:
    """The leaves at their places, nested."""
    moved = unflatten_dict({places[path]: leaf for path, leaf in variables.items()})
    return {STATE: {}, **moved}


def find(name: str, folder: str | None) -> type:
    """Imports the class of a model.

    Args:
        name: MODULE:CLASS.
        folder: see ``parts.find``.

    Raises:
        UserError: there is none, or it isn't the class of a Linen or nnx module.
    """
    part = parts.find(f"{KEY}.name", name, folder)
    if not inspect.isclass(part) or not (issubclass(part, nn.Module) or _is_nnx(part)):
        kind = "class" if inspect.isclass(part) else type(part).__name__
        raise UserError(
            f"{KEY}.name: got {name!r}, a {kind}, allowed is a class derived from "
            "flax.linen.Module or flax.nnx.Module"
        )
    return part


def _is_nnx(part: type) -> bool:
    nnx = sys.modules.get("flax.nnx")  # a class derived from one of its classes has imported it
    return nnx is not None and issubclass(part, nnx.Module)


def complete(name: str, folder: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a model for its config: those given, and the class's defaults.

    Raises:
        UserError: as in ``parts.arguments``.
    """
    part = find(name, folder)
    values = parts.arguments(KEY, name, part, given, filled=FILLED, reserved=_RESERVED)
    taken = parts.parameters(part)
    # None, until the data set is known, which records of its run then keep.
    return {key: None for key in ("mean", "std") if key in taken} | values


def build(
    name: str,
    *,
    folder: str | None,
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    roles: Mapping[str, str],
) -> OwnModel:
    """Builds a model of the user's own.

    Args:
        name: MODULE:CLASS.
        folder: see ``parts.find``.
        given: arguments by name.
        known: values of `FILLED`, for the arguments that the class takes and that aren't given.
        roles: role -> selector, or {} to leave them to the module.

    Raises:
        UserError: see ``find``; or the class has no argument for a dtype other than float32.
    """
    part = find(name, folder)
    taken = parts.parameters(part)
    if known["dtype"] != jnp.float32 and "dtype" not in taken:
        raise UserError(
            f"config.precision: got {jnp.dtype(known['dtype']).name!r}, allowed is 'float32' with "
            f"{name}, which has no argument dtype"
        )
    filled = {key: value for key, value in known.items() if key in taken and key not in given}
    return OwnModel(name, part, {**filled, **given}, dict(roles))
