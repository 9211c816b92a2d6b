"""Attacks against closed forms and float64 NumPy, and the guarantees of every attack."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perceptron import (
    FIRST,
    IMAGES,
    INNER,
    KEYS,
    LABELS,
    RNG,
    SECOND,
    SIZE,
    N,
    perceptron,
)

from randmix import attacks, models
from randmix.analysis import robustness
from randmix.attacks import scores
from randmix.errors import UserError
from randmix.runtime import sharding

PGD = {"steps": 5, "step_size": 0.4}
RANDOM_PGD = PGD | {"random_start": True, "restarts": 3}
ATTACKS = {
    "noise": attacks.noise,
    "fgsm": attacks.fgsm,
    "pgd2": attacks.pgd2,
    "pgd": partial(attacks.pgd, **PGD),
    "pgd_restarts": partial(attacks.pgd, **RANDOM_PGD),
    "targeted": partial(attacks.targeted, steps=4, targets=2),
    "square": partial(attacks.square, queries=12),
    "strong": partial(attacks.strong, steps=8, restarts=2),
}
SEARCHES = ("pgd_restarts", "targeted", "strong")
_SLOW = {False: (), True: pytest.mark.slow}
both_norms = pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
every_attack = pytest.mark.parametrize(
    ("name", "norm"),
    [
        pytest.param(name, norm, marks=_SLOW[norm == "l2" and name in SEARCHES])
        for name in ATTACKS
        for norm in attacks.NORMS
        if (name, norm) != ("square", "l2")
    ],
)


@partial(jax.jit, static_argnums=(0, 1))
def compiled_attack(name, norm, epsilon, images, labels, keys):
    return ATTACKS[name](perceptron, images, labels, epsilon, keys, norm=norm)


def attack(name, norm, epsilon, images=IMAGES, labels=LABELS, keys=KEYS):
    return compiled_attack(name, norm, jnp.float32(epsilon), images, labels, keys)


@jax.jit
def right(images, labels=LABELS):
    return attacks.is_correct(perceptron(images), labels)


def survivors(images, labels=LABELS):
    return np.asarray(right(images, labels))


def length(perturbation, norm):
    flat = np.abs(np.asarray(perturbation, np.float64)).reshape(len(perturbation), -1)
    return flat.max(1) if norm == "linf" else np.sqrt((flat**2).sum(1))


# Independent of the code under test: float64 NumPy, one image at a time.


def numpy_gradient(x, label):
    """Gradient of the perceptron's cross-entropy with respect to one flat image."""
    hidden = np.tanh(x @ FIRST)
    logits = hidden @ SECOND
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[label] -= 1
    return FIRST @ ((SECOND @ p) * (1 - hidden**2))


def numpy_pgd(image, label, epsilon, *, steps, step_size, norm):
    clean = image.astype(np.float64).ravel()
    x = clean.copy()
    for _ in range(steps):
        gradient = numpy_gradient(x, label)
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        delta = x + step_size * epsilon * direction - clean
        if norm == "linf":
            delta = np.minimum(np.maximum(delta, -epsilon), epsilon)
        elif np.linalg.norm(delta) > epsilon:
            delta *= epsilon / np.linalg.norm(delta)
        x = np.minimum(np.maximum(clean + delta, 0), 1)
    return x.reshape(image.shape)


@both_norms
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {"steps": 1, "step_size": 1.0}),
        ("pgd2", {"steps": 2, "step_size": 1.0}),
        ("pgd", PGD),
    ],
)
def test_gradient_attacks_agree_with_numpy_in_float64(name, options, norm):
    for epsilon in (0.03, 0.3):
        got = attack(name, norm, epsilon)
        expected = [
            numpy_pgd(x, y, epsilon, norm=norm, **options)
            for x, y in zip(IMAGES, LABELS, strict=True)
        ]
        np.testing.assert_allclose(got, expected, atol=2e-6)


@both_norms
def test_two_classes_of_a_linear_classifier_in_closed_form(norm):
    """The gradient has a fixed direction, so every attack ends where FGSM does."""
    weights = RNG.normal(size=(SIZE, 2)).astype(np.float32)
    labels = LABELS % 2

    def linear(images):
        return images.reshape(len(images), -1) @ weights

    away = np.where(
        labels[:, None] == 0, weights[:, 1] - weights[:, 0], weights[:, 0] - weights[:, 1]
    )
    direction = (
        np.sign(away) if norm == "linf" else away / np.linalg.norm(away, axis=1, keepdims=True)
    )
    expected = INNER + 0.05 * direction.reshape(INNER.shape)
    for name in ("fgsm", "pgd2", "pgd"):
        got = jax.jit(partial(ATTACKS[name], linear, norm=norm))(INNER, labels, 0.05, KEYS)
        np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=name)


