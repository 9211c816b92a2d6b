"""The wheel alone, without the checkout: configs/ and the presets travel with it."""

import os
import subprocess
import sys

import command
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the wheel's files; the dependencies are those of the tests."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run(
        [*pip, "wheel", "--no-deps", f"--wheel-dir={wheels}", command.REPOSITORY], check=True
    )
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder}", wheel], check=True)
    return folder


def run(installed, empty, *arguments):
    """Runs Python in an empty folder; the wheel's randmix precedes a checkout's."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_shipped_config_trains_in_an_empty_folder(installed, tmp_path):
    digits = "--config=configs/digits.py:tiny"
    done = run(installed, tmp_path, "-m", "randmix.main", digits, "--config.steps=3")
    assert done.returncode == 0, done.stderr
    assert f"config: {installed}/randmix/configs/digits.py:tiny\n" in done.stdout
    (workdir,) = (tmp_path / "runs").iterdir()
    assert workdir.name.startswith("digits-tiny-")
    assert (workdir / "result.json").exists()


def test_a_preset_runs_in_an_empty_folder(installed, tmp_path):
    # A preset is made of all recipes, whatever is run of it.
    smoke = ("--preset=smoke", "--experiments=E1,E9,E11", "--seeds=1", "--workdir=a")
    done = run(installed, tmp_path, "-m", "randmix", "reproduce", *smoke)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "report" / "index.html").exists()


def test_the_recipes_are_the_checkouts(installed, tmp_path):
    code = "from randmix import config; print(config.RECIPES)"
    assert run(installed, tmp_path, "-c", code).stdout == f"{installed}/randmix/configs\n"
    shipped, ours = installed / "randmix" / "configs", command.REPOSITORY / "configs"
    files = {path.name: path.read_text() for path in ours.glob("*.py")}
    assert {path.name: path.read_text() for path in shipped.glob("*.py")} == files
