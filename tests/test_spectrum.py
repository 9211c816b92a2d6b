"""Envelopes of banks of filters, and the measures of what they cover."""

import itertools
import time
import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spectra import bank, reference

from randmix.analysis import spectrum
from randmix.analysis.spectrum import envelopes
from randmix.errors import UserError
from randmix.models import filters


def frequencies(size):
    return np.fft.fftshift(np.fft.fftfreq(size))


# ---- envelopes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((8, 8, 6), 512),
        ((3, 3, 2, 9), 512),
        ((1, 1, 2), 8),
        ((7, 7), 51),
        ((4, 4, 3), 4),
        ((5, 5, 40), 9),
    ],
)
def test_an_envelope_is_the_largest_magnitude_of_the_padded_fourier_transforms(shape, size):
    kernels = bank((*shape[:2], 1))[..., 0] if len(shape) == 2 else bank(shape)
    found = spectrum.envelope(kernels, size)
    assert (found.shape, found.dtype) == ((size, size), np.float32)
    expected = reference(kernels, size)
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


def test_the_paper_pads_to_512():
    assert spectrum.envelope(np.ones((1, 1, 1))).shape == (512, 512)


@pytest.mark.parametrize("size", [64, 65])
def test_the_identity_is_flat_and_a_box_is_a_product_of_dirichlet_kernels(size):
    np.testing.assert_allclose(
        spectrum.envelope(filters.build("identity")(None, (5, 5, 3)), size), 1, rtol=1e-6
    )
    f = frequencies(size)
    with np.errstate(invalid="ignore"):
        dirichlet = np.where(f == 0, 1, abs(np.sin(np.pi * 5 * f) / (5 * np.sin(np.pi * f))))
    found = spectrum.envelope(filters.build("box")(None, (5, 5, 3)), size)
    np.testing.assert_allclose(found, np.outer(dirichlet, dirichlet), atol=1e-6)


def test_a_wave_down_the_rows_stands_in_the_column_of_horizontal_frequency_zero():
    wave = np.repeat(np.cos(2 * np.pi * np.arange(16) / 4)[:, None], 16, axis=1)
    found = spectrum.envelope(wave, 16)
    assert {(frequencies(16)[i], frequencies(16)[j]) for i, j in np.argwhere(found > 1)} == {
        (-0.25, 0),
        (0.25, 0),
    }


def test_the_envelope_of_two_banks_is_the_maximum_of_theirs():
    kernels = bank((4, 4, 30))
    first, second = (spectrum.envelope(part, 64) for part in (kernels[..., :11], kernels[..., 11:]))
    both = spectrum.envelope(kernels, 64)
    np.testing.assert_array_equal(both, np.maximum(first, second))
    assert (both > first).any()


def test_chunks_do_not_show(monkeypatch):
    kernels = bank((3, 3, 50))
    found = []
    for chunk in (1, 7 * 32 * 17, 10**9):
        monkeypatch.setattr(envelopes, "_CHUNK", chunk)
        found.append(spectrum.envelope(kernels, 32))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_memory_does_not_grow_with_the_bank():
    def peak(kernels):
        tracemalloc.start()
        spectrum.envelope(kernels, 32)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    kernels = np.random.default_rng(0).random((3, 3, 100_000), np.float32)
    small_bank = np.ascontiguousarray(kernels[..., :1_000])
    assert peak(kernels) < 1.1 * peak(small_bank) < 8e6


@pytest.mark.slow
def test_1024_filters_of_9_x_9_take_less_than_10_seconds():
    kernels = bank((9, 9, 1024))
    start = time.process_time()  # the machine may be busy
    spectrum.envelope(kernels)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (
            np.ones((3, 3, 0)),
            "filter bank: got shape [3, 3, 0], allowed is at least one filter",
        ),
        (
            np.ones((3, 4, 2)),
            "filter bank: got shape [3, 4, 2], allowed are square filters [k, k, ...]",
        ),
        (np.ones(3), "filter bank: got shape [3], allowed are square filters [k, k, ...]"),
        (np.ones((9, 9, 1)), "filter bank: got filters [9, 9], allowed up to size = 8"),
        (
            np.full((2, 2, 1), np.nan),
            "filter bank: got weights that are NaN or infinite; allowed are finite numbers",
        ),
    ],
)
def test_a_bank_without_an_envelope_is_one_line(kernels, message):
    with pytest.raises(UserError) as error:
        spectrum.envelope(kernels, 8)
    assert str(error.value) == message


