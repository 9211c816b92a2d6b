"""The Square and the targeted attack against float64 NumPy, written from the papers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from perceptron import CLASSES, FIRST, IMAGES, INNER, KEYS, LABELS, SECOND, perceptron

from randmix import attacks
from randmix.analysis import robustness
from randmix.analysis.robustness import sanity
from randmix.attacks import balls
from randmix.errors import UserError

N, H, W, C = IMAGES.shape


def numpy_logits(images):
    return np.tanh(images.reshape(len(images), -1) @ FIRST) @ SECOND


def numpy_margin(images, labels):
    """The largest wrong logit minus the label's, [N]; above 0 where the classifier is wrong."""
    logits = numpy_logits(images)
    own = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    return logits.max(1) - own


def numpy_square(images, labels, epsilon, queries, rng):
    """Algorithms 1 and 2 of arXiv 1912.00049; returns which images are still classified right."""
    right = numpy_margin(images, labels) < 0
    images, labels = images[right].astype(np.float64), labels[right]

    def clipped(x):
        return np.clip(x, 0, 1)

    stripes = rng.choice([-epsilon, epsilon], (len(images), 1, W, C))
    best = clipped(images + stripes)
    margin = numpy_margin(best, labels)
    halvings = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]) / 10_000 * queries
    for query in range(queries - 1):
        p = 0.8 * 0.5 ** (query > halvings).sum()
        side = int(min(max(round(np.sqrt(p * H * W)), 1), H, W))
        tried = best.copy()
        for i in np.flatnonzero(margin <= 0):
            top, left = rng.integers(0, H - side + 1), rng.integers(0, W - side + 1)
            place = i, slice(top, top + side), slice(left, left + side)
            while (tried[place] == best[place]).all():
                tried[place] = clipped(images[place] + rng.choice([-epsilon, epsilon], C))
        new = numpy_margin(tried, labels)
        better = new > margin
        best[better], margin[better] = tried[better], new[better]
    return (margin <= 0).sum()


@pytest.mark.slow
def test_square_leaves_as_many_right_as_numpy_after_the_same_queries():
    seeds, epsilon, queries = 12, 0.06, 24
    square = jax.jit(partial(attacks.square, perceptron, queries=queries))
    ours, theirs = [], []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(seed), N)
        attacked = square(IMAGES, LABELS, epsilon, keys)
        ours.append(int(attacks.is_correct(perceptron(attacked), LABELS).sum()))
        rng = np.random.default_rng(seed)
        theirs.append(numpy_square(IMAGES, LABELS, epsilon, queries, rng))
    error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / seeds)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error
    # The test can tell: fewer queries leave more.
    fewer = np.mean([numpy_square(IMAGES, LABELS, epsilon, 6, np.random.default_rng(0))])
    assert fewer - np.mean(ours) > 4 * error


