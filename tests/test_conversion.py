"""ConvMixer weights to PyTorch's names and back, without PyTorch."""

import json
import math
import os
import struct

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import randmix
from randmix import masks, models
from randmix.errors import UserError
from randmix.models import torch_weights
from randmix.models.torch_weights import NAMINGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    """A small ConvMixer and its variables."""
    model = models.build("convmixer", width=6, depth=2, kernel_size=3, patch_size=2, num_classes=5)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("naming", NAMINGS)
def test_weights_return_bit_for_bit(trained, naming):
    model, variables = trained
    arrays = randmix.convmixer_to_torch(model, variables, naming)
    again, returned = randmix.convmixer_from_torch(arrays, activation="gelu")
    assert not masks.diff(variables, returned).moved
    assert again.clone(dtype=model.dtype) == model


def test_a_file_becomes_a_workdir_that_loads(trained, tmp_path):
    model, variables = trained
    file, workdir = tmp_path / "a.safetensors", tmp_path / "run"
    safetensors.numpy.save_file(randmix.convmixer_to_torch(model, variables, "timm"), file)
    done = command.run("randmix convert", file, "--activation=gelu", f"--workdir={workdir}")
    assert (done.status, done.err) == (0, "")
    assert "ConvMixer-6/2, kernel 3, patch 2, gelu" in done.out
    assert not masks.diff(variables, randmix.load(workdir).variables).moved


def write_safetensors(file, arrays):
    """Writes {name: (safetensors' dtype, shape, bytes)}; the format has a page and many dtypes."""
    header, end = {}, 0
    for name, (dtype, shape, data) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    data = b"".join(data for _, _, data in arrays.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refusal(source):
    """The one-line message about a source."""
    with pytest.raises(UserError) as caught:
        randmix.convmixer_from_torch(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


FLOATS = "allowed float32, float16, bfloat16; give model.float().state_dict()"
NORM = ("weight", "bias", "running_mean", "running_var")
BIAS, WEIGHT, VARIANCE = "3.1.bias", "3.1.weight", "3.3.running_var"


@pytest.mark.parametrize(
    ("key", "dtype", "shape", "message"),
    [
        (BIAS, "F8_E4M3", [6], f"got float8_e4m3, {FLOATS}"),
        (BIAS, "F8_E5M2", [6], f"got float8_e5m2, {FLOATS}"),
        (BIAS, "I64", [6], f"got int64, {FLOATS}"),
        (BIAS, "U8", [6], f"got uint8, {FLOATS}"),
        (BIAS, "BOOL", [6], f"got bool, {FLOATS}"),
        (BIAS, "F64", [6], f"got float64, {FLOATS}"),
        (BIAS, "C64", [6], f"got complex64, {FLOATS}"),
        (BIAS, "F32", [1, 6], "got shape (1, 6), expected (6,)"),
        (BIAS, "BF16", [0], "got shape (0,), expected (6,)"),
        (WEIGHT, "F32", [6, 6], "got shape (6, 6), expected (6, 6, 1, 1)"),
        (
            "0.weight",
            "F32",
            [6, 3, 0, 0],
            "got shape (6, 3, 0, 0), expected (width, channels, patch, patch)",
        ),
    ],
)
def test_a_safetensors_file_of_other_arrays_is_refused(
    trained, tmp_path, key, dtype, shape, message
):
    stored = {
        name: ("F32", list(array.shape), array.astype(np.float32).tobytes())
        for name, array in randmix.convmixer_to_torch(*trained).items()
    }
    width = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "BF16": 2}.get(dtype, 1)
    stored[key] = (dtype, shape, bytes(width * math.prod(shape)))
    write_safetensors(tmp_path / "a.safetensors", stored)
    assert refusal(tmp_path / "a.safetensors") == f"{tmp_path / 'a.safetensors'}: {key}: {message}"


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            BIAS,
            lambda array: array * np.nan,
            "got 6 of 6 values NaN or infinite, allowed finite ones; give a checkpoint from before "
            "they arose",
        ),
        (
            WEIGHT,
            lambda array: np.where(np.arange(6) == 2, -np.inf, array.T).T,
            "got 6 of 36 values NaN or infinite, allowed finite ones; give a checkpoint from "
            "before they arose",
        ),
        (
            VARIANCE,
            lambda array: array - 1.25,
            "got the variance -0.25, allowed at least 0; give an undamaged checkpoint",
        ),
        (
            WEIGHT,
            lambda array: np.broadcast_to(np.float32(0), (200_000, 200_000, 1, 1)),
            "got shape (200000, 200000, 1, 1) in 4 bytes, an expanded tensor, allowed one that "
            "stores each value; save it after .contiguous()",
        ),
    ],
)
def test_values_that_are_no_weights_are_refused(trained, key, change, message):
    arrays = randmix.convmixer_to_torch(*trained)
    arrays[key] = change(arrays[key]).astype(np.float32, copy=False)
    assert refusal(arrays) == f"state dict: {key}: {message}"


