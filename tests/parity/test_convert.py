"""Conversion of PyTorch weights to workdirs, from Python and from the command line."""

import json

import command
import jax
import numpy as np
import pytest
from etils import epath
from safetensors import numpy as safetensors
from torch_convmixers import arrays

import randmix
from randmix import convert, masks
from randmix.errors import UserError
from randmix.workdir import artifacts, manifest

pytestmark = pytest.mark.slow


def program(*arguments):
    return command.run("randmix convert", *arguments)


def test_the_command_line_makes_a_workdir_that_loads(tmp_path):
    safetensors.save_file(arrays(patch_size=2, activation="relu"), tmp_path / "a.safetensors")
    workdir = tmp_path / "run"
    flags = (
        "--activation=relu",
        "--mean=0.3",
        "--std=0.35",
        "--data=digits",
        f"--workdir={workdir}",
    )
    done = program(tmp_path / "a.safetensors", *flags)
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        f"{workdir}: ConvMixer-6/2, kernel 3, patch 2, relu, 1 channel, 10 classes, "
        "364 parameters\n"
    )
    expected_model, expected = randmix.convmixer_from_torch(
        tmp_path / "a.safetensors", activation="relu", mean=(0.3,), std=(0.35,)
    )
    run = randmix.load(workdir)
    assert (run.step, run.config.data.name, run.config.mode) == (0, "digits", "full")
    assert not masks.diff(expected, jax.device_get(run.variables)).moved
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    np.testing.assert_array_equal(
        run.model.apply(run.variables, images), expected_model.apply(expected, images)
    )
    origin = json.loads((workdir / artifacts.ORIGIN).read_text())
    assert origin["file"] == "a.safetensors"
    assert len(origin["sha256"]) == 64
    assert "spatial/stem/kernel" in (workdir / "masks.txt").read_text()

    again = program(tmp_path / "a.safetensors", *flags)
    assert (again.status, again.out) == (2, "")
    assert again.err == f"randmix: {workdir}: isn't an empty folder; give another --workdir\n"


def test_a_model_of_no_data_set_loads_too(tmp_path):
    model, variables = randmix.convmixer_from_torch(
        arrays(channels=5, num_classes=77, patch_size=3)
    )
    convert.write_run(tmp_path / "run", model, variables)
    run = randmix.load(tmp_path / "run")
    assert run.config.data.name is None
    assert run.model.num_classes == 77
    assert not masks.diff(variables, jax.device_get(run.variables)).moved
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"]["kernel_size"] = 5
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"this run's \(model.kernel_size: 3 -> 5\); put back"):
        randmix.load(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "0"
    (folder / manifest.FILE).unlink()
    manifest.write(epath.Path(folder), {"step": 0})  # as earlier versions did
    with pytest.raises(
        UserError, match=r"depthwise/kernel: got shape \(3, 3, 6\), expected \(5, 5, 6\)\)"
    ):
        randmix.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "sizes", "message"),
    [
        ("cifar10", {}, "data set cifar10: got 3 channels, allowed 1, as in the weights"),
        (
            "digits",
            {"num_classes": 9},
            "data set digits: got 10 classes, allowed 9, as in the weights",
        ),
        (
            "digits",
            {"patch_size": 3},
            "patch_size: got 3, which doesn't divide the image's 8 x 8 pixels",
        ),
        ("digit", {}, "no data set is named 'digit'; there are: digits, "),
    ],
)
def test_a_data_set_that_does_not_fit_the_weights(tmp_path, data, sizes, message):
    with pytest.raises(UserError) as error:
        convert.write_run(
            tmp_path / "run", *randmix.convmixer_from_torch(arrays(**sizes)), data=data
        )
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_mistakes_on_the_command_line(tmp_path):
    done = program("--help")
    assert done.status == 0
    for words in (
        "CHECKPOINT",
        "--workdir",
        "--activation",
        "--mean",
        "--std",
        "--data",
        "randmix.load",
    ):
        assert words in done.out
    safetensors.save_file(arrays(), tmp_path / "a.safetensors")
    for arguments, message in [
        (("a.pth",), "--workdir is missing; give one, for example --workdir=runs/converted"),
        (
            ("a.pth", "b.pth", "--workdir=x"),
            "expected CHECKPOINT, got a.pth b.pth; see --help",
        ),
        (
            (tmp_path / "a.safetensors", "--workdir=x", "--mean=half", "--std=1"),
            "--mean=half: expected numbers, such as 0.5,0.5,0.5",
        ),
    ]:
        done = program(*arguments)
        assert (done.status, done.out, done.err) == (2, "", f"randmix: {message}\n")
