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
    {"parts"},
    {"config"},
    {"runtime"},
    {"models"},
    {"data"},
    {"attacks"},
    {"workdir"},
    {"training"},
    {"experiments"},
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


def test_few_imports_stand_inside_functions():
    def inner(node, inside=False):
        for child in ast.iter_child_nodes(node):
            if inside and isinstance(child, ast.Import | ast.ImportFrom):
                yield ast.unparse(child)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from inner(child, inside or function)

    found = [
        f"{file.relative_to(PACKAGE)}: {line}"
        for file in PACKAGE.rglob("*.py")
        for line in inner(ast.parse(file.read_text()))
    ]
    assert len(found) <= 11, found


def test_no_module_imports_itself_by_a_detour():
    graph = {module(file): set(modules_imported(file)) for file in PACKAGE.rglob("*.py")}
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph  # what is left is in a circle, or above one


def module(file):
    """The dotted name of a file's module."""
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


def modules_imported(file):
    """Yields the modules of randmix that a file imports, not the packages around them."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "randmix":
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = PACKAGE.parent / name.replace(".", "/")
                if path.with_suffix(".py").exists():
                    yield name


@pytest.mark.slow
def test_training_imports_no_matplotlib():
    code = "import randmix.train, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_importing_randmix_imports_nothing_heavy():
    code = (
        "import randmix, randmix.commands, randmix.main, randmix.data.catalog, sys;"
        "print([m for m in ('jax', 'flax', 'tensorflow', 'tensorflow_datasets', "
        "'orbax', 'sklearn', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "load" in dir(randmix)
    with pytest.raises(AttributeError, match="module 'randmix' has no attribute 'lode'"):
        _ = randmix.lode
