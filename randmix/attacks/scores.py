"""What a classifier makes of images: right or wrong, losses and their gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Classifier = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]


class Attempt(NamedTuple):
    """Candidate images [N, H, W, C] and the classifier's logits [N, classes] for them."""

    images: Array
    logits: Array


def is_correct(logits: Array, labels: Array) -> Array:
    """[N] bool: whether the (first) largest of the logits [N, classes] is the label's."""
    return logits.argmax(-1) == labels


def margin(logits: Array, labels: Array) -> Array:
    """The largest other logit minus the label's, [N]: positive only where the classifier is wrong.

    It is 0 at a tie.

    >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))
    Array([-1.], dtype=float32)
    """
    own, others = own_and_others(logits, labels)
    return others.max(-1) - own


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the true label, [N], whose gradient keeps its direction in float32.

    log(1 + sum over the other logits of exp(other - own)) equals -log softmax. But the gradient of
    the latter with respect to the label's own logit is p - 1, which rounds to 0 once p is within
    6e-8 of 1, while the gradients of the other logits, which have the same sum, remain: a
    confident classifier would look robust. Where the label's logit is more than about 87 ahead this
    gradient underflows to 0, too, and FGSM leaves the image as it is; that of `margin` doesn't.

    The loss below is 2 exp(-30), where log_softmax returns 0:

    >>> f"{cross_entropy(jnp.array([[30.0, 0.0, 0.0]]), jnp.array([0]))[0]:.2e}"
    '1.87e-13'
    """
    own, others = own_and_others(logits, labels)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1) - own)


def own_and_others(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The label's logit [N], and all logits [N, classes] with -inf in its place."""
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.where(is_own, logits, 0).sum(-1)
    return own, jnp.where(is_own, -jnp.inf, logits)


def differentiate(
    classifier: Classifier, loss: Loss, images: Array, labels: Array
) -> tuple[Array, Array]:
    """Logits, and the gradient of each example's loss with respect to its own image."""

    def total(images: Array) -> tuple[Array, Array]:
        logits = classifier(images)
        # A sum, so that no example's gradient depends on the batch size.
        return loss(logits, labels).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(images)
    return logits, gradient


def worse(labels: Array, one: Attempt, other: Attempt) -> Attempt:
    """The attempt worse for the classifier, per example: wrong before right, then by margin."""
    wrong, other_wrong = (~is_correct(attempt.logits, labels) for attempt in (one, other))
    larger = margin(other.logits, labels) > margin(one.logits, labels)
    # By margin alone, a tie of two logits, which argmax breaks either way, could hide a success.
    replaces = (other_wrong & ~wrong) | ((other_wrong == wrong) & larger)
    images = jnp.where(column(replaces), other.images, one.images)
    return Attempt(images, jnp.where(replaces[:, None], other.logits, one.logits))


def column(values: Array) -> Array:
    """Reshapes [N] to [N, 1, 1, 1], to broadcast against images."""
    return values[:, None, None, None]
