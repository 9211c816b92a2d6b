"""Attacks on a classifier's input in pure JAX: one or many gradient steps, searches, and noise.

Section 4.3 of the paper. FGSM (Goodfellow et al., arXiv 1412.6572) is its equation 4,

    adversarial = images + epsilon * sign(gradient of the loss with respect to the images),

and PGD repeats that step, projecting onto the ball of radius epsilon around the clean image.
FGSM and PGD-2 measure how sensitive a classifier is, not how robust: report a strong attack
beside them, random noise as the control, and a black-box and a targeted attack as the test for
masked gradients.

An attack is a function ``(classifier, images, labels, epsilon, keys) -> adversarial images``, where

    classifier: images [N, H, W, C] float32 in [0, 1] -> logits [N, classes]. It must score each
        example independently, as ``partial(model.apply, variables, train=False)`` does, and
        normalise its input itself.
    images: [N, H, W, C] float32 in [0, 1].
    labels: [N] int32, the true classes.
    epsilon: [] float32, the ball's radius in pixel values: 8/255, not 8.
    keys: [N] typed keys, one per example, so that what is drawn for an example doesn't depend on
        its batch; None for attacks that draw nothing.

The result has the shape of ``images`` and lies in the ball and in [0, 1]. Searches go on
until all of a batch are misclassified: the image found for a misclassified example may depend on
its batch, but not whether it is misclassified. Attacks can be jitted, and vmapped over epsilon:
whatever doesn't depend on epsilon, above all the gradient at the clean images, is then computed
once.
"""

from randmix.attacks.balls import NORMS, ball
from randmix.attacks.batches import Perturb, perturb_batch
from randmix.attacks.scores import Attempt, Classifier, cross_entropy, is_correct, margin
from randmix.attacks.search import strong, targeted
from randmix.attacks.squares import require_linf, square
from randmix.attacks.steps import ascent, fgsm, noise, pgd, pgd2

ATTACKS = {
    "noise": noise,
    "fgsm": fgsm,
    "pgd2": pgd2,
    "pgd": pgd,
    "targeted": targeted,
    "square": square,
    "strong": strong,
}

__all__ = [
    "ATTACKS",
    "NORMS",
    "Attempt",
    "Classifier",
    "Perturb",
    "ascent",
    "ball",
    "cross_entropy",
    "fgsm",
    "is_correct",
    "margin",
    "noise",
    "perturb_batch",
    "pgd",
    "pgd2",
    "require_linf",
    "square",
    "strong",
    "targeted",
]