@pytest.mark.slow
@every_attack
def test_epsilon_0_changes_no_bit(name, norm):
    np.testing.assert_array_equal(attack(name, norm, 0.0), IMAGES)


@pytest.mark.slow
@every_attack
def test_nothing_leaves_the_ball_or_the_cube(name, norm):
    for epsilon in (0.01, 0.4):
        got = np.asarray(attack(name, norm, epsilon))
        assert (length(got - IMAGES, norm) <= epsilon + 1e-6).all()
        assert got.min() >= 0
        assert got.max() <= 1


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("noise", "linf"),
        ("fgsm", "linf"),
        ("pgd2", "l2"),
        pytest.param("pgd_restarts", "l2", marks=pytest.mark.slow),
        pytest.param("strong", "linf", marks=pytest.mark.slow),
    ],
)
def test_a_curve_is_its_points(name, norm):
    epsilons = np.array([0.0, 0.02, 0.1, 0.5], np.float32)
    curve = jax.vmap(partial(attack, name, norm))(epsilons)
    for epsilon, got in zip(epsilons, curve, strict=True):
        np.testing.assert_allclose(got, attack(name, norm, epsilon), atol=1e-6)


@every_attack
def test_an_attack_is_deterministic_and_independent_of_position(name, norm):
    once = attack(name, norm, 0.1)
    np.testing.assert_array_equal(once, attack(name, norm, 0.1))
    turned = attack(name, norm, 0.1, IMAGES[::-1], LABELS[::-1], KEYS[::-1])[::-1]
    np.testing.assert_allclose(once, turned, atol=1e-6)
    assert np.array_equal(once, attack(name, norm, 0.1, keys=KEYS[::-1])) == (
        name in ("fgsm", "pgd2", "pgd")
    )


@both_norms
def test_the_strong_attack_fools_whatever_another_one_fools(norm):
    for epsilon in {"linf": (0.01, 0.03), "l2": (0.05, 0.15)}[norm]:
        weaker = ("noise", "fgsm", "pgd2", "pgd", "pgd_restarts")
        left = {name: survivors(attack(name, norm, epsilon)) for name in (*weaker, "strong")}
        assert 0 < left["strong"].sum() < left["noise"].sum()
        for name, right in left.items():
            assert not (left["strong"] & ~right).any(), name


@pytest.mark.slow
@both_norms
def test_restarts_find_more_and_never_lose_what_fewer_have_found(norm):
    """With steps of size 0, only another random start can find another image."""
    epsilon = {"linf": 0.15, "l2": 0.8}[norm]
    two, ten = (
        survivors(
            jax.jit(
                partial(
                    attacks.pgd,
                    perceptron,
                    norm=norm,
                    steps=1,
                    step_size=0.0,
                    random_start=True,
                    restarts=n,
                )
            )(IMAGES, LABELS, epsilon, KEYS)
        )
        for n in (2, 10)
    )
    assert not (ten & ~two).any()
    assert ten.sum() < two.sum() < N


@pytest.mark.slow
def test_the_strong_attack_includes_the_others_where_its_search_fails():
    """FGSM fools this classifier on the first image, noise on the second, and no search does."""
    images, labels, keys = INNER[:2], np.zeros(2, np.int32), KEYS[:2]

    def classifier(x):
        moved = jnp.abs(x - images).reshape(2, -1)
        # The gradient points along the first pixel alone, so FGSM leaves all others unchanged.
        at_fgsm = (moved[:, 0] > 0.099) & (moved[:, 1:].max(-1) == 0)
        at_noise = moved.min(-1) > 0.099
        slope = (x - images).reshape(2, -1)[:, 0]
        wrong = jnp.stack([at_fgsm[0], at_noise[1]])
        return jnp.stack([jnp.where(wrong, -1.0, 1.0) - 1e-3 * slope, jnp.zeros(2)], -1)

    got = jax.jit(partial(attacks.strong, classifier, steps=1, restarts=1))(
        images, labels, 0.1, keys
    )
    assert not attacks.is_correct(classifier(got), labels).any()


def test_at_equal_margins_a_wrong_answer_wins():
    """Two logits tie in both attempts, and argmax returns the first: wrong once, right once."""
    labels = jnp.array([1, 1])
    wrong, right = jnp.array([2.0, 2.0, 0.0]), jnp.array([0.0, 2.0, 2.0])
    one = attacks.Attempt(jnp.zeros((2, 1, 1, 1)), jnp.stack([wrong, right]))
    other = attacks.Attempt(jnp.ones((2, 1, 1, 1)), jnp.stack([right, wrong]))
    assert (
        attacks.margin(one.logits, labels).tolist()
        == attacks.margin(other.logits, labels).tolist()
        == [0, 0]
    )
    assert attacks.is_correct(one.logits, labels).tolist() == [False, True]
    assert scores.worse(labels, one, other).images.ravel().tolist() == [0, 1]


