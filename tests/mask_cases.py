"""Trees and random expressions for the tests of randmix.masks."""

import copy
import functools
import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from randmix import masks
from randmix.masks import depth, everything, leaf, nothing, path, role, where

# A model in the project's convention, and trees as other libraries build them


def model_params(width: int = 4) -> dict:
    conv = {"kernel": np.ones((3, 3, width), np.float32), "bias": np.zeros(width, np.float32)}
    dense = {"kernel": np.ones((width, width), np.float32), "bias": np.zeros(width, np.float32)}
    norm = {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    blocks = [f"block_{index:02d}" for index in range(3)]
    return {
        "spatial": {"stem": copy.deepcopy(conv)}
        | {b: {"depthwise": copy.deepcopy(conv)} for b in blocks},
        "channel": {b: {"pointwise": copy.deepcopy(dense)} for b in blocks},
        "norm": {b: {"depthwise_norm": copy.deepcopy(norm)} for b in blocks},
        "head": {"classifier": copy.deepcopy(dense)},
    }


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclass
class Module:  # like an Equinox module
    spatial: Any
    value: Any


@jax.tree_util.register_pytree_node_class
class Unkeyed:  # registered without key paths
    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class NnxModel(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.spatial = nnx.Linear(2, 3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)


class EquinoxModel(eqx.Module):
    spatial: eqx.nn.Conv2d
    layers: list
    head: eqx.nn.MLP  # holds functions too
    name: str = eqx.field(static=True)

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 4)
        self.spatial = eqx.nn.Conv2d(2, 2, 3, key=keys[0])
        self.layers = [eqx.nn.Linear(2, 2, use_bias=i > 0, key=keys[1 + i]) for i in range(2)]
        self.head = eqx.nn.MLP(2, 2, 3, 1, key=keys[3])
        self.name = "net"


equinox_model = functools.cache(EquinoxModel)  # its random keys compile for seconds


# Random trees and random expressions; Python sets evaluate an expression as well

ROLES = ["spatial", "channel", "norm", "head"]
PLACES = ["stem", "block_00", "block_01", "block_07", "layers_3"]
NAMES = ["kernel", "bias", "scale"]
PATHS = [f"{r}/{p}/{n}" for r in ROLES for p in PLACES for n in NAMES]
FLOATS = where(lambda _, value: isinstance(value, float), "floats")
NUMBERS = {"stem": None, "block_00": 0, "block_01": 1, "block_07": 7, "layers_3": 3}

trees = st.dictionaries(st.sampled_from(PATHS), st.sampled_from([0, 1.0]), min_size=1, max_size=12)


def nested(flat: dict) -> dict:
    tree: dict = {}
    for joined, value in flat.items():
        r, p, n = joined.split("/")
        tree.setdefault(r, {}).setdefault(p, {})[n] = value
    return tree


def term(kind: str, argument: Any) -> masks.Selector:
    match kind:
        case "role":
            return role(argument)
        case "leaf":
            return leaf(argument)
        case "path":
            return path(rf"[a-z]+/{argument}/\w+")
        case "depth":
            return depth(*argument)
    return {"everything": everything, "nothing": nothing, "floats": FLOATS}[kind]


def holds(kind: str, argument: Any, joined: str, value: Any) -> bool:
    r, p, n = joined.split("/")
    if kind == "depth":
        low, high = argument
        return NUMBERS[p] is not None and (low or 0) <= NUMBERS[p] < (
            high if high is not None else 99
        )
    plain = {"role": r == argument, "leaf": n == argument, "path": p == argument}
    return {**plain, "everything": True, "nothing": False, "floats": isinstance(value, float)}[kind]


ends = st.none() | st.integers(0, 9)
terms = st.one_of(
    st.tuples(st.just("role"), st.sampled_from(ROLES)),
    st.tuples(st.just("leaf"), st.sampled_from(NAMES)),
    st.tuples(st.just("path"), st.sampled_from(PLACES)),
    st.tuples(st.just("depth"), st.tuples(ends, ends).filter(lambda e: None in e or e[0] <= e[1])),
    st.tuples(st.sampled_from(["everything", "nothing", "floats"]), st.none()),
)
expressions = st.recursive(
    terms,
    lambda inner: st.tuples(st.sampled_from("&|-"), inner, inner) | st.tuples(st.just("~"), inner),
)
OPERATORS = {"&": operator.and_, "|": operator.or_, "-": operator.sub}


def build(expression: tuple) -> masks.Selector:
    match expression:
        case ("~", inner):
            return ~build(inner)
        case (symbol, left, right):
            return OPERATORS[symbol](build(left), build(right))
    return term(*expression)


def by_sets(expression: tuple, flat: dict) -> set:
    match expression:
        case ("~", inner):
            return set(flat) - by_sets(inner, flat)
        case (symbol, left, right):
            return OPERATORS[symbol](by_sets(left, flat), by_sets(right, flat))
    return {joined for joined, value in flat.items() if holds(*expression, joined, value)}


selectors = expressions.map(build)


def chosen(selector: masks.Selector, flat: dict) -> set:
    return set(masks.paths(nested(flat), selector))
