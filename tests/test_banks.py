"""The banks beside the paper's: definitions, ranks, and which frequencies they let through."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

from randmix import models
from randmix.analysis import spectrum
from randmix.errors import UserError
from randmix.models import banks, filters, layers


def kernel(name, shape, seed=0, **settings):
    return np.asarray(filters.build(name, **settings)(jax.random.key(seed), shape))


def columns(kernel):
    """Filters [k, k, ...] as the columns of a matrix in float64."""
    return kernel.reshape(kernel.shape[0] ** 2, -1).astype(np.float64)


def numpy_rank(bank):
    return np.linalg.matrix_rank(bank, tol=0.01 * np.linalg.norm(bank, 2))


# ---- any bank, on random shapes

SHAPES = [(2, 2, 3, 7)]
MORE_SHAPES = [
    (3, 3, 10),
    (3, 3, 5, 9),
    (3, 3, 8, 1),
    (4, 4, 6, 3),
    (7, 7, 11),
    (2, 2, 3, 5),
    (5, 5, 1, 30),
]
SLOWLY = [pytest.param(shape, marks=pytest.mark.slow) for shape in MORE_SHAPES]


@pytest.mark.parametrize("shape", [*SHAPES, *SLOWLY], ids=str)
@pytest.mark.parametrize("name", ["delta", "dct", "gaussian", "gaussian8"])
def test_filters_are_finite_and_as_strong_as_random_ones(name, shape):
    found = kernel(name, shape)
    assert (found.shape, found.dtype) == (shape, np.float32)
    norms = np.linalg.norm(columns(found), axis=0)
    if name == "gaussian":
        assert (norms > 0).all()
        assert np.isfinite(norms).all()
    else:
        np.testing.assert_allclose(norms, 1 / np.sqrt(3), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "gaussian"])
def test_random_norms_average_the_others_norm(name):
    norms = np.linalg.norm(columns(kernel(name, (5, 5, 20_000))), axis=0)
    assert np.sqrt(np.square(norms).mean()) == pytest.approx(banks.NORM, rel=0.02)


@pytest.mark.parametrize("name", filters.RANKED)
@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((3, 3, 4, 9), 9),
        pytest.param((4, 4, 12), 5, marks=pytest.mark.slow),
        pytest.param((2, 2, 3, 6), 4, marks=pytest.mark.slow),
        pytest.param((3, 3, 5, 9), 3, marks=pytest.mark.slow),
        pytest.param((3, 3, 2, 7), 1, marks=pytest.mark.slow),
    ],
)
def test_every_bank_has_the_rank_asked_for(name, shape, rank):
    found = kernel(name, shape, rank=rank)
    layer = found if len(shape) == 4 else found[:, :, None]  # a layer of single filters is a bank
    for channel in np.moveaxis(layer, 2, 0):
        assert numpy_rank(columns(channel)) == rank
        assert len(np.unique(columns(channel).round(6), axis=1).T) == rank  # repeats, no mixtures
    assert spectrum.rank(found) == rank


def test_orthogonal_filters_have_no_preferred_sign():
    layer = kernel("random", (3, 3, 1000, 9), rank=9)
    # A corner is +-1 / 3 on average, of 1,000 random signs.
    assert np.abs(layer.mean(axis=2)).max() < 5 * layer.std() / np.sqrt(1000)


def test_the_rank_of_channels_with_one_filter_is_one():
    with pytest.raises(UserError) as error:
        kernel("random", (3, 3, 4, 1), rank=2)
    assert str(error.value) == (
        "filter rank of a layer [3, 3, 4, 1]: got 2, allowed 1 to 1, or None"
    )
    with pytest.raises(UserError, match=r"layer \[3, 3, 4, 16\]: got 10, allowed 1 to 9, or None"):
        kernel("dct", (3, 3, 4, 16), rank=10)


# ---- definitions


def test_deltas_shift_an_image_each_by_another_step():
    found = kernel("delta", (3, 3, 5, 9))
    assert set(np.unique(found)) == {0, np.float32(banks.NORM)}
    for channel in np.moveaxis(found, 2, 0):  # a permutation of the nine pixels
        assert (columns(channel).astype(bool).sum(axis=1) == 1).all()
    assert (found[:, :, 0] != found[:, :, 1]).any()
    assert (found != kernel("delta", (3, 3, 5, 9), seed=1)).any()
    again = kernel("delta", (2, 2, 1, 6))[:, :, 0]
    np.testing.assert_array_equal(again[..., 4:], again[..., :2])


@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_dct_filters_are_the_dct_s_basis_in_zigzag_order(k):
    found = kernel("dct", (k, k, k * k)) / banks.NORM
    places = []
    for f in np.moveaxis(found, 2, 0):
        transformed = fft.dctn(f, norm="ortho")
        places.append(np.unravel_index(abs(transformed).argmax(), (k, k)))
        assert transformed[places[-1]] == pytest.approx(1, abs=1e-5)
        assert np.square(transformed).sum() == pytest.approx(1, abs=1e-5)
    assert len(set(places)) == k * k
    for before, after in itertools.pairwise(places):  # each step stays on a diagonal or goes on
        assert sum(after) - sum(before) in (0, 1)
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) == 1
    assert places[:3] == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("name", ["dct", "gaussian8"])
def test_fixed_filters_are_dealt_in_turn(name):
    whole = columns(kernel(name, (3, 3, 20)))
    np.testing.assert_array_equal(whole, columns(kernel(name, (3, 3, 4, 5))))
    period = {"dct": 9, "gaussian8": 8}[name]
    np.testing.assert_array_equal(whole[:, period:], whole[:, :-period])
    np.testing.assert_array_equal(whole, columns(kernel(name, (3, 3, 20), seed=1)))


def test_gaussian_filters_have_the_covariance_documented():
    found = columns(kernel("gaussian", (4, 4, 40_000)))
    pixels = np.argwhere(np.ones((4, 4)))
    distances = np.square(pixels[:, None] - pixels).sum(-1)
    expected = banks.NORM**2 / 16 * np.exp(-distances / (2 * banks.CORRELATION_LENGTH**2))
    np.testing.assert_allclose(np.cov(found), expected, atol=0.02 * expected.max())


@pytest.mark.parametrize("k", [3, 5, 8])
def test_gaussian8_is_a_gaussian_and_its_derivatives(k):
    found = kernel("gaussian8", (k, k, 8))
    assert numpy_rank(columns(found)) == 8
    orders = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (1, 2), (2, 1)]
    x = np.arange(k) - (k - 1) / 2
    fine = np.linspace(-k, k, 2001)  # differences of a finely sampled Gaussian
    for f, (down, right) in zip(np.moveaxis(found, 2, 0), orders, strict=True):
        expected = np.outer(
            *(
                np.interp(x, fine, derivative(np.exp(-((fine / (k / 5)) ** 2) / 2), order))
                for order in (down, right)
            )
        )
        expected *= banks.NORM / np.linalg.norm(expected)
        np.testing.assert_allclose(f, expected, atol=2e-3)


def derivative(values, order):
    for _ in range(order):
        values = np.gradient(values)
    return values


def test_gaussian8_has_no_1_x_1_filters():
    with pytest.raises(UserError) as error:
        kernel("gaussian8", (1, 1, 2))
    assert str(error.value) == "filters: got 'gaussian8' for 1 x 1 filters, allowed from 2 x 2 on"


# ---- rank against coverage


def test_deltas_of_any_rank_cover_alike_and_smoothed_ones_less():
    """At coverage within 5 %, ranks 9, 3 and 1; at equal rank, different coverage."""
    pairs = {
        (rank, index): (spectrum.rank(found), spectrum.bank_coverage(found, 32))
        for rank in (9, 3, 1)
        for index in (0, 1, 2)
        for found in [kernel("delta", (3, 3, 16, 9), rank=rank, index=index)]
    }
    assert all(got == rank for (rank, _), (got, _) in pairs.items())
    for index in (0, 1):
        covered = [pairs[rank, index][1] for rank in (9, 3, 1)]
        assert max(covered) / min(covered) < 1.05
    for rank in (9, 3, 1):
        covered = [pairs[rank, index][1] for index in (0, 1, 2)]
        assert covered[0] == pytest.approx(1, abs=1e-6)
        assert covered[2] < 0.8 < 0.9 < covered[1] < 0.97


@pytest.mark.parametrize("keep_norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_smoothing_multiplies_each_dct_filter_by_its_factor(keep_norm):
    plain = columns(kernel("dct", (3, 3, 9)))
    smooth = columns(kernel("dct", (3, 3, 9), index=2, keep_norm=keep_norm))
    factor = np.linalg.norm(smooth, axis=0) / np.linalg.norm(plain, axis=0)
    np.testing.assert_allclose(smooth, factor * plain, atol=1e-6)
    squares = np.square(np.pi * np.arange(3) / 3)
    expected = np.exp(-np.add.outer(squares, squares) / 2)
    np.testing.assert_allclose(
        np.sort(factor), np.ones(9) if keep_norm else np.sort(expected.ravel()), rtol=1e-4
    )


# ---- in a model


def test_a_rank_reaches_the_bank_of_a_model():
    sizes = {"width": 4, "depth": 1, "kernel_size": 3, "num_classes": 2}
    for name, more in (("resnet", {}), ("convmixer", {"patch_size": 1})):
        model = models.build(name, filters="delta", filter_rank=3, **sizes, **more)
        assert model.filters == filters.build("delta", rank=3)


@pytest.mark.slow
def test_every_layer_of_a_resnet_has_the_rank():
    model = models.build(
        "resnet", width=4, depth=1, multiplier=4, num_classes=2, filters="delta", filter_rank=3
    )
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)))["spatial"])
    kernels = spectrum.layers({"spatial": init(jax.random.key(0))})
    assert {spectrum.rank(found) for found in kernels.values()} == {3}


def test_the_patch_stem_is_smoothed_if_asked_for():
    sizes = {"width": 4, "depth": 1, "kernel_size": 3, "patch_size": 4, "num_classes": 2}
    smoothing = filters.Smoothing(2.0)
    for smooth_stem, expected in ((True, smoothing), (False, None)):
        model = models.build("convmixer", **sizes, smoothing_index=2.0, smooth_stem=smooth_stem)
        assert model.smooth_stem == expected
    images = jnp.zeros((1, 8, 8, 3))
    plain, smoothed = (
        jax.jit(lambda key, stem=stem: stem.init(key, images)["spatial"])(jax.random.key(0))
        for stem in (layers.PatchStem(4, 4), layers.PatchStem(4, 4, smoothing))
    )
    np.testing.assert_allclose(smoothed["kernel"], smoothing(plain["kernel"]), atol=1e-7)
    np.testing.assert_array_equal(smoothed["bias"], plain["bias"])


@pytest.mark.slow
def test_a_convmixer_hands_the_smoothing_to_its_stem():
    model = models.build(
        "convmixer",
        **{"width": 4, "depth": 1, "kernel_size": 3, "patch_size": 4, "num_classes": 2},
        smoothing_index=2.0,
        smooth_stem=True,
    )
    images = jnp.zeros((1, 8, 8, 3))
    smoothed, plain = (
        jax.jit(lambda key, model=model: model.init(key, images)["spatial"]["stem"]["kernel"])(
            jax.random.key(0)
        )
        for model in (model, model.clone(smooth_stem=None))
    )
    np.testing.assert_allclose(smoothed, filters.smooth(plain, 2), atol=1e-7)


def test_a_resnet_has_no_patch_stem_to_smooth():
    with pytest.raises(UserError, match=r"^model resnet: no argument 'smooth_stem'"):
        models.build("resnet", width=4, depth=1, num_classes=2, smooth_stem=True)
