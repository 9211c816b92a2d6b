"""Import rules: imports run downward, and importing randmix imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import randmix

PACKAGE = Path(randmix.__file__).parent
# From the bottom up. A module imports from its own package and from the layers below.
LAYERS = (
    {"errors", "__version__"},
    {"masks", "ops"},
    {"ranges"},
    {"config"},
    {"runtime"},
    {"models"},
    {"data"},
    {"attacks"},
    {"workdir"},
    {"training"},
    {"analysis"},
    {"reproduce"},
    {"evaluate", "convert", "train"},
    {"commands"},
    {"main"},
)
ALONE = {"masks"}  # imports nothing of randmix


def imports(file):
    """Yields the package or module at the top of randmix that each import of a file names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "randmix":
            module = node.module.split(".")[1:2]
            yield from module or (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                root, *rest = alias.name.split(".")
                if root == "randmix":
                    yield from rest[:1]


@pytest.mark.parametrize("unit", sorted(set.union(*LAYERS) - {"__version__"}))
def test_imports_run_downward(unit):
    one = PACKAGE / f"{unit}.py"
    files = [one] if one.exists() else (PACKAGE / unit).rglob("*.py")
    got = {name for file in files for name in imports(file)} - {unit}
    level = next(i for i, layer in enumerate(LAYERS) if unit in layer)
    below = set() if unit in ALONE else set.union(set(), *LAYERS[:level])
    assert got <= below


def test_every_unit_has_its_layer():
    units = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert units - {"__init__", "__main__", "__pycache__"} == set.union(*LAYERS) - {"__version__"}


def test_training_imports_no_matplotlib():
    code = "import randmix.train, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_importing_randmix_imports_nothing_heavy():
    code = (
        "import randmix, randmix.commands, randmix.main, randmix.data.catalog, sys;"
        "print([m for m in ('jax', 'flax', 'tensorflow', 'tensorflow_datasets', "
        "'orbax', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "load" in dir(randmix)
    with pytest.raises(AttributeError, match="module 'randmix' has no attribute 'lode'"):
        _ = randmix.lode