# ---- measures


def test_coverage_is_a_share_of_frequencies():
    ramp = np.linspace(0, 1, 101)
    assert [spectrum.coverage(ramp, t) for t in (0, 0.5, 0.755)] == pytest.approx(
        [100 / 101, 50 / 101, 25 / 101]
    )
    assert spectrum.coverage(7 * ramp) == spectrum.coverage(ramp)
    assert spectrum.coverage(np.ones((4, 4)), 0.999) == 1
    measures = (spectrum.mean_coverage, spectrum.effective_coverage, spectrum.mean_frequency)
    for zero in (spectrum.coverage, *measures):
        assert zero(np.zeros((4, 4))) == 0
    for threshold in (-0.1, 1, float("nan")):
        with pytest.raises(UserError, match=f"threshold: got {threshold}, allowed from 0 up to"):
            spectrum.coverage(ramp, threshold)


def test_mean_coverage_is_the_area_under_coverage_against_threshold():
    envelope = spectrum.envelope(bank((8, 8, 3)), 64)
    thresholds = (np.arange(2000) + 0.5) / 2000
    area = np.mean([spectrum.coverage(envelope, t) for t in thresholds])
    assert spectrum.mean_coverage(envelope) == pytest.approx(area, abs=1e-3)


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(0, 9)))
def test_effective_coverage_is_the_share_of_a_flat_envelope_of_like_mean_and_energy(values):
    found = spectrum.effective_coverage(values)
    assert 0 <= found <= 1 + 1e-12
    mean, rms = values.mean(), np.linalg.norm(values) / np.sqrt(values.size)
    assert found * rms**2 == pytest.approx(mean**2)
    assert spectrum.effective_coverage(7 * values) == pytest.approx(found)


def test_effective_coverage_in_closed_form():
    plane = np.zeros((8, 8))
    plane[:3] = 5
    assert spectrum.effective_coverage(plane) == pytest.approx(3 / 8)
    assert spectrum.effective_coverage(np.ones((4, 4))) == 1
    ramp = (np.arange(10_000) + 0.5) / 10_000
    assert spectrum.effective_coverage(ramp) == pytest.approx(3 / 4)
    # A Gaussian of width s in both directions: 4 pi s^2, as its mean is 2 pi s^2 and its energy
    # pi s^2.
    f = frequencies(512)
    gaussian = np.exp(-(f[:, None] ** 2 + f**2) / (2 * 0.05**2))
    assert spectrum.effective_coverage(gaussian) == pytest.approx(4 * np.pi * 0.05**2, rel=1e-6)


@pytest.mark.parametrize(("k", "m", "spread"), [(3, 9, 0.02), (8, 16, 0.01)])
def test_effective_coverage_varies_least_between_seeds_and_falls_under_smoothing(k, m, spread):
    def variation(measure, index):
        values = [measure(envelope) for envelope in envelopes_of[index]]
        return np.std(values, ddof=1) / np.mean(values)

    rng = np.random.default_rng(0)
    kernels = rng.uniform(-1, 1, (50, k, k, m)).astype(np.float32)
    envelopes_of = {
        index: [spectrum.envelope(filters.smooth(kernel, index), 32) for kernel in kernels]
        for index in (0, 2)
    }
    for index in (0, 2):
        steady = variation(spectrum.effective_coverage, index)
        assert steady < variation(spectrum.mean_coverage, index) / 2
        assert steady < variation(spectrum.coverage, index) / 4
    assert variation(spectrum.effective_coverage, 0) < spread
    rough, smooth = (list(map(spectrum.effective_coverage, envelopes_of[i])) for i in (0, 2))
    assert np.greater(rough, smooth).all()


