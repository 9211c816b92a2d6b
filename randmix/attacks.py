"""Attacks on a classifier's input in pure JAX: FGSM, PGD-2, PGD, a strong attack, and noise.

Section 4.3 of the paper. FGSM (Goodfellow et al., arXiv 1412.6572) is its equation 4,

    adversarial = images + epsilon * sign(gradient of the loss with respect to the images),

and PGD repeats that step, projecting onto the ball of radius epsilon around the clean image.
FGSM and PGD-2 measure how sensitive a classifier is, not how robust: report a strong attack
beside them, and random noise as the control.

An attack is a function ``(classifier, images, labels, epsilon, keys) -> adversarial images``, where

    classifier: images [N, H, W, C] float32 in [0, 1] -> logits [N, classes]. It must score each
        example independently, as ``partial(model.apply, variables, train=False)`` does, and
        normalise its input itself.
    images: [N, H, W, C] float32 in [0, 1].
    labels: [N] int32, the true classes.
    epsilon: [] float32, the ball's radius in pixel values: 8/255, not 8.
    keys: [N] typed keys, one per example, so that no result depends on the batching; None for
        attacks that draw nothing.

The result has the shape of ``images`` and lies in the ball and in [0, 1]. Attacks can be jitted,
and vmapped over epsilon: whatever doesn't depend on epsilon, above all the gradient at the clean
images, is then computed once. They share the balls that open the file, hence its length.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from randmix.errors import UserError, check_choice

Array = jax.Array
Classifier = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]
# An attack with its radius bound that draws nothing at random.
Perturb = Callable[[Classifier, Array, Array], Array]


class Attempt(NamedTuple):
    """Candidate images [N, H, W, C] and the classifier's logits [N, classes] for them."""

    images: Array
    logits: Array


class Ball(NamedTuple):
    """Perturbations [N, H, W, C] whose norm is at most epsilon; drawn ones are [H, W, C].

    Attributes:
        steepest: gradient -> the perturbation of norm 1 that a linear function rises most along; 0
            for a gradient of 0.
        project: (perturbation, epsilon) -> the nearest perturbation of norm at most epsilon.
        inside: (key, shape, dtype) -> a uniform sample from the ball of radius 1.
        surface: (key, shape, dtype) -> a perturbation of norm 1 in a random direction.
    """

    steepest: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, float | jax.Array], jax.Array]
    inside: Callable[..., jax.Array]
    surface: Callable[..., jax.Array]


def _unit(x: jax.Array) -> jax.Array:
    """Divides each example of [N, H, W, C] by its L2 norm; 0 stays 0."""
    # By the largest entry first: 1e-30, as in a confident classifier's gradient, squares to 0.
    x = x / _nonzero(jnp.abs(x).max((1, 2, 3), keepdims=True))
    return x / _nonzero(_length(x))


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True))


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)


def _shorten(x: jax.Array, epsilon: float | jax.Array) -> jax.Array:
    length = _length(x)
    return jnp.where(length > epsilon, x * (epsilon / _nonzero(length)), x)


