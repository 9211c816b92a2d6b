"""Building filters from a bank, a rank and a smoothing; the paper's banks; see test_banks.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from randmix.errors import UserError
from randmix.models import filters
from randmix.models.parameters import uniform_fan_in
from randmix.ops.depthwise import depthwise

SHAPES = [(3, 3, 5), (4, 4, 5, 9)]


def bank(name, shape, seed=0, **settings):
    return np.asarray(filters.build(name, **settings)(jax.random.key(seed), shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", filters.NAMES)
def test_a_bank_has_the_shape_and_dtype_asked_for(name, shape):
    for settings, dtype in (((), jnp.float32), ((jnp.bfloat16,), jnp.bfloat16)):
        kernel = jax.eval_shape(
            lambda key, s=settings: filters.build(name)(key, shape, *s), jax.random.key(0)
        )
        assert (kernel.shape, kernel.dtype) == (shape, dtype)


@pytest.mark.slow
def test_random_filters_follow_pytorchs_default():
    import torch

    weight = torch.nn.Conv2d(4096, 4096, 5, groups=4096).weight.detach().numpy()
    kernels = bank("random", (5, 5, 4096))
    assert abs(kernels).max() <= 1 / 5
    levels = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        np.quantile(kernels, levels), np.quantile(weight, levels), atol=0.005
    )


def test_random_filters_differ_and_follow_the_key():
    kernels = bank("random", (3, 3, 4, 2)).reshape(9, -1)
    assert len(np.unique(kernels, axis=1).T) == 8
    assert (bank("random", (3, 3, 4)) != bank("random", (3, 3, 4), seed=1)).all()


def test_same_is_one_set_for_every_channel():
    kernels = bank("same", (3, 3, 5, 9))
    assert (kernels == kernels[:, :, :1]).all()
    assert len(np.unique(kernels[:, :, 0].reshape(9, 9), axis=1).T) == 9
    kernels = bank("same", (3, 3, 5))
    assert (kernels == kernels[:, :, :1]).all()
    assert kernels.std() > 0.1


def test_box_is_the_mean_of_its_window():
    x = jax.random.uniform(jax.random.key(0), (1, 9, 9, 2))
    y = jax.jit(depthwise)(x, bank("box", (3, 3, 2)))
    np.testing.assert_allclose(y[0, 4, 5], np.asarray(x)[0, 3:6, 4:7].mean((0, 1)), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 8])
def test_identity_passes_images_unchanged(kernel_size):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    assert (depthwise(x, bank("identity", (kernel_size, kernel_size, 3))) == x).all()


# cycles per pixel; the other half is the mirror image
FREQUENCIES = (np.fft.fftfreq(128), np.fft.rfftfreq(128))


def spectrum(kernels):
    """The energy of a whole bank of [k, k, C] at each frequency, filters padded to 128 x 128."""
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(f, np.arange(kernels.shape[0]))) for f in FREQUENCIES
    )
    return sum(np.square(abs(rows @ kernel @ columns.T)) for kernel in np.moveaxis(kernels, 2, 0))


@pytest.mark.parametrize("keep_norm", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 8])
def test_a_higher_index_leaves_less_energy_above_any_cut(kernel_size, keep_norm):
    kernels = bank("random", (kernel_size, kernel_size, 16))
    spectra = [
        spectrum(np.asarray(filters.smooth(kernels, i, keep_norm=keep_norm)))
        for i in (0, 0.5, 1, 2, 4, 8)
    ]
    for cut in (0.15, 0.25, 0.4):
        above = np.hypot(FREQUENCIES[0][:, None], FREQUENCIES[1]) > cut
        energies = [energy[above].sum() for energy in spectra]
        assert all(later < earlier for earlier, later in itertools.pairwise(energies)), energies


@pytest.mark.parametrize("index", [2, 4, 7])
def test_smoothing_is_a_gaussian_over_mirrored_edges(index):
    kernels = bank("random", (8, 8, 4))
    sigma = filters.SIGMA_PER_INDEX * index
    expected = ndimage.gaussian_filter(
        kernels.astype(np.float64), sigma, mode="reflect", truncate=8, axes=(0, 1)
    )
    # scipy samples the Gaussian: at sigma = 1, this adds 0.7 %, exp(-pi^2 / 2), at the highest
    # frequency.
    np.testing.assert_allclose(
        filters.smooth(kernels, index, keep_norm=False), expected, atol=2e-3 if index == 2 else 1e-6
    )


def test_smoothing_keeps_the_norm_or_the_sum():
    kernels = bank("random", (5, 5, 3, 2))
    kept, raw = (filters.smooth(kernels, 3, keep_norm=keep) for keep in (True, False))
    norm = np.sqrt(np.square(kernels).sum((0, 1)))
    np.testing.assert_allclose(np.sqrt(np.square(kept).sum((0, 1))), norm, rtol=1e-5)
    assert (np.sqrt(np.square(raw).sum((0, 1))) < norm).all()
    np.testing.assert_allclose(raw.sum((0, 1)), kernels.sum((0, 1)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", filters.NAMES)
def test_any_bank_can_be_smoothed_and_index_0_changes_nothing(name):
    shape = (4, 4, 6)
    np.testing.assert_array_equal(
        bank(name, shape, index=2), filters.smooth(bank(name, shape, index=0), 2)
    )
    np.testing.assert_array_equal(bank(name, shape), filters.BANKS[name](jax.random.key(0), shape))


def test_smoothing_a_filter_of_zeros_leaves_zeros():
    assert (filters.smooth(np.zeros((3, 3, 1)), 2) == 0).all()


def test_biases_and_dense_kernels_share_the_bound_of_their_fan_in():
    values = uniform_fan_in(48)(jax.random.key(0), (4, 4, 3, 500), jnp.float32)
    bound = 48**-0.5
    assert 0.99 * bound < abs(values).max() <= bound
    np.testing.assert_allclose(values.std(), bound / 3**0.5, rtol=0.02)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "identitty",
            {},
            "filters: got 'identitty', allowed random, same, box, identity, delta, dct, gaussian, "
            "gaussian8; did you mean 'identity'?",
        ),
        ("random", {"index": -1}, "smoothing index: got -1, allowed 0 to 1000"),
        (
            "random",
            {"index": float("nan")},
            "smoothing index: got nan, allowed 0 to 1000",
        ),
        ("random", {"index": "2"}, "smoothing index: got '2', allowed a number, 0 to 1000"),
        ("random", {"rank": 0}, "filter rank: got 0, allowed 1 to 16384, or None"),
        (
            "box",
            {"rank": 1},
            "filter rank: got 1 for 'box', whose rank is fixed, allowed None; "
            "the rank of random, delta, dct can be chosen",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(name, settings, message):
    with pytest.raises(UserError) as error:
        filters.build(name, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize("name", filters.NAMES)
def test_filters_are_square(name):
    with pytest.raises(
        ValueError, match=r"filters must be \[k, k, C\] or \[k, k, C, m\], got \[3, 4, 2\]"
    ):
        bank(name, (3, 4, 2))


def test_two_banks_of_the_same_settings_are_equal():
    settings = {"rank": 3, "index": 2.0}
    one = filters.build("random", **settings)
    assert one == filters.build("random", **settings)
    assert hash(one) == hash(filters.build("random", **settings))
    for others in ({"rank": 2}, {"index": 1.0}, {"keep_norm": False}):
        assert one != filters.build("random", **settings | others)
    assert one != filters.build("delta", **settings)
