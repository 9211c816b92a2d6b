"""ConvMixer weights to PyTorch's names and back, without PyTorch."""

import command
import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy

import randmix
from randmix import masks, models
from randmix.torch_weights import NAMINGS


@pytest.fixture(scope="module")
def trained():
    """A small ConvMixer and its variables."""
    model = models.build("convmixer", width=6, depth=2, kernel_size=3, patch_size=2, num_classes=5)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


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
    done = command.run("randmix.convert", file, "--activation=gelu", f"--workdir={workdir}")
    assert (done.status, done.err) == (0, "")
    assert "ConvMixer-6/2, kernel 3, patch 2, gelu" in done.out
    assert not masks.diff(variables, randmix.load(workdir).variables).moved