@pytest.mark.slow
def test_square_moves_stripes_then_squares_to_corners_of_the_ball():
    labels = np.asarray(perceptron(INNER).argmax(-1))

    @partial(jax.jit, static_argnums=0)
    def moved(queries):
        return attacks.square(perceptron, INNER, labels, 0.01, KEYS, queries=queries) - INNER

    first = np.asarray(moved(1))
    first = first[np.abs(first).max((1, 2, 3)) > 0]  # elsewhere the clean image is worse
    assert len(first) > N / 4
    np.testing.assert_allclose(np.abs(first), 0.01, atol=1e-6)
    np.testing.assert_array_equal(np.sign(first), np.sign(first[:, :1]) + np.zeros((1, H, 1, 1)))
    later = np.asarray(moved(3))
    later = later[np.abs(later).max((1, 2, 3)) > 0]
    np.testing.assert_allclose(np.abs(later), 0.01, atol=1e-6)
    assert (np.sign(later) != np.sign(later[:, :1])).any()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_targeted_finds_the_points_of_numpy(norm):
    epsilon, steps = {"linf": 0.02, "l2": 0.1}[norm], 3
    got = jax.jit(partial(attacks.targeted, perceptron, steps=steps, targets=2, norm=norm))(
        IMAGES, LABELS, epsilon, KEYS
    )
    flat, worst = IMAGES.reshape(N, -1).astype(np.float64), numpy_margin(IMAGES, LABELS)
    logits = numpy_logits(IMAGES)
    logits[np.arange(N), LABELS] = -np.inf
    order = np.argsort(-logits, axis=1)
    for number in range(CLASSES - 1):
        x = np.asarray(balls.random_point(IMAGES, epsilon, KEYS, number, norm), np.float64)
        x = x.reshape(N, -1)
        for step in range(steps + 1):
            worst = np.maximum(worst, numpy_margin(x.reshape(IMAGES.shape), LABELS))
            if step < steps:
                x = numpy_step(x, flat, order[:, number], epsilon, 2.5 * epsilon / steps, norm)
    np.testing.assert_allclose(numpy_margin(np.asarray(got), LABELS), worst, atol=2e-4)
    assert 0 < (worst > 0).sum() - (numpy_margin(IMAGES, LABELS) > 0).sum() < N / 2


def numpy_step(x, clean, target, epsilon, size, norm):
    """One step of size ``size`` along the gradient of logit ``target`` minus the label's."""
    slope = (1 - np.tanh(x @ FIRST) ** 2) * (SECOND[:, target] - SECOND[:, LABELS]).T
    gradient = slope @ FIRST.T
    if norm == "linf":
        delta = np.clip(x + size * np.sign(gradient) - clean, -epsilon, epsilon)
    else:
        delta = x + size * gradient / np.linalg.norm(gradient, axis=1, keepdims=True) - clean
        delta *= np.minimum(1, epsilon / np.linalg.norm(delta, axis=1, keepdims=True))
    return np.clip(clean + delta, 0, 1)


def test_what_the_searches_refuse():
    arguments = (perceptron, IMAGES, LABELS, 0.1, KEYS)
    for attack, options, message in (
        (attacks.square, {"queries": 0}, "queries: got 0, allowed 1 or more"),
        (attacks.square, {"norm": "l2"}, "square: got the norm 'l2', allowed is 'linf'"),
        (attacks.targeted, {"targets": 0}, "targets: got 0, allowed 1 or more"),
        (attacks.targeted, {"norm": "l1"}, "norm: got 'l1', allowed linf, l2"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            attack(*arguments, **options)
    with pytest.raises(ValueError, match="keys: got None"):
        attacks.square(*arguments[:-1], None)


class Quantised(nn.Module):
    """Compares two brightnesses, of 32 levels each: no pixel has a gradient."""

    dtype: object = None

    @nn.compact
    def __call__(self, images, train=False):
        steps = jnp.floor(32 * images)
        left, right = steps[:, :, :4].mean((1, 2, 3)), steps[:, :, 4:].mean((1, 2, 3))
        return jnp.stack([left - right, right - left], -1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info")
def test_masked_gradients_are_caught():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
    labels = np.asarray(Quantised().apply({}, images / np.float32(255)).argmax(-1), np.int32)
    settings = robustness.Settings(
        ("noise", "fgsm", "pgd2", "targeted", "square", "strong"),
        (0.0, 48.0),
        square={"queries": 150},
        targeted={"steps": 3},
        strong={"steps": 3, "restarts": 2},
    )
    curves = robustness.measure(
        Quantised(), {}, {"image": images, "label": labels}, settings, devices=jax.devices()[:1]
    )
    assert curves.accuracy("fgsm")[1] == 1
    assert curves.accuracy("square")[1] < 0.2
    *_, black_box, targeted = sanity.checks(curves)
    assert black_box.passed is False
    assert str(black_box).endswith("at 48, the gradients are masked")
    assert targeted.passed
