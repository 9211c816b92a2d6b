"""Conversion of PyTorch ConvMixer weights: equal logits, exact round trips, one-line errors."""

import argparse
import sys
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors
from torch_convmixers import arrays, module

from randmix import masks, models
from randmix.errors import UserError
from randmix.models import torch_files
from randmix.models.torch_weights import NAMINGS, convmixer_from_torch, convmixer_to_torch

# PyTorch warns that "same" padding of even kernels may copy.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Using padding='same'")]


@pytest.mark.parametrize(
    ("naming", "shape", "activation", "sizes"),
    [
        ("locuslab", (8, 8, 3), "gelu", {"kernel_size": 5, "patch_size": 2, "channels": 3}),
        ("locuslab", (7, 5, 1), "relu", {"kernel_size": 4, "depth": 1}),
        (
            "timm",
            (6, 4, 3),
            "relu",
            {"kernel_size": 3, "patch_size": 2, "channels": 3, "num_classes": 3},
        ),
        ("timm", (5, 6, 1), "gelu", {"kernel_size": 8, "depth": 3, "width": 5}),
    ],
)
def test_converted_weights_give_pytorchs_logits(naming, shape, activation, sizes):
    twin = module(naming, activation, **sizes)
    mean, std = (0.4, 0.5, 0.6)[: shape[-1]], (0.2, 0.3, 0.4)[: shape[-1]]
    model, variables = convmixer_from_torch(
        twin.state_dict(), activation=activation, mean=mean, std=std
    )
    images = np.random.default_rng(0).random((4, *shape), np.float32)
    got = np.asarray(jax.jit(model.apply)(variables, images), np.float64)
    normalised = (images.astype(np.float64) - mean) / std
    with torch.no_grad():
        expected = twin.double()(torch.from_numpy(normalised).permute(0, 3, 1, 2)).numpy()
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    # The tree is the model's own, so all code for a model's variables accepts it.
    own = jax.eval_shape(model.init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda x: x.shape, own)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_way_back_gives_every_bit_and_loads_into_the_module(naming):
    twin = module(naming, patch_size=2, channels=3, kernel_size=4)
    model, variables = convmixer_from_torch(twin.state_dict())
    back = convmixer_to_torch(model, variables, naming)
    assert list(back) == list(twin.state_dict())
    for key, tensor in twin.state_dict().items():
        assert back[key].dtype == tensor.numpy().dtype, key
        if key.endswith("num_batches_tracked"):
            assert back[key] == 0
            assert back[key].shape == ()
        else:
            np.testing.assert_array_equal(back[key], tensor.numpy(), err_msg=key)
            assert back[key].flags.c_contiguous  # safetensors accepts nothing else
    twin.load_state_dict({key: torch.from_numpy(array) for key, array in back.items()})

    # The reverse direction, through the other naming.
    other = convmixer_to_torch(model, variables, next(n for n in NAMINGS if n != naming))
    again_model, again = convmixer_from_torch(other)
    assert not masks.diff(variables, again).moved
    sizes = (
        "width",
        "depth",
        "kernel_size",
        "patch_size",
        "num_classes",
        "activation",
        "mean",
        "std",
    )
    assert [getattr(again_model, name) for name in sizes] == [
        getattr(model, name) for name in sizes
    ]


def test_variables_of_a_trained_model_come_back_too():
    model = models.build("convmixer", width=4, depth=1, kernel_size=2, patch_size=1, num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4, 4, 2), np.float32))
    _, again = convmixer_from_torch(convmixer_to_torch(model, variables))
    assert not masks.diff(jax.device_get(variables), again).moved


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("naming", NAMINGS)
def test_prefixes_and_the_checkpoint_around_a_state_dict(prefix, naming):
    plain = arrays(naming=naming)
    _, expected = convmixer_from_torch(plain)
    wrapped = OrderedDict((prefix + key, value) for key, value in plain.items())
    for state_dict in (
        wrapped,
        {"epoch": 3, "state_dict": wrapped},
        {"model": {"state_dict": wrapped}},
    ):
        _, variables = convmixer_from_torch(state_dict)
        assert not masks.diff(expected, variables).moved


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_widens_exactly(tmp_path, dtype):
    halves = {
        key: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for key, tensor in module().state_dict().items()
    }
    _, expected = convmixer_from_torch(
        {key: tensor.float().numpy() for key, tensor in halves.items()}
    )
    from safetensors.torch import save_file

    save_file(halves, tmp_path / "half.safetensors")
    for source in (halves, tmp_path / "half.safetensors"):
        _, variables = convmixer_from_torch(source)
        assert not masks.diff(expected, variables).moved


