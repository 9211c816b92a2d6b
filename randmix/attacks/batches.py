"""Batches whose images are attacked, for training and evaluation."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from randmix.attacks.scores import Array, Classifier, column

# An attack with its radius bound that draws nothing at random.
Perturb = Callable[[Classifier, Array, Array], Array]


def perturb_batch(
    variables: Mapping[str, Any], batch: Mapping[str, Array], *, model: Any, perturb: Perturb
) -> dict[str, Array]:
    """Returns the batch with its images attacked.

    The model is attacked in eval mode, for training batches too: that is the model an attacker
    meets, an example's perturbation then doesn't depend on the rest of the batch, and no running
    statistics change.

    Args:
        variables: the model's variables.
        batch: ``image`` [N, H, W, C] float32 in [0, 1] and ``label`` [N] int32, as loaded; and
            perhaps ``attacked`` [N] bool, False for images that stay clean.
        model: a Linen classifier.
        perturb: the attack to apply; static under jit.
    """
    classifier = partial(model.apply, variables, train=False)
    images = perturb(classifier, batch["image"], batch["label"])
    if "attacked" in batch:
        # Selected, not sliced: slicing a batch that is sharded over devices would move images.
        images = jnp.where(column(batch["attacked"]), images, batch["image"])
    return {**batch, "image": images}