def test_a_model_of_too_many_parameters_is_refused(trained, monkeypatch):
    arrays = randmix.convmixer_to_torch(*trained)
    monkeypatch.setattr(torch_weights, "_MAX_VALUES", 300)
    # Nothing is converted before the sum is known.
    monkeypatch.setattr(torch_weights, "_to_ours", None)
    assert refusal(arrays) == ("state dict: got 437 values, allowed 300; give a smaller model")


def test_a_file_that_claims_a_huge_model_is_refused_unread(tmp_path):
    width = 200_000
    header, end = {}, 0
    for key, shape in {
        "0.weight": (width, 3, 1, 1),
        "0.bias": (width,),
        **{f"2.{name}": (width,) for name in NORM},
        "3.0.fn.0.weight": (width, 1, 3, 3),
        "3.0.fn.0.bias": (width,),
        **{f"3.0.fn.2.{name}": (width,) for name in NORM},
        "3.1.weight": (width, width, 1, 1),
        "3.1.bias": (width,),
        **{f"3.3.{name}": (width,) for name in NORM},
        "6.weight": (10, width),
        "6.bias": (10,),
    }.items():
        size = 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file = tmp_path / "a.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)  # 149 GiB, of which none is stored
    assert refusal(file) == (
        f"{file}: got 40,007,400,010 values, allowed 1,073,741,824; give a smaller model"
    )


def test_mappings_around_a_state_dict(trained):
    arrays = randmix.convmixer_to_torch(*trained)
    itself: dict = {}
    itself["state_dict"] = itself
    deep: dict = arrays
    for _ in range(100_000):
        deep = {"model": deep}
    for source in (itself, deep):
        assert refusal(source) == (
            "state dict: got 8 or more mappings inside each other, expected arrays by name; give "
            "model.state_dict()"
        )
    while deep is not arrays:  # or Python would recurse to free it
        deep = deep["model"]
    prefixed = {"module." * 100_000 + key: value for key, value in arrays.items()}
    assert "not a ConvMixer: got the keys 'module." in refusal(prefixed)
    assert len(refusal(prefixed)) < 500
    assert refusal({**arrays, "a\nb": 0}).startswith("state dict: got the key 'a\\nb'; expected")


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    (tmp_path / "deep.safetensors").write_bytes(struct.pack("<Q", 10**5) + b"[" * 10**5)
    write_safetensors(tmp_path / "claim.safetensors", {"a": ("F32", [2**40, 2**40], b"0000")})
    write_safetensors(tmp_path / "new.safetensors", {"a": ("F1_NEW", [4], b"0000")})
    pipe = "got a pipe or a device, allowed a file of weights; give its path"
    for name, message in [
        ("folder.pth", "got a folder, allowed a file of weights; give its path"),
        ("pipe.pth", pipe),
        ("pipe.safetensors", pipe),
        ("loop.pth", "can't be read ("),
        ("a" * 300 + ".pth", "can't be read ("),
        ("\0.pth", "can't be read ("),
        ("none.pth", "no such file"),
        *[
            (f"{name}.safetensors", "can't be read (")
            for name in ("empty", "header", "deep", "claim", "new")
        ],
    ]:
        with pytest.raises(UserError) as caught:
            randmix.convmixer_from_torch(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(caught.value)


def test_the_command_refuses_a_bad_file_before_it_makes_a_folder(trained, tmp_path):
    arrays = randmix.convmixer_to_torch(*trained)
    arrays[VARIANCE] -= 2
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / "b.pth")
    for name, message in [
        (
            "a.safetensors",
            f"{VARIANCE}: got the variance -1, allowed at least 0; give an undamaged",
        ),
        ("b.pth", "got a pipe or a device, allowed a file of weights; give its path"),
    ]:
        done = command.run("randmix convert", tmp_path / name, f"--workdir={tmp_path / 'run'}")
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"randmix: {tmp_path / name}: {message}")
        assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