def test_counters_may_be_missing():
    counted = arrays()
    uncounted = {key: value for key, value in counted.items() if "num_batches" not in key}
    assert len(uncounted) < len(counted)
    _, expected = convmixer_from_torch(counted)
    assert not masks.diff(expected, convmixer_from_torch(uncounted)[1]).moved


def changed(key, value=None, **options):
    """A state dict with another value for a key, or without the key."""
    state_dict = arrays(**options)
    if value is None:
        del state_dict[key]
    else:
        state_dict[key] = value
    return state_dict


LOCUSLAB = "expected the 37 keys of a ConvMixer of depth 2 in locuslab's naming"
TIMM = "expected the 37 keys of a ConvMixer of depth 2 in timm's naming"


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({}, "got an empty mapping, expected arrays by name; give model.state_dict()"),
        (3, "got int, expected arrays by name; give model.state_dict()"),
        (
            {0: np.zeros(1)},
            "got keys that aren't names, expected arrays by name; give model.state_dict()",
        ),
        (
            {"conv1.weight": np.zeros(1), "bn1.bias": np.zeros(1)},
            "not a ConvMixer: got the keys conv1.weight, bn1.bias, "
            "expected blocks such as 3.0.fn.0.weight (locuslab) or blocks.0.0.fn.0.weight (timm)",
        ),
        (changed("0.bias"), f"0.bias is missing; {LOCUSLAB}"),
        (changed("4.1.weight"), f"4.1.weight is missing; {LOCUSLAB}"),
        (changed("7.weight"), f"7.weight is missing; {LOCUSLAB}"),
        (changed("stem.2.running_var", naming="timm"), f"stem.2.running_var is missing; {TIMM}"),
        (changed("8.weight", np.zeros(1)), f"got the key 8.weight; {LOCUSLAB}"),
        (changed("norm.weight", np.zeros(1), naming="timm"), f"got the key norm.weight; {TIMM}"),
        (
            changed("0.weight", np.zeros((6, 1, 2, 3), np.float32)),
            "0.weight: got shape (6, 1, 2, 3), expected (width, channels, patch, patch)",
        ),
        (
            changed("3.0.fn.0.weight", np.zeros((6, 9), np.float32)),
            "3.0.fn.0.weight: got shape (6, 9), expected (6, 1, kernel, kernel)",
        ),
        (
            changed("3.0.fn.0.weight", np.zeros((6, 6, 3, 3), np.float32)),
            "3.0.fn.0.weight: got shape (6, 6, 3, 3), expected (6, 1, 3, 3)",
        ),
        (
            changed("4.0.fn.0.weight", np.zeros((6, 1, 5, 5), np.float32)),
            "4.0.fn.0.weight: got shape (6, 1, 5, 5), expected (6, 1, 3, 3)",
        ),
        (changed("7.bias", np.zeros(9, np.float32)), "7.bias: got shape (9,), expected (10,)"),
        (
            changed("3.1.weight", np.zeros((6, 6), np.float32)),
            "3.1.weight: got shape (6, 6), expected (6, 6, 1, 1)",
        ),
        (
            changed("3.1.bias", np.zeros(6, np.int64)),
            "3.1.bias: got int64, allowed float32, float16, bfloat16; "
            "give model.float().state_dict()",
        ),
        (
            changed("3.1.bias", torch.zeros(6, dtype=torch.float64)),
            "3.1.bias: got float64, allowed float32, float16, bfloat16; "
            "give model.float().state_dict()",
        ),
        (
            changed("3.1.bias", [0.0] * 6),
            "3.1.bias: got list, allowed float32, float16, bfloat16; "
            "give model.float().state_dict()",
        ),
    ],
)
def test_a_state_dict_of_another_model_is_refused(state_dict, message):
    with pytest.raises(UserError) as error:
        convmixer_from_torch(state_dict)
    assert str(error.value) == f"state dict: {message}"


