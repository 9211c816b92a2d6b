"""The strong and the targeted attack: climbs on several losses, each from a random start."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from randmix.attacks.balls import ball, move, random_point
from randmix.attacks.scores import (
    Array,
    Attempt,
    Classifier,
    cross_entropy,
    differentiate,
    is_correct,
    margin,
    own_and_others,
    worse,
)
from randmix.attacks.steps import ascent, noise, require_positive


def strong(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array,
    *,
    steps: int = 50,
    restarts: int = 10,
    norm: str = "linf",
) -> Array:
    """Worst points over many steps from many starts; on no example weaker than FGSM or PGD-2.

    Restarts alternate between climbing the cross-entropy and climbing the margin, whose gradient
    doesn't vanish where the classifier is confident. Each starts at a random point of the ball and
    takes steps of 2.5 epsilon / steps. For each example the result is the worst of all points
    visited, of the clean image, ``noise``, FGSM and PGD-2. The search stops early once every
    example of the batch is misclassified.

    Args:
        classifier, images, labels, epsilon, keys: see ``randmix.attacks``.
        steps: number of steps of each restart, at least 1.
        restarts: number of restarts, at least 1.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument is out of range.
    """
    require_positive(steps=steps, restarts=restarts)
    noisy = noise(classifier, images, labels, epsilon, keys, norm=norm)
    worst, *others = ascent(classifier, images, labels, epsilon, steps=2, norm=norm)
    for other in (*others, Attempt(noisy, classifier(noisy))):
        worst = worse(labels, worst, other)

    def loss(restart: Array, logits: Array, labels: Array) -> Array:
        return jnp.where(restart % 2 == 0, cross_entropy(logits, labels), margin(logits, labels))

    return _climbs(
        classifier, images, labels, epsilon, keys, worst, loss, restarts, steps=steps, norm=norm
    )


def targeted(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array,
    *,
    steps: int = 20,
    targets: int = 9,
    norm: str = "linf",
) -> Array:
    """Climbs towards each of the likeliest wrong classes in turn, after MultiTargeted.

    Gowal et al., "An Alternative Surrogate Loss for PGD-based Adversarial Testing", arXiv
    1910.09338, section 3: the loss of target t is logit t minus the true class's logit, whose
    gradient, unlike the margin's, doesn't jump between classes as the largest logit changes. Each
    climb starts at a random point of the ball and takes steps of 2.5 epsilon / steps. The result
    is the worst of the points visited and the clean image. The search stops early once every
    example of the batch is misclassified.

    Args:
        classifier, images, labels, epsilon, keys: see ``randmix.attacks``.
        steps: number of steps towards each target, at least 1.
        targets: number of target classes, those with the largest logits at the clean image, at
            least 1; all wrong classes where there are fewer.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument is out of range.
    """
    require_positive(steps=steps, targets=targets)
    logits = classifier(images)
    _, others = own_and_others(logits, labels)
    count = min(targets, logits.shape[-1] - 1)
    _, likeliest = jax.lax.top_k(others, count)

    def loss(number: Array, logits: Array, labels: Array) -> Array:
        target = jnp.take_along_axis(logits, likeliest[:, number, None], axis=-1)[:, 0]
        return target - own_and_others(logits, labels)[0]

    worst = Attempt(images, logits)
    return _climbs(
        classifier, images, labels, epsilon, keys, worst, loss, count, steps=steps, norm=norm
    )


def _climbs(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array,
    worst: Attempt,
    loss: Callable[[Array, Array, Array], Array],
    count: int,
    *,
    steps: int,
    norm: str,
) -> Array:
    """The worst of ``worst`` and all points of ``count`` climbs on ``loss(number, ...)``."""
    consider = partial(worse, labels)

    def unfinished(carry: tuple[Array, Attempt]) -> Array:
        number, worst = carry
        return (number < count) & is_correct(worst.logits, labels).any() & (epsilon > 0)

    def another(carry: tuple[Array, Attempt]) -> tuple[Array, Attempt]:
        number, worst = carry

        def step(_: int, carry: tuple[Array, Attempt]) -> tuple[Array, Attempt]:
            points, worst = carry
            logits, gradient = differentiate(classifier, partial(loss, number), points, labels)
            direction = 2.5 * epsilon / steps * ball(norm).steepest(gradient)
            worst = consider(worst, Attempt(points, logits))
            return move(images, points, direction, epsilon, norm), worst

        first = random_point(images, epsilon, keys, number, norm)
        points, worst = jax.lax.fori_loop(0, steps, step, (first, worst))
        return number + 1, consider(worst, Attempt(points, classifier(points)))

    return jax.lax.while_loop(unfinished, another, (jnp.int32(0), worst))[1].images
