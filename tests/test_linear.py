"""Linear regression from the pixels within reach, against scikit-learn position by position."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from randmix.analysis import linear
from randmix.models import reach
from randmix.training import tasks


def images(n, shape, seed):
    """Images whose pixels depend on each other; the first is constant."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 4)) @ np.random.default_rng(0).normal(size=(4, np.prod(shape)))
    noisy = 128 + 30 * (hidden + rng.normal(size=hidden.shape))
    noisy[:, : shape[-1]] = 7
    return noisy.clip(0, 255).astype(np.uint8).reshape(n, *shape)


@pytest.mark.parametrize(
    ("shape", "size"), [((5, 6, 1), (1, 3)), ((4, 5, 3), (1, 6)), ((6, 3, 2), (2, 2))]
)
def test_each_pixel_is_copied_or_predicted_by_ridge_regression(shape, size, monkeypatch):
    monkeypatch.setattr(linear, "_CHUNK", 64)
    height, width, channels = shape
    train, test = images(150, shape, 1), images(20, shape, 2)
    permutation = tasks.pixel_permutation(3, height, width)
    fields = reach.windows(*size, 1, shape)
    got = linear.reconstruct(train, test, permutation, fields)
    assert (got.shape, got.dtype) == (test.shape, np.float32)
    given, wanted = train / 255, test / 255
    variance = given.reshape(150, -1).var(axis=0).mean()
    moved, moved_test = (tasks.shuffle(part, permutation) for part in (given, wanted))
    copied = 0
    for target in range(height * width):
        row, column = divmod(target, width)
        seen = np.outer(fields[0][row], fields[1][column])
        x, x_test = (part[:, seen].reshape(len(part), -1) for part in (moved, moved_test))
        if target in permutation.reshape(height, width)[seen]:
            np.testing.assert_array_equal(
                got[:, row, column], test[:, row, column] / np.float32(255)
            )
            copied += 1
            continue
        ridge = Ridge(alpha=linear.RIDGE * variance * len(train))
        expected = ridge.fit(x, given[:, row, column]).predict(x_test).reshape(-1, channels)
        np.testing.assert_allclose(got[:, row, column], expected, atol=1e-4)
    assert copied == round(height * width * reach.permutation_reach(permutation, fields))
    assert 0 < copied < height * width


def test_it_learns_from_the_first_images_only(monkeypatch):
    monkeypatch.setattr(linear, "TRAIN_EXAMPLES", 50)
    shape = (3, 4, 1)
    train, test = images(90, shape, 1), images(5, shape, 2)
    task = (tasks.pixel_permutation(0, 3, 4), reach.windows(1, 3, 1, shape))
    first = linear.reconstruct(train[:50], test, *task)
    np.testing.assert_array_equal(linear.reconstruct(train, test, *task), first)


def test_without_reach_only_the_mean_is_left():
    """A 1 x 1 kernel sees its own place, whose pixel says nothing where all are independent."""
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (2, 20_000, 3, 3, 1)).astype(np.uint8)
    permutation = np.roll(np.arange(9), 1)
    got = linear.reconstruct(train, test[:50], permutation, reach.windows(1, 1, 1, (3, 3)))
    np.testing.assert_allclose(got, np.broadcast_to(tasks.mean_image(train), got.shape), atol=0.03)
