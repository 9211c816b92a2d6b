"""RandAugment without gathers, as on a TPU: the same values and pixels as elsewhere."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from randmix.data.augment import Augmentation, lookup, policies, randaugment, shears, warp

pytestmark = pytest.mark.slow

POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m30-mmax30", "torchvision-n2-m12"]
MOVES = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def matrices(height, width, steepest):
    """Matrices of all kinds, up to the steepest both ways, and translations beyond the edges."""
    rng = np.random.default_rng(1)
    degrees = math.degrees(math.asin(steepest))
    shares = [-1, 1, *rng.uniform(-1, 1, 6)]
    every = [
        matrix
        for share in shares
        for matrix in (
            warp.rotation(share * degrees, height, width),
            warp.shear_x(share * steepest),
            warp.shear_y(share * steepest),
            warp.translation(share * 1.5 * width, 0.0),
            warp.translation(0.0, share * height),
            warp.translation(share * width / 2, share * height / 2),
        )
    ]
    return np.array(every, np.float32)


@pytest.mark.parametrize(
    ("shape", "steepest", "interpolation"),
    [
        ((33, 20, 3), 0.5, warp.BILINEAR),
        ((33, 20, 3), 0.0, warp.NEAREST),
        ((20, 24, 3), 1.0, warp.BILINEAR),
        ((6, 29, 1), 0.2, warp.BILINEAR),
        ((6, 29, 1), 1.0, warp.NEAREST),
        ((1, 1, 3), 0.5, warp.BILINEAR),
    ],
)
def test_pixels_by_shears_are_those_by_a_gather(shape, steepest, interpolation):
    h, w, c = shape
    many = matrices(h, w, steepest)
    images = noise(len(many), *shape)

    @partial(jax.jit, static_argnums=0)
    def run(pixels, images, many):
        return warp._apply(
            images, many, fill=(9, 8, 7)[:c], interpolation=interpolation, pixels=pixels
        )

    by_shears = run(partial(shears.pixels, steepest=steepest), images, many)
    by_gather = run(warp._gather, images, many)
    np.testing.assert_array_equal(by_shears, by_gather)
    # In images of noise, any misplaced pixel shows. Most of them are inside.
    assert (np.asarray(by_gather) != (9, 8, 7)[:c]).mean() > 0.3


def test_a_policys_matrices_are_no_steeper_than_it_says():
    keys = jax.random.split(jax.random.key(0), 1000)
    for policy in map(policies.parse, POLICIES):
        level = np.broadcast_to(jax.vmap(policy.draw_level)(keys), 1000).max()
        arguments = policy.arguments(level, -1.0, 224, 200)
        moved = [randaugment.OPERATIONS[name](arguments[name], 224, 200).matrix for name in MOVES]
        _, b, _, d, _, _ = np.abs(np.array(moved, np.float32)).T
        assert max(b.max(), d.max()) == pytest.approx(policy.steepest, abs=1e-6), policy


@pytest.mark.parametrize("shape", [(40, 30, 3), (5, 7, 1), (600, 3, 3)])
def test_values_by_comparisons_are_those_by_a_table(shape):
    images = noise(4, *shape)
    images[1] //= 3
    images[2] = 255
    images[3, :, :, 0] = images[3, :, :, 0] & 3
    tables = noise(4, shape[-1], 256)
    counts = jax.jit(lookup._histograms_by_comparison)(images)
    expected = [
        [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(i, -1, 0)]
        for i in images
    ]
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lookup.histograms))(images), expected)
    found = jax.jit(lookup._look_up_by_selection)(tables, images)
    np.testing.assert_array_equal(found, jax.jit(jax.vmap(lookup._look_up))(tables, images))
    np.testing.assert_array_equal(found[0, ..., 0], tables[0, 0][images[0, ..., 0]])


def indices(text):
    """The number of indices of each gather and scatter in a lowered program."""
    operation = r'"stablehlo\.(?:\w*gather|scatter)".*?: \(tensor<[^>]*>, tensor<([\dx]+)xi32>'
    return [
        math.prod(map(int, shape.split("x"))) for shape in re.findall(operation, text, re.DOTALL)
    ]


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "torchvision-n2-m12"])
def test_a_tpu_is_given_no_gather_or_scatter_of_pixels(text):
    augmentation = Augmentation(flip=True, crop_scale=0.3, randaugment=text)
    batch = {
        "image": jax.ShapeDtypeStruct((16, 12, 10, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    traced = jax.jit(partial(augmentation, seed=0, step=0)).trace(batch)
    tpu, cpu = (
        indices(traced.lower(lowering_platforms=(name,)).as_text()) for name in ("tpu", "cpu")
    )
    # Three numbers per image select among its own parameters.
    assert max(tpu) <= 16 * 3
    assert max(cpu) >= 16 * 12 * 10
