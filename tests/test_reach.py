"""Reach of a ConvMixer against what its outputs depend on, pixel by pixel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from randmix import models
from randmix.models import reach
from randmix.training import tasks

pytestmark = pytest.mark.slow

# depth, kernel size, patch size, image
SIZES = {
    "odd": (2, 3, 1, (6, 7)),
    "even": (2, 4, 1, (8, 7)),
    "even, two": (3, 2, 1, (5, 6)),
    "patches": (1, 3, 2, (8, 10)),
    "even, patches": (2, 2, 3, (9, 12)),
    "whole image": (2, 9, 1, (5, 4)),
    "1 x 1": (4, 1, 1, (3, 3)),
}


def seen(depth, kernel_size, patch_size, shape):
    """[H W, H W]: whether a target pixel depends on a source pixel in a real ConvMixer."""
    model = models.build(
        "convmixer",
        width=2,
        depth=depth,
        kernel_size=kernel_size,
        patch_size=patch_size,
        num_classes=1,
    )
    pixels = np.prod(shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape, 1)))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)

    @jax.jit
    def last_norms_input(image):
        """What the last block returns, before pooling; all weights are 1, so nothing cancels."""
        _, kept = model.apply(ones, image[None], capture_intermediates=True)
        (name,) = [name for name in kept["intermediates"] if name == f"block_{depth - 1:02d}"]
        (output,) = kept["intermediates"][name]["__call__"]
        return output[0, :, :, 0]

    image = jnp.zeros((*shape, 1))
    apart = jax.vmap(lambda hot: last_norms_input(image.at[hot // shape[1], hot % shape[1]].set(1)))
    moved = np.asarray(apart(jnp.arange(pixels))) != np.asarray(last_norms_input(image))
    whole = moved.repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    return whole.reshape(pixels, pixels).T


@pytest.mark.parametrize("name", SIZES)
def test_reach_is_what_the_outputs_of_a_model_depend_on(name):
    *sizes, shape = SIZES[name]
    depends = seen(*sizes, shape)
    assert reach.reach(*sizes, (*shape, 1)) == pytest.approx(depends.mean())
    fields = reach.windows(*sizes, shape)
    np.testing.assert_array_equal(np.kron(*fields), depends)
    for seed in range(3):
        permutation = tasks.pixel_permutation(seed, *shape)
        numbers = np.arange(len(permutation)).reshape(1, *shape, 1)
        shuffled = tasks.shuffle(numbers, permutation).ravel().tolist()
        home = [depends[target, shuffled.index(target)] for target in range(len(permutation))]
        assert reach.permutation_reach(permutation, fields) == pytest.approx(np.mean(home))


def test_the_mean_over_all_permutations_is_the_reach():
    fields = reach.windows(1, 2, 1, (2, 3))
    everyone = [
        reach.permutation_reach(np.asarray(permutation), fields)
        for permutation in itertools.permutations(range(6))
    ]
    assert np.mean(everyone) == pytest.approx(reach.reach(1, 2, 1, (2, 3)))


@pytest.mark.parametrize(
    ("depth", "side", "percent"), [(8, 28, 97), (8, 32, 89), (4, 14, 98), (4, 8, 100)]
)
def test_reach_at_published_sizes(depth, side, percent):
    assert round(100 * reach.reach(depth, 7, 1, (side, side, 1))) == percent
