"""What isn't the weights of a PyTorch ConvMixer is refused in one line."""

import sys
import zipfile

import numpy as np
import pytest
import torch
from torch_convmixers import arrays, module

from randmix import models
from randmix.errors import UserError
from randmix.models import torch_files
from randmix.models.torch_weights import convmixer_from_torch, convmixer_to_torch

# PyTorch warns that "same" padding of even kernels may copy.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Using padding='same'")]


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
        ((resnet, variables), "got a ResNet, allowed a ConvMixer with the head 'classifier'"),
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
