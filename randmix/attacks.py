"""Attacks on a classifier's input in pure JAX: FGSM, PGD-2, PGD, a strong one, and noise as their control.

The paper's section 4.3. FGSM (Goodfellow et al., arXiv 1412.6572) is its equation 4,

    adversarial = images + epsilon * sign(gradient of the loss with respect to the images),

and PGD takes that step again and again, projected on the ball of radius epsilon around the clean image. FGSM and
PGD-2 measure how sensitive a classifier is, not how robust: a strong attack belongs beside them.

An attack is a function ``(classifier, images, labels, epsilon, keys) -> adversarial images``, where

    classifier: images [N, H, W, C] float32 in [0, 1] -> logits [N, classes]. Each example must be scored by
        itself: ``partial(model.apply, variables, train=False)``, and normalisation is inside the model.
    images: [N, H, W, C] float32 in [0, 1].
    labels: [N] int32, the true ones.
    epsilon: [] float32, the ball's radius on the scale of the pixels: 8/255, not 8.
    keys: [N] typed keys, an example's own, so that no result depends on how examples are put in batches; None
        where nothing is drawn.

The result has the images' shape and lies in the ball and in [0, 1]. All of it may be jitted, and vmapped over
epsilon: what doesn't depend on epsilon, the gradient at the clean images above all, is then computed once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from randmix import balls
from randmix.errors import UserError

Array = jax.Array
Classifier = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]
Perturb = Callable[
    [Classifier, Array, Array], Array
]  # an attack whose radius is set and that draws nothing


class Attempt(NamedTuple):
    """Images [N, H, W, C] that were tried, and the classifier's logits [N, classes] for them."""

    images: Array
    logits: Array


def noise(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: Array,
    keys: Array,
    *,
    norm: str = "linf",
) -> Array:
    """The control: a perturbation as large as FGSM's in a direction that has nothing to do with the classifier.

    Every pixel moves by epsilon up or down ("linf"), or the image by epsilon in a random direction ("l2").
    """
    direction = _draw(balls.get(norm).surface, keys, images)
    return _move(images, images, epsilon * direction, epsilon, norm)


def ascent(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: Array,
    *,
    steps: int,
    norm: str = "linf",
) -> tuple[Attempt, ...]:
    """The points that equation 4 visits when it is applied again and again, from the clean images on.

    Point 0 is the clean images, point 1 FGSM, point 2 PGD-2: one pass forward and back for each but the last,
    which takes the pass forward only.

    Returns:
        ``steps + 1`` attempts.
    """
    points, attempts = images, []
    for _ in range(steps):
        logits, gradient = _differentiate(classifier, cross_entropy, points, labels)
        attempts.append(Attempt(points, logits))
        points = _move(images, points, epsilon * balls.get(norm).steepest(gradient), epsilon, norm)
    return (*attempts, Attempt(points, classifier(points)))


def fgsm(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: Array,
    keys: Array | None = None,
    *,
    norm: str = "linf",
) -> Array:
    """Equation 4: one step of size epsilon along the sign of the gradient; along the gradient itself in "l2"."""
    return ascent(classifier, images, labels, epsilon, steps=1, norm=norm)[-1].images


def pgd2(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: Array,
    keys: Array | None = None,
    *,
    norm: str = "linf",
) -> Array:
    """The paper's PGD-2 as read here: two steps of equation 4 from the clean images, each of size epsilon."""
    return ascent(classifier, images, labels, epsilon, steps=2, norm=norm)[-1].images


