"""Labels, the two halves of a partition, and the package as a whole."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from mask_cases import (
    FLOATS,
    Module,
    NnxModel,
    Pair,
    Unkeyed,
    chosen,
    model_params,
    nested,
    selectors,
    trees,
)

from randmix import masks
from randmix.masks import MODES, MaskError, depth, everything, fraction, leaf, path, role

REPOSITORY = pathlib.Path(__file__).parents[1]

# Labels


@given(trees, st.lists(selectors, max_size=3))
def test_every_leaf_gets_the_label_of_the_first_rule_that_selects_it(flat, given_selectors):
    tree = nested(flat)
    rules = [(f"rule {index}", s) for index, s in enumerate(given_selectors)] + [
        ("rest", everything)
    ]
    labels = masks.labels(tree, rules, strict=False)
    assert jax.tree.structure(labels) == jax.tree.structure(tree)
    firsts = [next(label for label, s in rules if s(p, flat[p])) for p in masks.paths(tree)]
    assert jax.tree.leaves(labels) == firsts
    for selector in given_selectors:
        assert jax.tree.leaves(masks.mask(tree, selector, strict=False)) == [
            selector(p, flat[p]) for p in masks.paths(tree)
        ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("train", "role('spacial')"), ("freeze", everything)],
            "rule 1 ('train', role('spacial')) matches no leaf: no role is 'spacial', "
            "the nearest is 'spatial'",
        ),
        (
            [("train", everything), ("slow", leaf("kernle"))],
            "rule 2 ('slow', leaf('kernle')) matches no leaf: no leaf is named 'kernle', "
            "the nearest is 'kernel'",
        ),
        (
            [("train", path("spatial/stem/kernel2"))],
            "rule 1 ('train', path('spatial/stem/kernel2')) matches no leaf: "
            "no path matches 'spatial/stem/kernel2', the nearest is 'spatial/stem/kernel'",
        ),
        (
            [("train", depth(3, None))],
            "rule 1 ('train', depth(3, None)) matches no leaf: the depths here are 0 to 2",
        ),
        (
            [("train", role("head") & depth(0, 1))],
            "rule 1 ('train', role('head') & depth(0, 1)) matches no leaf: "
            "no leaf fits the whole of it",
        ),
        (
            [("train", FLOATS)],
            "rule 1 ('train', where('floats')) matches no leaf: "
            "where('floats') matches none of the 22 leaves, "
            "the first is 'channel/block_00/pointwise/bias'",
        ),
        (
            [("train", ~role("norm")), ("slow", leaf("scale"))],
            "no rule covers 'norm/block_00/depthwise_norm/bias' and 2 more: "
            "end the rules with ('freeze', everything)",
        ),
        (
            [("train", "~path('head/classifier/bias')")],
            "no rule covers 'head/classifier/bias': end the rules with ('freeze', everything)",
        ),
        (
            {"train": everything},
            "rules must be a list of (label, selector) pairs, got {'train': everything}",
        ),
        ("everything", "rules must be a list of (label, selector) pairs, got 'everything'"),
        ([everything], "rule 1 must be a pair (label, selector), got everything"),
        ([("", everything)], "rule 1: the label must be a non-empty str, got ''"),
        ([("train", 3)], "rule 1 ('train'): expected a selector, a fraction or a text, got 3"),
        (
            [("train", "rôle('a')")],
            "rule 1 ('train'): unknown selector 'rôle', did you mean role(name)?",
        ),
        (
            [("freeze", fraction(everything, 0.5))],
            "rule 1 ('freeze'): a fraction names the learned share, label it 'train'",
        ),
    ],
)
def test_messages_of_labels(rules, message):
    with pytest.raises(MaskError) as caught:
        masks.labels(model_params(), rules)
    assert str(caught.value) == message


def test_messages_of_small_trees():
    for tree, message in [
        ({}, "rule 1 ('train', everything) matches no leaf: the tree has no leaves"),
        ({"a": 1}, "rule 1 ('train', depth(0, 1)) matches no leaf: no leaf has a depth"),
    ]:
        with pytest.raises(MaskError) as caught:
            masks.labels(tree, [("train", depth(0, 1) if tree else everything)])
        assert str(caught.value) == message


def test_a_rule_whose_leaves_were_all_taken_is_fine():
    labels = masks.labels(model_params(), masks.trainable("full"))
    assert set(jax.tree.leaves(labels)) == {"train"}


def test_what_each_mode_trains():
    params = model_params()
    frozen = {
        mode: {p.split("/")[0] for p in masks.paths(params, ~selector)}
        for mode, selector in MODES.items()
    }
    assert frozen == {
        "full": set(),
        "chans": {"spatial"},
        "space": {"channel"},
        "floor": {"spatial", "channel"},
    }
    assert masks.trainable("space | late", names={"late": depth(2, None)}) == [
        ("train", ~role("channel") | depth(2, None)),
        ("freeze", everything),
    ]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (flax.core.freeze({"spatial": {"Conv_0": {"kernel": 1.0}}}), ["spatial/Conv_0/kernel"]),
        ([1.0, (2.0, {"a": 3.0})], ["0", "1/0", "1/1/a"]),
        ({"a": Pair(1.0, None)}, ["a/kernel"]),
        (Module(Pair(1.0, 2.0), 3.0), ["spatial/kernel", "spatial/bias", "value"]),
        ({"m": Unkeyed(1.0, 2.0)}, ["m/0", "m/1"]),
        ({"k": nn.Partitioned(np.ones(2), ("x",))}, ["k"]),
        (nnx.state(NnxModel(), nnx.Param), None),
        (nnx.split(NnxModel(), nnx.Param, ...)[1], None),
        (1.0, [""]),
    ],
)
def test_paths_of_all_kinds_of_trees(tree, expected):
    linear = [
        f"{place}/{name}" for place in ("layers/0", "layers/1") for name in ("bias", "kernel")
    ]
    of_nnx = [*linear, "norm/bias", "norm/scale", "spatial/bias", "spatial/kernel"]
    assert masks.paths(tree) == (of_nnx if expected is None else expected)
    labels = masks.labels(tree, [("train", everything)])
    assert jax.tree.structure(labels) == jax.tree.structure(tree)


def test_paths_of_key_types_of_others():
    class StrangeKey:
        def __str__(self):
            return "['odd']"

    jax.tree_util.register_pytree_with_keys(
        StrangeNode := type("StrangeNode", (), {}),
        lambda node: (((StrangeKey(), 1.0),), None),
        lambda _, children: StrangeNode(),
    )
    assert masks.paths({"a": StrangeNode()}) == ["a/odd"]


def test_a_selector_is_an_nnx_filter():
    model = NnxModel()
    _, late, rest = nnx.split(model, role("layers") & depth(1, None), ...)
    assert masks.paths(late) == ["layers/1/bias", "layers/1/kernel"]
    assert len(masks.paths(nnx.state(model, ~leaf("kernel") & role("spatial")))) == 1
    assert len(jax.tree.leaves(rest)) == 8


def test_apply_changes_the_selected_leaves_only():
    params = model_params()
    zeroed = masks.apply(params, role("spatial") & leaf("kernel"), np.zeros_like)
    assert masks.diff(params, zeroed).moved == masks.paths(params, role("spatial") & leaf("kernel"))


@pytest.mark.parametrize(
    "tree", [model_params(), nnx.state(NnxModel(), nnx.Param)], ids=["dict", "nnx"]
)
def test_multi_transform_trains_what_is_labelled(tree):
    tree = jax.tree.map(jnp.asarray, tree)
    labels = masks.labels(tree, masks.trainable("chans"))
    optimizer = optax.multi_transform(
        {"train": optax.sgd(0.1, momentum=0.9), "freeze": optax.set_to_zero()}, labels
    )
    state = optimizer.init(tree)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), state, tree)
    moved = masks.diff(tree, optax.apply_updates(tree, updates)).moved
    assert moved == [p for p in masks.paths(tree) if not p.startswith("spatial/")]
    learned, _ = masks.partition(tree, labels)
    assert sum(x.size for x in jax.tree.leaves(state)) == sum(
        x.size for x in jax.tree.leaves(learned)
    )


# Partition and merge


@given(trees, selectors)
def test_merge_is_the_inverse_of_partition(flat, selector):
    tree = nested(flat)
    labels = jax.tree.map(
        lambda on: "train" if on else "freeze", masks.mask(tree, selector, strict=False)
    )
    learned, frozen = masks.partition(tree, labels)
    assert set(masks.paths(learned)) == chosen(selector, flat)
    assert set(masks.paths(frozen)) == chosen(~selector, flat)
    assert masks.merge(learned, frozen) == masks.merge(frozen, learned) == tree


@pytest.mark.parametrize(
    "tree",
    [
        model_params(),
        nnx.state(NnxModel(), nnx.Param),
        [1.0, (2.0, None)],
        Module(Pair(1.0, None), 3.0),
    ],
    ids=["dict", "nnx", "list", "dataclass"],
)
def test_partition_keeps_the_structure(tree):
    rules = [("freeze", "leaf('kernel') | depth(0, 1)"), ("train", everything)]
    labels = masks.labels(tree, rules, strict=False)
    again = masks.merge(*masks.partition(tree, labels))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert not masks.diff(tree, again).moved


def test_gradients_of_the_trainable_half_inside_jit():
    params = jax.tree.map(
        jnp.asarray, {"spatial": {"kernel": np.full(2, 3.0)}, "head": {"kernel": np.full(2, 5.0)}}
    )
    labels = masks.labels(params, masks.trainable("chans"))

    @jax.jit
    def gradient(params):
        learned, frozen = masks.partition(params, labels)

        def loss(learned):
            both = masks.merge(learned, frozen)
            return (both["spatial"]["kernel"] * both["head"]["kernel"]).sum()

        return jax.grad(loss)(learned)

    result = gradient(params)
    assert result["spatial"]["kernel"] is None
    np.testing.assert_array_equal(result["head"]["kernel"], [3.0, 3.0])


def test_messages_of_partition_and_merge():
    tree = {"a": 1.0, "b": {"c": 2.0}}
    for call, message in [
        (
            lambda: masks.partition(tree, {"a": "train"}),
            "labels does not have the parameters' structure: Dict key mismatch; expected keys: "
            "['a', 'b']; present keys: ['a'].",
        ),
        (
            lambda: masks.partition(tree, masks.mask(tree, everything)),
            "a label must be a str, got True: build the tree with masks.labels(params, rules)",
        ),
        (
            lambda: masks.merge(tree, tree),
            "merge expects the two trees of one partition, but both have the leaf 'a'",
        ),
        (
            lambda: masks.merge(tree, {"a": None}),
            "merge expects the two trees of one partition, got two different structures",
        ),
    ]:
        with pytest.raises(MaskError) as caught:
            call()
        assert str(caught.value) == message


# The package


@pytest.mark.slow
def test_settings_of_jax_can_be_made_after_the_import():
    code = (
        "import sys; from randmix import masks; masks.trainable(\"~role('a')\"); "
        "assert 'flax' not in sys.modules; "
        "import jax; jax.config.update('jax_num_cpu_devices', 3); assert jax.device_count() == 3"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


# Modules that no longer can be imported, and what works without them.
ALONE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refused())
from randmix import masks

tree = {{"spatial": {{"block_0": {{"kernel": 1.0}}}}, "head": {{"kernel": 1.0}}}}
rules = masks.trainable("~role('spatial') | path('spatial/block_0/bias')")
print(masks.labels(tree, rules, strict=False), masks.paths(tree, masks.depth(0, 1)))
try:
    masks.path(".*/kernel")
except masks.MaskError as error:
    print(error)
"""