@pytest.mark.slow
def test_the_gradient_of_a_sure_classifier_keeps_its_direction_in_float32():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 10))
    labels = rng.integers(0, 10, 50)
    logits[np.arange(50), labels] += 40
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    others = np.where(np.eye(10)[labels] == 1, 0, p)
    # p - 1 without cancellation
    expected = others - np.eye(10)[labels] * others.sum(1, keepdims=True)
    got = jax.grad(lambda z: attacks.cross_entropy(z, labels).sum())(logits.astype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=0)
    value = attacks.cross_entropy(logits.astype(np.float32), labels)
    np.testing.assert_allclose(value, others.sum(1), rtol=2e-5)


def test_a_tiny_gradient_still_gives_a_whole_step_in_l2():
    @jax.jit
    def scaled(factor):
        return attacks.fgsm(lambda x: factor * perceptron(x), INNER, LABELS, 0.1, norm="l2")

    np.testing.assert_allclose(length(scaled(1e-30) - INNER, "l2"), 0.1, rtol=1e-5)
    still = scaled(0.0)
    np.testing.assert_array_equal(still, INNER)


@both_norms
def test_noise_is_as_large_as_the_step_of_fgsm(norm):
    perturbation = np.asarray(attack("noise", norm, 0.1, INNER)) - INNER
    if norm == "linf":
        np.testing.assert_allclose(np.abs(perturbation), 0.1, atol=1e-6)
        assert 0.35 < (perturbation > 0).mean() < 0.65
    np.testing.assert_allclose(length(perturbation, norm), 0.1, rtol=1e-5)


@both_norms
def test_random_starts_are_uniform_in_the_ball(norm):
    shape = (2, 2, 1)
    draw = jax.vmap(lambda key: attacks.ball(norm).inside(key, shape, jnp.float32))
    points = np.asarray(draw(jax.random.split(jax.random.key(2), 4000)))
    # The share of the volume nearer to the centre than the point is uniform in [0, 1].
    shares = np.sort(length(points, norm) ** 4)
    assert np.abs(shares - np.linspace(0, 1, 4000)).max() < 0.03
    assert np.abs(points.mean(0)).max() < 0.03


def test_arguments_out_of_range():
    for options, message in (
        ({"steps": 0}, "steps: got 0, allowed 1 or more"),
        ({"steps": 1, "restarts": 0}, "restarts: got 0, allowed 1 or more"),
        ({"steps": 1, "restarts": 2}, "restarts: got 2 without a random start"),
        ({"steps": 1, "norm": "l1"}, "norm: got 'l1', allowed linf, l2"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            attacks.pgd(perceptron, IMAGES, LABELS, 0.1, KEYS, **options)
    for options in ({"steps": 0}, {"restarts": 0}):
        with pytest.raises(UserError, match="allowed 1 or more"):
            attacks.strong(perceptron, IMAGES, LABELS, 0.1, KEYS, **options)
    with pytest.raises(ValueError, match="keys: got None"):
        attacks.noise(perceptron, IMAGES, LABELS, 0.1, None)


@pytest.mark.slow
def test_a_curve_of_fgsm_and_pgd2_costs_the_passes_that_it_needs():
    """One clean gradient for all epsilons; FGSM's score comes with PGD-2's second gradient."""
    model = models.build("convmixer", width=8, depth=1, kernel_size=3, patch_size=2, num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    data = {"image": np.zeros((16, 8, 8, 1), np.uint8), "label": np.zeros(16, np.int32)}
    images, epsilons = np.zeros((16, 8, 8, 1), np.float32), np.arange(1, 9, dtype=np.float32)
    classifier = partial(model.apply, variables, train=False)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    def loss(images):
        return attacks.cross_entropy(classifier(images), data["label"]).sum()

    forward, both = flops(classifier, images), flops(jax.value_and_grad(loss), images)
    curves = robustness.jit_together(
        model=model,
        settings=robustness.Settings(("fgsm", "pgd2"), tuple(epsilons)),
        mesh=sharding.make_mesh(jax.devices()[:1]),
        batch_size=16,
    )
    got = flops(curves, variables, data, 0, epsilons, np.uint32(0))
    # In a model this small, steps, which are no passes, count too.
    assert got <= 1.2 * ((1 + 8) * both + 8 * forward)