def pgd(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: Array,
    keys: Array | None = None,
    *,
    steps: int,
    step_size: float = 1.0,
    random_start: bool = False,
    restarts: int = 1,
    norm: str = "linf",
) -> Array:
    """Projected gradient ascent on the cross-entropy (Madry et al., arXiv 1706.06083).

    Args:
        classifier, images, labels, epsilon, keys: see the module's docstring.
        steps: how many, 1 or more.
        step_size: of each step, as a multiple of epsilon.
        random_start: start anywhere in the ball, and not at the clean image.
        restarts: how many random starts, 1 or more; of their last points the worst for the classifier counts,
            example by example.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument out of its range, or several restarts from one place.
    """
    _check(steps=steps, restarts=restarts)
    if restarts > 1 and not random_start:
        raise UserError(
            f"restarts: got {restarts} without a random start, which would all end the same; allowed 1"
        )

    def climb(restart: int | Array) -> Array:
        start = _start(images, epsilon, keys, restart, norm) if random_start else images
        return jax.lax.fori_loop(0, steps, lambda _, points: step(points), start)

    def step(points: Array) -> Array:
        _, gradient = _differentiate(classifier, cross_entropy, points, labels)
        return _move(
            images, points, step_size * epsilon * balls.get(norm).steepest(gradient), epsilon, norm
        )

    if restarts == 1:
        return climb(0)

    def another(restart: Array, worst: Attempt) -> Attempt:
        points = climb(restart)
        return _worse(labels, worst, Attempt(points, classifier(points)))

    return jax.lax.fori_loop(0, restarts, another, Attempt(images, classifier(images))).images


def strong(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: Array,
    keys: Array,
    *,
    steps: int = 50,
    restarts: int = 10,
    norm: str = "linf",
) -> Array:
    """The worst that many steps from many starts find, and no weaker than the other attacks on any example.

    Restarts climb the cross-entropy and the margin in turn: the margin's gradient doesn't fade where the
    classifier is sure of itself. Each starts anywhere in the ball and takes steps of 2.5 epsilon / steps. What
    counts is the worst, example by example, of every point visited, of the clean images, ``noise``, FGSM and
    PGD-2. The search ends early once no example of the batch is classified rightly.

    Args:
        classifier, images, labels, epsilon, keys: see the module's docstring.
        steps: of each restart, 1 or more.
        restarts: 1 or more.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument out of its range.
    """
    _check(steps=steps, restarts=restarts)
    step_size = 2.5 / steps
    consider = partial(_worse, labels)
    noisy = noise(classifier, images, labels, epsilon, keys, norm=norm)
    worst, *others = ascent(classifier, images, labels, epsilon, steps=2, norm=norm)
    for other in (*others, Attempt(noisy, classifier(noisy))):
        worst = consider(worst, other)

    def unfinished(carry: tuple[Array, Attempt]) -> Array:
        restart, worst = carry
        return (restart < restarts) & is_correct(worst.logits, labels).any() & (epsilon > 0)

    def another(carry: tuple[Array, Attempt]) -> tuple[Array, Attempt]:
        restart, worst = carry

        def loss(logits: Array, labels: Array) -> Array:
            return jnp.where(
                restart % 2 == 0, cross_entropy(logits, labels), margin(logits, labels)
            )

        def step(_: int, carry: tuple[Array, Attempt]) -> tuple[Array, Attempt]:
            points, worst = carry
            logits, gradient = _differentiate(classifier, loss, points, labels)
            direction = balls.get(norm).steepest(gradient)
            worst = consider(worst, Attempt(points, logits))
            return _move(images, points, step_size * epsilon * direction, epsilon, norm), worst

        start = _start(images, epsilon, keys, restart, norm)
        points, worst = jax.lax.fori_loop(0, steps, step, (start, worst))
        return restart + 1, consider(worst, Attempt(points, classifier(points)))

    return jax.lax.while_loop(unfinished, another, (jnp.int32(0), worst))[1].images


ATTACKS = {"noise": noise, "fgsm": fgsm, "pgd2": pgd2, "pgd": pgd, "strong": strong}


def perturb_batch(
    variables: Mapping[str, Any], batch: Mapping[str, Array], *, model: Any, perturb: Perturb
) -> dict[str, Array]:
    """The batch with its images attacked.

    The model is attacked in eval mode also where the batch is for training: it's what an attacker meets, an
    example's perturbation then doesn't depend on the rest of the batch, and no running statistic can move.

    Args:
        variables: of the model.
        batch: ``image`` and ``label``, as the loader gives them.
        model: a Linen classifier.
        perturb: static.
    """
    classifier = partial(model.apply, variables, train=False)
    return {**batch, "image": perturb(classifier, batch["image"], batch["label"])}