def _in_l2_ball(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    # The first d of the d + 2 coordinates of a uniform point on a sphere are uniform in the ball.
    size = math.prod(shape)
    point = jax.random.normal(key, (size + 2,), dtype)
    return (point / jnp.linalg.norm(point))[:size].reshape(shape)


BALLS = {
    "linf": Ball(
        steepest=jnp.sign,
        project=lambda x, epsilon: jnp.clip(x, -epsilon, epsilon),
        inside=partial(jax.random.uniform, minval=-1, maxval=1),
        surface=jax.random.rademacher,
    ),
    "l2": Ball(
        steepest=_unit,
        project=_shorten,
        inside=_in_l2_ball,
        surface=lambda key, shape, dtype: _unit(jax.random.normal(key, (1, *shape), dtype))[0],
    ),
}
NORMS = tuple(BALLS)


def ball(norm: str) -> Ball:
    """Returns the ball of a norm, one of ``NORMS``; raises a UserError for any other."""
    check_choice("norm", norm, BALLS)
    return BALLS[norm]


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
    """
    direction = _draw(ball(norm).surface, keys, images)
    return _move(images, images, epsilon * direction, epsilon, norm)


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
        logits, gradient = _differentiate(classifier, cross_entropy, points, labels)
        attempts.append(Attempt(points, logits))
        points = _move(images, points, epsilon * ball(norm).steepest(gradient), epsilon, norm)
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
    """Equation 4: one step of size epsilon along the gradient's sign ("l2": along the gradient)."""
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
    """The paper's PGD-2, read as two steps of equation 4 of size epsilon from the clean images."""
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
        classifier, images, labels, epsilon, keys: see the module's docstring.
        steps: number of steps, at least 1.
        step_size: size of each step, as a multiple of epsilon.
        random_start: start at a uniformly random point of the ball, not at the clean image.
        restarts: number of random starts, at least 1; the result holds, for each example, the final
            point that is worst for the classifier.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument is out of range, or there are several restarts but no random start.
    """
    _check(steps=steps, restarts=restarts)
    if restarts > 1 and not random_start:
        raise UserError(
            f"restarts: got {restarts} without a random start, which would all end alike; allowed 1"
        )

    def climb(restart: int | Array) -> Array:
        start = _start(images, epsilon, keys, restart, norm) if random_start else images
        return jax.lax.fori_loop(0, steps, lambda _, points: step(points), start)

    def step(points: Array) -> Array:
        _, gradient = _differentiate(classifier, cross_entropy, points, labels)
        return _move(
            images, points, step_size * epsilon * ball(norm).steepest(gradient), epsilon, norm
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
        classifier, images, labels, epsilon, keys: see the module's docstring.
        steps: number of steps of each restart, at least 1.
        restarts: number of restarts, at least 1.
        norm: "linf" or "l2".

    Raises:
        UserError: an argument is out of range.
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
            direction = ball(norm).steepest(gradient)
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
    """Returns the batch with its images attacked.

    The model is attacked in eval mode, for training batches too: that is the model an attacker
    meets, an example's perturbation then doesn't depend on the rest of the batch, and no running
    statistics change.

    Args:
        variables: the model's variables.
        batch: ``image`` [N, H, W, C] float32 in [0, 1] and ``label`` [N] int32, as loaded.
        model: a Linen classifier.
        perturb: the attack to apply; static under jit.
    """
    classifier = partial(model.apply, variables, train=False)
    return {**batch, "image": perturb(classifier, batch["image"], batch["label"])}


def fgsm_on_share(
    classifier: Classifier, images: Array, labels: Array, *, epsilon: float, share: float = 1.0
) -> Array:
    """FGSM on the first ``share`` (in [0, 1]) of a shuffled batch, for training (section 4.3.1)."""
    attacked = fgsm(classifier, images, labels, epsilon)
    count = round(share * images.shape[0])
    # Selected, not sliced: slicing a batch that is sharded over devices would move images.
    return jnp.where(_column(jnp.arange(images.shape[0]) < count), attacked, images)


def is_correct(logits: Array, labels: Array) -> Array:
    """[N] bool: whether the (first) largest of the logits [N, classes] is the label's."""
    return logits.argmax(-1) == labels


def margin(logits: Array, labels: Array) -> Array:
    """The largest other logit minus the label's, [N]; positive where the classifier is wrong.

    >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))
    Array([-1.], dtype=float32)
    """
    own, others = _own_and_others(logits, labels)
    return others.max(-1) - own


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the true label, [N], whose gradient keeps its direction in float32.

    log(1 + sum over the other logits of exp(other - own)) equals -log softmax. But the gradient of
    the latter with respect to the label's own logit is p - 1, which rounds to 0 once p is within
    6e-8 of 1, while the gradients of the other logits, which have the same sum, remain: a
    confident classifier would look robust.

    The loss below is 2 exp(-30), where log_softmax returns 0:

    >>> f"{cross_entropy(jnp.array([[30.0, 0.0, 0.0]]), jnp.array([0]))[0]:.2e}"
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
    """Logits, and the gradient of each example's loss with respect to its own image."""

    def total(images: Array) -> tuple[Array, Array]:
        logits = classifier(images)
        # A sum, so that no example's gradient depends on the batch size.
        return loss(logits, labels).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(images)
    return logits, gradient


def _worse(labels: Array, one: Attempt, other: Attempt) -> Attempt:
    """The attempt worse for the classifier, per example: wrong before right, then by margin."""
    wrong, other_wrong = (~is_correct(attempt.logits, labels) for attempt in (one, other))
    larger = margin(other.logits, labels) > margin(one.logits, labels)
    # By margin alone, a tie of two logits, which argmax breaks either way, could hide a success.
    replaces = (other_wrong & ~wrong) | ((other_wrong == wrong) & larger)
    images = jnp.where(_column(replaces), other.images, one.images)
    return Attempt(images, jnp.where(replaces[:, None], other.logits, one.logits))


def _move(images: Array, points: Array, step: Array, epsilon: float | Array, norm: str) -> Array:
    """Steps from ``points``, projects into the ball around ``images`` and clips to [0, 1].

    Clipping moves each pixel closer to the clean one, which is in [0, 1], so the result stays in
    the ball.
    """
    return jnp.clip(images + ball(norm).project(points - images + step, epsilon), 0, 1)


def _start(
    images: Array, epsilon: float | Array, keys: Array | None, restart: int | Array, norm: str
) -> Array:
    """A random point in the ball, drawn anew for each restart and independent of ``noise``."""

    def sample(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return ball(norm).inside(jax.random.fold_in(key, restart + 1), shape, dtype)

    return _move(images, images, epsilon * _draw(sample, keys, images), epsilon, norm)


def _draw(sample: Callable[..., Array], keys: Array | None, images: Array) -> Array:
    if keys is None:
        raise ValueError("keys: got None, allowed [N] keys; this attack draws at random")
    return jax.vmap(lambda key: sample(key, images.shape[1:], images.dtype))(keys)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name}: got {count}, allowed 1 or more")


def _column(values: Array) -> Array:
    """Reshapes [N] to [N, 1, 1, 1], to broadcast against images."""
    return values[:, None, None, None]
