"""Selectors that say proposed roles, what is printed of a proposal, and the command."""

import command
import foreign_models as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from randmix import masks, models
from randmix.analysis.roles import Proposal, propose
from randmix.analysis.roles.command import for_variables
from randmix.analysis.roles.selection import shortest
from randmix.models.parameters import ROLES

IMAGES = {"image_shape": (32, 32, 3), "num_classes": 10}


# ---- the selectors


def picked(paths, selector):
    return [path for path in paths if masks.parse(selector)(path)]


@pytest.mark.parametrize(
    ("module", "config"),
    [
        (
            foreign.ViT(),
            {
                "spatial": "path('.*(key|query|embedding).*')",
                "norm": "path('.*(Norm|norm).*')",
                "head": "path('.*head.*')",
                "channel": "everything",
            },
        ),
        (
            foreign.Mixer(),
            {
                "spatial": "path('.*(token|stem).*')",
                "norm": "path('.*Norm.*')",
                "head": "path('Dense_0/.*')",
                "channel": "everything",
            },
        ),
    ],
)
def test_selectors_are_short_and_a_config_takes_them(module, config):
    proposal = propose(foreign.shapes(module), **IMAGES)
    assert proposal.selectors == config
    lines = "\n".join(f'    "{role}": "{text}",' for role, text in config.items())
    assert proposal.config == f"config.roles = {{\n{lines}\n}}"


@pytest.mark.parametrize(
    "module",
    [foreign.ViT(), foreign.Mixer(), foreign.ConvNeXt(), foreign.ResNet()],
    ids=["ViT", "Mixer", "ConvNeXt", "ResNet"],
)
def test_what_is_printed_gives_every_leaf_its_role(module):
    params = foreign.shapes(module)
    proposal = propose(params, **IMAGES)
    names = {}
    exec(proposal.config.replace("config.roles", "roles"), names)
    labels = masks.labels(params, list(names["roles"].items()), strict=True)
    found = {"/".join(path): label for path, label in flatten_dict(labels).items()}
    assert found == proposal.roles
    for role, selector in [*names["roles"].items()][:-1]:  # each by itself
        assert picked(found, selector) == [path for path in found if found[path] == role]


components = st.sampled_from(
    ["a", "ab", "b", "0", "1", "10", "a_1", "a.b", "x(y", "q'", "é", "\\d"]
)


@pytest.mark.slow
@given(
    st.dictionaries(
        st.lists(components, min_size=1, max_size=4).map("/".join),
        st.sampled_from(ROLES),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=200)
def test_any_roles_of_any_paths_can_be_said(roles):
    selectors = shortest(roles, ROLES)
    assert selectors.keys() == set(roles.values())
    for path, role in roles.items():
        asked = (name for name, text in selectors.items() if masks.parse(text)(path))
        assert next(asked) == role


def test_roles_that_no_selector_can_say_are_left_to_the_reader():
    rng = np.random.default_rng(0)
    paths = [f"{name:032x}" for name in rng.integers(0, 2**62, 400).tolist()]
    roles = {path: ROLES[i % 2] for i, path in enumerate(paths)}
    assert shortest(roles, ROLES) == {}
    tree = {path: np.zeros((3, 3, 1, 4) if i % 2 else (1, 1, 4, 4)) for i, path in enumerate(paths)}
    assert propose(tree).config == ""


# ---- what is printed


def test_the_table_has_a_row_for_equal_layers_and_all_leaves_in_its_totals():
    params = foreign.shapes(foreign.ViT(depth=12))
    proposal = propose(params, **IMAGES)
    header, body, footer, _ = proposal.cells()
    assert header == ["path", "shape", "role", "why", "sure", "leaves", "count"]
    rows = {row[0]: row[1:] for row in body}
    assert rows["block_*/attention/query/kernel"] == [
        *("(48, 4, 12)", "spatial", "query or key of attention", "sure", "12", "27,648")
    ]
    assert rows["head/kernel"] == ["(48, 10)", "head", "output layer", "sure", "1", "480"]
    assert sum(int(row[5]) for row in footer) == len(jax.tree.leaves(params))
    counts = {row[2]: int(row[6].replace(",", "")) for row in footer}
    labels = masks.labels(params, list(proposal.selectors.items()))
    for role, count in counts.items():
        sizes = zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
        assert count == sum(leaf.size for leaf, label in sizes if label == role)


def test_its_text_is_the_table_the_doubts_and_the_config():
    proposal = propose({"conv": {"kernel": np.zeros((3, 3, 8, 8))}, "bn": {"scale": np.zeros(8)}})
    assert repr(proposal) == str(proposal)
    table, doubts, config = str(proposal).split("\n\n")
    assert len(table.splitlines()) == 2 + 2 + 1 + 2
    assert doubts.startswith("Not sure:\n- conv/kernel mixes space and channels at once: ")
    assert config == proposal.config
    assert "<table>" in proposal._repr_html_()
    assert "<pre>config.roles = {" in proposal._repr_html_()
    assert str(propose({"bn": {"scale": np.zeros(8)}})).endswith(
        '\n\nconfig.roles = {\n    "norm": "everything",\n}'
    )


def test_values_are_not_read_and_every_kind_of_tree_will_do():
    class Shape:
        shape = (3, 3, 1, 8)

    for tree in ([{"kernel": Shape()}], {"0.kernel": Shape()}, {"a": [Shape()]}):
        assert [*propose(tree).roles.values()] == ["spatial"]
    assert isinstance(propose({}), Proposal)


# ---- the command


def test_a_model_with_roles_declares_them_and_another_gets_a_proposal():
    model = models.build("convmixer", width=8, depth=2, kernel_size=3, patch_size=1, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    declared = for_variables(variables, (8, 8, 1), 10)
    assert {path.split("/")[0]: role for path, role in declared.roles.items()} == {
        role: role for role in ROLES
    }
    assert (declared.selectors, declared.doubts, declared.config) == ({}, [], "")
    foreign_variables = {"params": foreign.shapes(foreign.ResNet()), "batch_stats": {}}
    proposed = for_variables(foreign_variables, (32, 32, 3), 10)
    assert proposed == propose(foreign_variables["params"], **IMAGES)


@pytest.mark.slow
def test_from_the_command_line():
    done = command.run("randmix roles", "--config=configs/digits.py:tiny")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "convmixer has roles:"
    assert lines[2].split() == ["path", "shape", "role", "why", "sure", "leaves", "count"]
    assert command.run("randmix roles").err.startswith("randmix: --config is missing; give one")