@pytest.mark.slow
def test_masks_need_jax_and_optax_only():
    def needed(name):
        """The names of a distribution and of all that it requires."""
        lines = [line for line in metadata.requires(name) or [] if "extra ==" not in line]
        names = {re.split("[^A-Za-z0-9_.-]", line)[0] for line in lines}
        return {name.replace("-", "_")}.union(*map(needed, names))

    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    named = {re.split("[^A-Za-z0-9_-]", line)[0].replace("-", "_") for line in declared}
    others = named - needed("jax") - needed("optax")
    assert {"flax", "google_re2", "ml_collections", "orbax_checkpoint"} <= others
    modules = metadata.packages_distributions()
    refused = {
        module
        for module, distributions in modules.items()
        if {name.replace("-", "_") for name in distributions} & others
    }
    code = ALONE.format(refused=refused)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines() == [
        "{'head': {'kernel': 'train'}, 'spatial': {'block_0': {'kernel': 'freeze'}}} "
        "['spatial/block_0/kernel']",
        "path('.*/kernel') is a regular expression, which needs RE2: run pip install google-re2, "
        "or use role, leaf, depth, where or a full path",
    ]


def test_masks_imports_nothing_else_of_the_project():
    for file in pathlib.Path(masks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("randmix"):
                assert node.module.startswith("randmix.masks.")
