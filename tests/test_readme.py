"""Every command and every piece of code in the README runs as it stands there."""

import os
import re
import shlex
from pathlib import Path

import command
import jax.numpy as jnp
import pytest

from randmix import config as configs
from randmix import runs

README = (command.REPOSITORY / "README.md").read_text()
QUICK = (
    "--config.steps=2",
    "--config.batch_size=64",
    "--config.model.width=8",
    "--config.model.depth=1",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
)
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """The lines of the shell blocks, cut at &&, without installations."""
    parts = [
        part.strip()
        for block in blocks("bash")
        for line in block.splitlines()
        for part in line.split("&&")
    ]
    return [part for part in parts if not part.startswith("pip install")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the configs, in which the commands leave their runs."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(command.REPOSITORY / "configs")
    return folder


def test_the_commands_run_in_their_order(checkout):
    if not FASHION_MNIST.exists():
        pytest.skip("Debian's package dataset-fashion-mnist isn't installed")
    ran = []
    for line in commands():
        if line == "pytest":
            continue
        python, dash_m, module, *arguments = shlex.split(line)
        assert (python, dash_m) == ("python", "-m"), line
        if line == "python -m randmix.data.prepare fashion_mnist":
            arguments.append(f"--manual_dir={FASHION_MNIST}")  # there is no network here
        if module == "randmix.main":
            arguments += QUICK
        done = command.run(module, *arguments, cwd=checkout)
        assert done.status == 0, (line, done.err)
        ran.append(module)
    assert ran.count("randmix.main") >= 4
    assert ran.count("randmix.data.prepare") == 2


def test_the_code_runs_after_the_commands(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    load, mask, groups = blocks("python")
    names = {"images": jnp.zeros((2, 8, 8, 1))}
    exec(load, names)
    assert names["logits"].shape == (2, 10)
    exec(mask, {})
    assert "spatial/block_04/depthwise/kernel" in capsys.readouterr().out
    config = configs.default()
    exec(groups, {"config": config})
    parts = runs.assemble(config)
    assert [phase.start_step for phase in parts.phases] == [0, 5 * parts.steps_per_epoch]


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (command.REPOSITORY / name).exists(), name
    rows = re.findall(r"^\| (`[^|]*`) \|", README[README.index("## Layout") :], re.MULTILINE)
    for row in rows:
        paths = re.findall(r"`([^`]+)`", row)
        folder = os.path.dirname(paths[0].rstrip("/"))
        for path in paths:
            assert (
                (command.REPOSITORY / path).exists()
                or (command.REPOSITORY / folder / path).exists()
                or (command.REPOSITORY / "randmix" / path).exists()
            ), path
