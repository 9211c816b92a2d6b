"""Depthwise filters from PyTorch's files compute what PyTorch's convolutions do."""

import pickle

import jax
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch_convmixers import module

from randmix.ops.depthwise import depthwise
from randmix.training import transplants

# PyTorch warns that "same" padding of even kernels may copy.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Using padding='same'")]

MODELS = {
    "convnext": lambda: timm.models.ConvNeXt(depths=(1, 2, 1, 1), dims=(6, 8, 4, 2)),
    "convmixer": lambda: timm.models.ConvMixer(6, 2, kernel_size=4, patch_size=2, num_classes=3),
    "locuslab": lambda: module("locuslab", kernel_size=5, patch_size=2, channels=3),
    "grey": lambda: module("timm", kernel_size=3, patch_size=3, channels=1),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
}


def depthwise_layers(model):
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.groups == layer.in_channels > 1
    ]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", MODELS)
def test_every_depthwise_layer_arrives_and_convolves_as_in_pytorch(name, suffix, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), file)
    found = transplants.find(f"from={file}")
    assert found.missing is None
    kernels = {kernel.tobytes(): kernel for kernel in found.bank.kernels.values()}
    layers = depthwise_layers(model)
    assert len(found.bank.kernels) == len(kernels) == len(layers) > 0
    rng = np.random.default_rng(0)
    for layer in layers:
        weight = layer.weight.detach()
        kernel = kernels[weight[:, 0].permute(1, 2, 0).numpy().tobytes()]
        x = rng.standard_normal((2, 9, 8, layer.in_channels), np.float32)
        expected = torch.nn.functional.conv2d(
            torch.from_numpy(x).permute(0, 3, 1, 2), weight, padding="same", groups=len(weight)
        )
        got = np.asarray(jax.jit(depthwise)(x, kernel))
        np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_model_without_depthwise_kernels_is_refused_in_one_line(suffix, tmp_path):
    state_dict = timm.create_model("resnet18", num_classes=3).state_dict()
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state_dict, file)
    assert transplants.find(f"from={file}").missing == (
        f"{file}: got 122 arrays, the first kernel conv1.weight (64, 3, 7, 7), expected depthwise "
        "kernels (C, 1, k, k) with k > 1; give the weights of a model that has them, such as a "
        "ConvMixer or a ConvNeXt"
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_weights_runs_no_code(legacy, tmp_path):
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    file = tmp_path / "weights.pt"
    content = {"dw.weight": torch.ones(2, 1, 3, 3), "more": Touch()}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert "torch.load(weights_only=True) can't read it" in transplants.find(f"from={file}").missing
    file.write_bytes(pickle.dumps(content))
    assert "torch.load(weights_only=True) can't read it" in transplants.find(f"from={file}").missing
    assert not (tmp_path / "touched").exists()
