"""The notebooks run from top to bottom, their claims hold, and their saved outputs are current.

To renew the saved outputs: ``jupyter execute --inplace notebooks/NAME.ipynb``.
"""

import json
import os
import re

import command
import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = command.REPOSITORY / "notebooks"

# Facts behind the text, asserted in the notebook's own kernel after its last cell.
MASKS = """
assert results["full"]["parameters"]["frozen"] == 0
for mode, frozen_role in (("chans", "spatial"), ("space", "channel")):
    unchanged = masks.diff(initial, learned[mode]).unchanged
    assert set(unchanged) == set(masks.paths(initial, f"role('{frozen_role}')")), mode
assert min(results[mode]["metrics"]["test_accuracy"] for mode in ("full", "chans")) > 0.9
assert envelopes[64].min() > envelopes[16].min() > envelopes[1].min()
centre = (slice(192, 320), slice(192, 320))
low = {name: np.square(envelope(bank)[centre]).mean() / np.square(envelope(bank)).mean()
       for name, bank in {"frozen": frozen, "full": full}.items()}
assert low["full"] > low["frozen"]
assert not masks.diff(initial["spatial"], learned["chans"]["spatial"]).moved

# A share of the filters: exactly those in the mask moved, bit for bit.
chosen = masks.channel_masks(spatial, rules)["spatial"]
for name, tree in initial["spatial"].items():
    trees = (tree, learned[1 / 8]["spatial"][name], chosen[name])
    for old, new, mask in zip(*map(jax.tree.leaves, trees)):
        moved = (np.asarray(old) != np.asarray(new)).any(tuple(range(old.ndim - 1)))
        assert np.array_equal(moved, mask.ravel()), name

# The notebook's envelope and the library's.
from randmix.analysis.spectrum import envelopes as library
np.testing.assert_allclose(envelope(full), library.envelope(full), rtol=1e-4, atol=1e-5)
"""

ANY_MODEL = """
# The roles used are those proposed, parameter by parameter, and decide what is frozen.
leaves = masks.paths(before, "everything")
assert set(leaves) == {f"{role}/{path}" for path, role in proposal.roles.items()}
for mode, roles in {"full": (), "chans": ("spatial",), "floor": ("spatial", "channel")}.items():
    frozen = {path for path in leaves if path.split("/")[0] in roles}
    assert set(unchanged[mode]) == frozen, mode

rows = randmix.compare("runs", against={"mode": "full"}).set_index("mode")
assert [*rows["seeds"].items()] == [("full", 3), ("chans", 3), ("floor", 3)]
assert (*rows.loc["chans", ["trainable", "parameters"]],) == (18_154 - 4_896, 18_154)
accuracy = rows["test_accuracy"]
assert accuracy[["full", "chans"]].min() > 0.92  # 0.955 at least in 12 seeds each
assert accuracy["floor"] < accuracy["chans"] - 0.1
points = plan(runs, x="step", y="train_loss", hue="mode").rows()
last = {point["mode"]: point["train_loss"] for point in points}  # the last step's
assert last["full"] < last["chans"] < last["floor"]
"""

FACTS = {"masks": MASKS, "any_model": ANY_MODEL}


@pytest.fixture(scope="module", params=FACTS)
def name(request):
    """The notebook's name; each test is about every notebook."""
    return request.param


@pytest.fixture(scope="module")
def executed(name, tmp_path_factory):
    """The notebook after a run in a new kernel, with the facts as its last cell."""
    notebook = read(name)
    notebook.cells.append(nbformat.v4.new_code_cell(f'{FACTS[name]}\nprint("the facts hold")'))
    # A reader's session has JAX's own settings, not those of tests/conftest.py.
    ours = ("JAX_NUMPY_RANK_PROMOTION", "JAX_NUMPY_DTYPE_PROMOTION", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(command.REPOSITORY)}
    client = NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}},
    )
    client.execute(env=environment)
    return notebook


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


@pytest.mark.filterwarnings("ignore")  # Jupyter's own, about its event loop and temporary files
def test_the_notebook_runs_and_its_text_is_true(executed):
    assert executed.cells[-1].outputs[0].text == "the facts hold\n"


@pytest.mark.filterwarnings("ignore")
def test_the_saved_outputs_are_what_it_shows_today_numbers_apart(name, executed):
    for cell, again in zip(read(name).cells, executed.cells, strict=False):
        assert shown(cell) == shown(again), cell.source


def shown(cell):
    """A cell's outputs: their kinds, and text and tables with every number as #."""
    outputs = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text = output.get("text") or data.get("text/html") or data.get("text/plain")
        text = re.sub(r"(?<![a-z_])-?[\d,.]*\d(e[+-]\d+)?", "#", text)
        outputs.append((output.output_type, sorted(data), text.split()))
    return outputs


def test_the_file_is_small_shows_pictures_and_tables_and_no_machine(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert len(text) < 600_000
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    streams = {output["name"] for output in outputs if output["output_type"] == "stream"}
    assert streams == {"stdout"}  # a warning would be shown in red
    assert not [output for output in outputs if output["output_type"] == "error"]
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not re.search(r"/(home|root|tmp|opt|work|Users)/", text)
