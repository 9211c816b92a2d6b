"""Noise, and attacks along the gradient in one step (FGSM), two (PGD-2) or many (PGD)."""

import jax

from randmix.attacks.balls import ball, draw, move, random_point
from randmix.attacks.scores import (
    Array,
    Attempt,
    Classifier,
    cross_entropy,
    differentiate,
    worse,
)
from randmix.errors import UserError


def noise(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array,
    *,
    norm: str = "linf",
) -> Array:
    """Random perturbation of the same size as FGSM's, independent of the classifier: the control.

    Moves every pixel by epsilon up or down ("linf"), or the image by epsilon in a random direction
    ("l2").

    Args:
        classifier, labels: not used.
        images, epsilon, keys: see ``randmix.attacks``.
        norm: "linf" or "l2".
    """
    direction = draw(ball(norm).surface, keys, images)
    return move(images, images, epsilon * direction, epsilon, norm)


def ascent(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    *,
    steps: int,
    norm: str = "linf",
) -> tuple[Attempt, ...]:
    """The points that repeated steps of equation 4 visit, starting at the clean images.

    Point 0 is the clean images, point 1 FGSM, point 2 PGD-2. Each costs one forward and backward
    pass, except the last, which needs only the forward pass.

    Returns:
        ``steps + 1`` attempts.
    """
    points, attempts = images, []
    for _ in range(steps):
        logits, gradient = differentiate(classifier, cross_entropy, points, labels)
        attempts.append(Attempt(points, logits))
        points = move(images, points, epsilon * ball(norm).steepest(gradient), epsilon, norm)
    return (*attempts, Attempt(points, classifier(points)))


def fgsm(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array | None = None,
    *,
    norm: str = "linf",
) -> Array:
    """Equation 4: one step of size epsilon along the gradient's sign ("l2": along the gradient).

    Args:
        classifier, images, labels, epsilon, keys: see ``randmix.attacks``.
        norm: "linf" or "l2".
    """
    return ascent(classifier, images, labels, epsilon, steps=1, norm=norm)[-1].images


def pgd2(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array | None = None,
    *,
    norm: str = "linf",
) -> Array:
    """The paper's PGD-2, read as two steps of equation 4 of size epsilon from the clean images.

    Args:
        classifier, images, labels, epsilon, keys: see ``randmix.attacks``.
        norm: "linf" or "l2".
    """
    return ascent(classifier, images, labels, epsilon, steps=2, norm=norm)[-1].images


def pgd(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
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
        classifier, images, labels, epsilon, keys: see ``randmix.attacks``.
        steps: number of steps, at least 1.
        step_size: size of each step, as a multiple of epsilon.
        random_start: start at a uniformly random point of the ball, not at the clean image.
        restarts: number of random starts, at least 1. With one, the result is its final point; with
            several it is, for each example, whichever of their final points and the clean image is
            worst for the classifier.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument is out of range, or there are several restarts but no random start.
    """
    require_positive(steps=steps, restarts=restarts)
    if restarts > 1 and not random_start:
        raise UserError(
            f"restarts: got {restarts} without a random start, which would all end alike; allowed 1"
        )

    def climb(restart: int | Array) -> Array:
        first = random_point(images, epsilon, keys, restart, norm) if random_start else images
        return jax.lax.fori_loop(0, steps, lambda _, points: step(points), first)

    def step(points: Array) -> Array:
        _, gradient = differentiate(classifier, cross_entropy, points, labels)
        return move(
            images, points, step_size * epsilon * ball(norm).steepest(gradient), epsilon, norm
        )

    if restarts == 1:
        return climb(0)

    def another(restart: Array, worst: Attempt) -> Attempt:
        points = climb(restart)
        return worse(labels, worst, Attempt(points, classifier(points)))

    return jax.lax.fori_loop(0, restarts, another, Attempt(images, classifier(images))).images


def require_positive(**counts: int) -> None:
    """Raises a UserError that names the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name}: got {count}, allowed 1 or more")