def test_a_single_filter_is_a_bank():
    one = bank((3, 3, 1))
    assert spectrum.rank(one[:, :, 0]) == 1
    assert spectrum.bank_coverage(one[:, :, 0]) == spectrum.bank_coverage(one)
    large = bank((200, 200, 2))
    assert spectrum.bank_coverage(large) == spectrum.bank_coverage(large, 200)


@pytest.mark.parametrize("shape", [(3, 3, 4, 9), (2, 2, 3, 2), (5, 5, 4, 1), (3, 3, 5), (4, 4, 20)])
def test_rank_and_coverage_of_banks_are_numpys(shape):
    kernels = bank(shape).copy()
    kernels[..., -1] = 3 * kernels[..., 0] + 1e-4 * kernels[..., -1]  # almost dependent
    layer = kernels if kernels.ndim == 4 else kernels[:, :, None]
    ranks, covered = [], []
    for channel in np.moveaxis(layer.astype(np.float64), 2, 0):
        matrix = channel.reshape(-1, channel.shape[-1])
        ranks.append(np.linalg.matrix_rank(matrix, tol=0.01 * np.linalg.norm(matrix, 2)))
        plane = reference(channel, 64)
        covered.append(plane.mean() ** 2 / np.square(plane).mean())
    assert spectrum.rank(kernels) == np.mean(ranks)
    assert spectrum.bank_coverage(kernels, 64) == pytest.approx(np.mean(covered), rel=1e-5)
    for factor in (1e-3, 7):
        assert spectrum.rank(factor * kernels) == spectrum.rank(kernels)


def test_the_rank_s_threshold_is_a_share_of_the_largest_singular_value():
    kernels = np.zeros((2, 2, 1, 3))
    kernels.reshape(4, 3)[[0, 1, 2], [0, 1, 2]] = 5, 0.051, 0.049
    assert spectrum.rank(kernels) == 2
    assert [spectrum.rank(kernels, t) for t in (0.009, 0.5)] == [3, 1]
    assert spectrum.rank(np.zeros((2, 2, 3))) == 0


def test_more_random_filters_cover_more():
    of_seeds = [
        [
            spectrum.coverage(spectrum.envelope(bank((8, 8, 64), seed)[..., :n], 128))
            for n in (1, 4, 16, 64)
        ]
        for seed in range(5)
    ]
    means = np.mean(of_seeds, axis=0)
    assert (np.diff(means) > 0.1).all(), means
    assert means[0] < 0.35
    assert means[-1] > 0.85


def test_mean_frequency_is_where_the_energy_lies():
    # The mean distance of the points of a unit square from its centre.
    flat = (np.sqrt(2) + np.arcsinh(1)) / 6
    assert spectrum.mean_frequency(np.ones((512, 512))) == pytest.approx(flat, rel=1e-4)
    line = np.zeros((8, 8))
    line[4, [2, 4, 6]] = 3, 6, 3  # energy 9 at 0.25 on either side of 36 at 0
    assert spectrum.mean_frequency(line) == pytest.approx(0.25 * 18 / 54)


@pytest.mark.parametrize("size", [64, 512])
def test_a_radial_profile_finds_a_radial_function_again(size):
    radius = np.hypot(frequencies(size)[:, None], frequencies(size))
    middles, means = spectrum.radial_profile(np.exp(-3 * radius))
    assert means.shape == (size // 8,)
    np.testing.assert_allclose(means, np.exp(-3 * middles), rtol=0.1 if size == 64 else 0.01)
    np.testing.assert_allclose(spectrum.radial_profile(np.ones((size, size)))[1], 1)


@pytest.mark.parametrize("cut", [0.2, 0.3, 0.4])
def test_smoothing_moves_an_envelope_to_low_frequencies(cut):
    kernels = bank((8, 8, 16))
    found = [spectrum.envelope(filters.smooth(kernels, index), 128) for index in (0, 1, 2, 4)]
    above = np.hypot(frequencies(128)[:, None], frequencies(128)) > cut
    for measure in (lambda e: np.square(e[above]).sum(), spectrum.mean_frequency):
        assert all(later < earlier for earlier, later in itertools.pairwise(map(measure, found)))
