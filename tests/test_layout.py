"""Import rules: imports run downward, and importing randmix imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import randmix

PACKAGE = Path(randmix.__file__).parent
# Each module or package and its allowed imports from randmix, apart from itself.
ALLOWED = {
    "errors": set(),
    "durable": set(),
    "json_files": {"errors"},
    "distributed": {"errors"},
    "masks": set(),
    "ops": {"errors"},
    "filters": {"errors"},
    "sharding": {"errors"},
    "tasks": {"errors"},
    "host": set(),
    "locks": set(),
    "tpu": {"errors"},
    "signals": set(),
    "preemption": {"signals"},
    "progress": set(),
    "cli": {"errors", "host", "signals"},
    "ranges": {"errors"},
    "config": {"errors", "ranges"},
    # cli and plots: prepare and show
    "data": {"cli", "config", "durable", "errors", "plots", "ranges", "sharding", "signals"},
    "models": {"errors", "filters", "ops"},
    "groups": {"errors", "masks", "ranges"},
    "optim": {"errors", "groups"},
    "balls": {"errors"},
    "attacks": {"balls", "errors"},
    "steps": {"masks", "models", "tasks"},
    "checkpoint": {"config", "distributed", "durable", "errors", "json_files", "signals"},
    "artifacts": {
        *("checkpoint", "config", "distributed", "durable", "errors", "json_files", "locks"),
    },
    "trackers": {"errors"},
    "metrics_log": {"checkpoint", "durable", "json_files", "trackers"},
    "plots": {"durable", "errors"},
    "spectrum": {"cli", "errors", "filters", "masks", "plots", "runs"},
    "reproduce": {
        *(
            "artifacts",
            "cli",
            "compiled",
            "config",
            "data",
            "durable",
            "errors",
            "eval_loop",
            "host",
            "json_files",
            "locks",
            "models",
            "plots",
            "preemption",
            "signals",
        ),
        *("ensemble", "robustness", "runs", "spectrum", "train", "unshuffle"),
    },
    "torch_files": {"errors"},
    "torch_weights": {"errors", "models", "torch_files"},
}


def imports(module):
    files = (
        [PACKAGE / f"{module}.py"]
        if (PACKAGE / f"{module}.py").exists()
        else (PACKAGE / module).rglob("*.py")
    )
    if module == "checkpoint":  # its program, `verify`, reads workdirs as all readers do
        files = [file for file in files if file.name != "__main__.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "randmix":
                names = (
                    [node.module]
                    if "." in node.module
                    else [f"randmix.{a.name}" for a in node.names]
                )
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names if a.name.split(".")[0] == "randmix"]
            else:
                continue
            yield from (name.split(".")[1] for name in names if "." in name)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_run_downward(module):
    assert set(imports(module)) - {module, "__version__"} <= ALLOWED[module]


def test_importing_randmix_imports_nothing_heavy():
    code = (
        "import randmix, randmix.cli, randmix.config, randmix.data.catalog, sys;"
        "print([m for m in ('jax', 'flax', 'tensorflow', 'tensorflow_datasets', "
        "'orbax', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "load" in dir(randmix)
    with pytest.raises(AttributeError, match="module 'randmix' has no attribute 'lode'"):
        _ = randmix.lode