def fp8(tensor):
    return tensor.to(torch.float8_e4m3fn)


@pytest.mark.filterwarnings("ignore::UserWarning")  # several are deprecated or in beta
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fp8, "got float8_e4m3fn, allowed float32, float16, bfloat16; give {float}"),
        (
            lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8),
            "got quint8, allowed float32, float16, bfloat16; give {float}",
        ),
        (torch.Tensor.bool, "got bool, allowed float32, float16, bfloat16; give {float}"),
        (
            lambda tensor: tensor.to(torch.complex64),
            "got complex64, allowed float32, float16, bfloat16; give {float}",
        ),
        (
            torch.Tensor.to_sparse,
            "got a sparse_coo tensor, allowed a dense one; save it as one",
        ),
        (
            lambda tensor: tensor[:, :, 0, 0].to_sparse_csr(),
            "got a sparse_csr tensor, allowed a dense one; save it as one",
        ),
        (
            lambda tensor: torch.nested.nested_tensor([tensor[0, 0, 0], tensor[0, 0, 0]]),
            "got a nested tensor, allowed a dense one; save it as one",
        ),
        (
            lambda tensor: tensor.to("meta"),
            "got a tensor on the meta device, which has no values, allowed one on the CPU; "
            "load the weights before saving the model",
        ),
        (
            lambda tensor: torch.zeros(1).expand(200_000, 200_000, 1, 1),
            "got shape (200000, 200000, 1, 1) in 4 bytes, an expanded tensor, allowed one that "
            "stores each value; save it after .contiguous()",
        ),
        (
            lambda tensor: torch.zeros(400_000).as_strided((200_000, 200_000, 1, 1), (1, 1, 1, 1)),
            "got shape (200000, 200000, 1, 1) in 1,599,996 bytes, an expanded tensor, allowed one "
            "that stores each value; save it after .contiguous()",
        ),
        (
            lambda tensor: tensor * float("nan"),
            "got 36 of 36 values NaN or infinite, allowed finite ones; give a checkpoint from "
            "before they arose",
        ),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, change, message, legacy):
    state_dict = module().state_dict()
    state_dict["3.1.weight"] = change(state_dict["3.1.weight"])
    sources = {"state dict": state_dict}
    # The old format can't hold these.
    if not (legacy and (change is fp8 or "nested" in message)):
        file = tmp_path / "weights.pth"
        torch.save(state_dict, file, _use_new_zipfile_serialization=not legacy)
        sources[str(file)] = file
    for what, source in sources.items():
        with pytest.raises(UserError) as error:
            convmixer_from_torch(source)
        expected = message.format(float="model.float().state_dict()")
        assert str(error.value) == f"{what}: 3.1.weight: {expected}"


