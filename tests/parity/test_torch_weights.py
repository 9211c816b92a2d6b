"""Conversion of PyTorch ConvMixer weights: equal logits and exact round trips."""

import argparse
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors
from torch_convmixers import arrays, module

from randmix import masks, models
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


def test_views_that_store_their_values_are_accepted():
    twin = module(patch_size=2, channels=3)
    _, expected = convmixer_from_torch(twin.state_dict())
    state_dict = twin.to(memory_format=torch.channels_last).state_dict()
    state_dict["3.1.bias"] = torch._neg_view(-state_dict["3.1.bias"])
    state_dict["4.1.bias"] = torch.stack([state_dict["4.1.bias"]] * 2, 1)[:, 1]
    assert not masks.diff(expected, convmixer_from_torch(state_dict)[1]).moved


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar"])
def test_weights_are_read_from_files_of_every_kind(tmp_path, suffix):
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
