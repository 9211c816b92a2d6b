"""Mixers of tokens by themselves, against NumPy."""

import jax
import numpy as np
import pytest

from randmix.models import mixers


def test_a_pooled_pixel_is_its_windows_mean_less_itself():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 7, 3)).astype(np.float32)
    for k in (1, 2, 5, 9):
        before, after = (k - 1) // 2, k // 2
        expected = np.empty_like(x)
        for i, j in np.ndindex(4, 7):
            rows, columns = (
                slice(max(i - before, 0), i + after + 1),
                slice(max(j - before, 0), None),
            )
            window = x[:, rows, columns][:, :, : j + after + 1 - max(j - before, 0)]
            expected[:, i, j] = window.mean((1, 2)) - x[:, i, j]
        np.testing.assert_allclose(jax.jit(mixers.Pooling(k).apply)({}, x), expected, atol=1e-5)


@pytest.mark.parametrize(("k", "channels"), [(1, 3), (2, 9), (3, 4), (3, 20), (5, 60)])
def test_a_shift_moves_each_group_of_channels_as_a_whole(k, channels):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, channels)).astype(np.float32)
    got = np.asarray(jax.jit(mixers.Shift(k).apply)({}, x))
    moves, margin = [], (k - 1) // 2
    for c in range(channels):
        found = [
            (i, j)
            for i, j in np.ndindex(k, k)
            if np.array_equal(got[..., c], moved(x[..., c], i - margin, j - margin))
        ]
        assert len(found) == 1
        moves += found
    sizes = np.unique(moves, axis=0, return_counts=True)[1]
    assert len(sizes) == min(k * k, channels)
    assert sizes.max() - sizes.min() <= 1
    assert moves == sorted(moves)


def moved(x, rows, columns):
    """x [N, H, W] with each pixel replaced by that many rows below and columns to the right."""
    result = np.zeros_like(x)
    _, h, w = x.shape
    for i, j in np.ndindex(h, w):
        if 0 <= i + rows < h and 0 <= j + columns < w:
            result[:, i, j] = x[:, i + rows, j + columns]
    return result


def test_attention_by_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    layer = mixers.Attention(head_dim=2)
    variables = layer.init(jax.random.key(0), x)
    weights = jax.tree.map(np.asarray, {**variables["spatial"], **variables["channel"]})
    q, k, v = (
        (x @ weights[name]["kernel"] + weights[name]["bias"]).reshape(2, 12, 3, 2)
        for name in ("query", "key", "value")
    )
    expected = np.empty((2, 12, 3, 2))
    for n, head in np.ndindex(2, 3):
        scores = np.exp(q[n, :, head] @ k[n, :, head].T / np.sqrt(2))
        expected[n, :, head] = scores / scores.sum(1, keepdims=True) @ v[n, :, head]
    expected = expected.reshape(x.shape) @ weights["output"]["kernel"] + weights["output"]["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_the_random_matrix_averages_at_first():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    layer = mixers.RandomMixing()
    variables = layer.init(jax.random.key(0), x)
    kernel = np.asarray(variables["spatial"]["matrix"]["kernel"])
    assert kernel.min() > 0
    np.testing.assert_allclose(kernel.sum(0), 1, atol=1e-6)
    # RandFormer's: the softmax of uniform numbers, whose largest ratio is e.
    assert 2 < (kernel.max(0) / kernel.min(0)).max() < np.e
    expected = np.einsum("st,nsc->ntc", kernel, x.reshape(2, 12, 5)).reshape(x.shape)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)