def test_views_that_store_their_values_are_accepted():
    twin = module(patch_size=2, channels=3)
    _, expected = convmixer_from_torch(twin.state_dict())
    state_dict = twin.to(memory_format=torch.channels_last).state_dict()
    state_dict["3.1.bias"] = torch._neg_view(-state_dict["3.1.bias"])
    state_dict["4.1.bias"] = torch.stack([state_dict["4.1.bias"]] * 2, 1)[:, 1]
    assert not masks.diff(expected, convmixer_from_torch(state_dict)[1]).moved


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_contains_itself_is_refused(tmp_path, legacy):
    itself: dict = {"epoch": 3}
    itself["model"] = {"state_dict": itself}
    torch.save(itself, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as error:
        convmixer_from_torch(tmp_path / "a.pth")
    assert str(error.value) == (
        f"{tmp_path / 'a.pth'}: got 8 or more mappings inside each other, expected arrays by name; "
        "give model.state_dict()"
    )


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save(module().state_dict(), tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as smaller,
    ):
        for name in plain.namelist():
            smaller.writestr(name, plain.read(name))
    with pytest.raises(UserError) as error:
        convmixer_from_torch(tmp_path / "b.pth")
    assert str(error.value) == (
        f"{tmp_path / 'b.pth'}: got a compressed archive, allowed one as torch.save writes it; "
        "save its contents with torch.save again"
    )


def test_a_module_instead_of_its_state_dict():
    with pytest.raises(
        UserError, match=r"got Sequential, expected arrays by name; give model.state_dict\(\)$"
    ):
        convmixer_from_torch(module())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation": "swish"},
            "model convmixer: activation: got 'swish', allowed gelu, relu",
        ),
        ({"mean": (0.5,)}, "model convmixer: mean and std: give both, of equal length, or neither"),
        (
            {"mean": (0.5,) * 3, "std": (1.0,) * 3},
            "mean: got 3 numbers, allowed 1 (one per channel) or none",
        ),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(UserError) as error:
        convmixer_from_torch(arrays(), **options)
    assert str(error.value) == message


def test_the_way_back_refuses_what_it_cannot_name():
    model, variables = convmixer_from_torch(arrays())
    resnet = models.build("resnet", width=4, depth=1, kernel_size=3, num_classes=3)
    wrong = {
        **variables,
        "head": {"classifier": {**variables["head"]["classifier"], "bias": np.zeros(3)}},
    }
    for arguments, message in [
        (
            (model, variables, "timmy"),
            "naming: got 'timmy', allowed locuslab, timm; did you mean 'timm'?",
        ),
        ((resnet, variables), "got ResNet, allowed a ConvMixer with a classifier"),
        (
            (model, {**variables, "channel": {}}),
            "variables: channel/block_00/pointwise/bias is missing; "
            "give the variables of the same model",
        ),
        (
            (convmixer_from_torch(arrays(depth=1))[0], variables),
            "variables: batch_stats/block_01/depthwise_norm/mean is not a leaf of this model; "
            "give the variables of the same model",
        ),
        ((model, wrong), "variables: head/classifier/bias: got shape (3,), expected (10,)"),
    ]:
        with pytest.raises(UserError) as error:
            convmixer_to_torch(*arguments)
        assert str(error.value) == message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar"])
def test_files(tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    expected = convmixer_from_torch(arrays())[1]
    if suffix == ".safetensors":
        safetensors.save_file(arrays(), file)
    elif suffix == ".pth":
        torch.save(module().state_dict(), file)
    else:  # as timm's training script saves it
        training = {
            "epoch": 3,
            "args": argparse.Namespace(lr=0.01),
            "state_dict": module().state_dict(),
        }
        torch.save(training, file)
    assert not masks.diff(expected, convmixer_from_torch(file)[1]).moved
    assert not masks.diff(expected, convmixer_from_torch(str(file))[1]).moved


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for name in ("bad.safetensors", "bad.pth", "weights.onnx"):
        (tmp_path / name).write_bytes(b"these are no weights at all")
    torch.save(module(), tmp_path / "module.pt")
    no_state_dict = "torch.load(weights_only=True) can't read it"
    for name, message in [
        ("none.pth", "no such file"),
        (
            "weights.onnx",
            "got a file name ending in '.onnx', allowed .safetensors, .pth, .pt, .bin, .tar",
        ),
        ("bad.safetensors", "can't be read ("),
        ("bad.pth", no_state_dict),
        ("module.pt", no_state_dict),
    ]:
        with pytest.raises(UserError) as error:
            convmixer_from_torch(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(error.value)
    # As if they weren't installed.
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(torch_files, "safetensors", None)
    for package, name in (("torch", "bad.pth"), ("safetensors", "bad.safetensors")):
        with pytest.raises(UserError, match=f"reading it requires .*; run `pip install {package}`"):
            convmixer_from_torch(tmp_path / name)