def fgsm_on_share(
    classifier: Classifier, images: Array, labels: Array, *, epsilon: float, share: float = 1.0
) -> Array:
    """FGSM on the first ``share`` of a batch, which is in random order; for training on it (section 4.3.1)."""
    attacked = fgsm(classifier, images, labels, epsilon)
    count = round(share * images.shape[0])
    # Selected and not sliced: a slice of a batch that is split over devices would move images between them.
    return jnp.where(_column(jnp.arange(images.shape[0]) < count), attacked, images)


def is_correct(logits: Array, labels: Array) -> Array:
    """[N] bool: whether the largest of the logits [N, classes], the first of equals, is the label's."""
    return logits.argmax(-1) == labels


def margin(logits: Array, labels: Array) -> Array:
    """The largest of the other logits minus the label's, [N]; over 0 where the classifier is wrong.

    >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))
    Array([-1.], dtype=float32)
    """
    own, others = _own_and_others(logits, labels)
    return others.max(-1) - own


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The cross-entropy of the true label, [N], written so that its gradient keeps its direction in float32.

    log(1 + sum over the other logits of exp(other - own)) is -log softmax. But the gradient of the latter with
    respect to the label's own logit is p - 1, which rounds to 0 once p is within 6e-8 of 1, while the others'
    gradients, of the same sum, stay: a classifier that is sure of itself would look robust.

    >>> f"{cross_entropy(jnp.array([[30.0, 0.0, 0.0]]), jnp.array([0]))[0]:.2e}"  # 2 exp(-30); log_softmax gives 0
    '1.87e-13'
    """
    own, others = _own_and_others(logits, labels)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1) - own)


def _own_and_others(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The label's logit [N], and all logits [N, classes] with -inf in its place."""
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.where(is_own, logits, 0).sum(-1)
    return own, jnp.where(is_own, -jnp.inf, logits)


def _differentiate(
    classifier: Classifier, loss: Loss, images: Array, labels: Array
) -> tuple[Array, Array]:
    """The logits, and the gradient of each example's loss with respect to its own image."""

    def total(images: Array) -> tuple[Array, Array]:
        logits = classifier(images)
        return loss(
            logits, labels
        ).sum(), logits  # a sum: no example's gradient depends on the batch size

    gradient, logits = jax.grad(total, has_aux=True)(images)
    return logits, gradient


def _worse(labels: Array, one: Attempt, other: Attempt) -> Attempt:
    """Of two attempts the worse for the classifier, example by example: wrong before right, then by margin."""
    wrong, other_wrong = (~is_correct(attempt.logits, labels) for attempt in (one, other))
    larger = margin(other.logits, labels) > margin(one.logits, labels)
    # By margin alone a tie of two logits, which argmax may decide either way, could hide a success.
    replaces = (other_wrong & ~wrong) | ((other_wrong == wrong) & larger)
    images = jnp.where(_column(replaces), other.images, one.images)
    return Attempt(images, jnp.where(replaces[:, None], other.logits, one.logits))


def _move(images: Array, points: Array, step: Array, epsilon: Array, norm: str) -> Array:
    """Where a step from ``points`` ends: back in the ball around ``images``, then in [0, 1].

    Clipping brings each pixel nearer to the clean one, which is in [0, 1], so it can't leave the ball again.
    """
    return jnp.clip(images + balls.get(norm).project(points - images + step, epsilon), 0, 1)


def _start(images: Array, epsilon: Array, keys: Array, restart: int | Array, norm: str) -> Array:
    """A random point in the ball, another for each restart and none of them where ``noise`` is."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, restart + 1))(keys)
    inside = _draw(balls.get(norm).inside, keys, images)
    return _move(images, images, epsilon * inside, epsilon, norm)


def _draw(sample: Callable[..., Array], keys: Array, images: Array) -> Array:
    if keys is None:
        raise ValueError("keys: got None, expected [N] keys; this attack draws at random")
    return jax.vmap(lambda key: sample(key, images.shape[1:], images.dtype))(keys)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name}: got {count}, allowed 1 or more")


def _column(values: Array) -> Array:
    """[N] to [N, 1, 1, 1], to stand beside images."""
    return values[:, None, None, None]
