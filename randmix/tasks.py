"""What a model is trained for: how its outputs are scored, example by example."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import optax

from randmix.errors import check_choice


class Task(NamedTuple):
    """A task.

    Attributes:
        name: the config's ``task``.
        metrics: ``(outputs, batch, label_smoothing) -> {"loss": [N], ...}``, float32 numbers an example; "loss"
            is what training lowers.
    """

    name: str
    metrics: Callable[[jax.Array, Mapping[str, jax.Array], float], dict[str, jax.Array]]


def classification_metrics(
    logits: jax.Array, batch: Mapping[str, jax.Array], label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Cross-entropy and correctness of each example.

    Args:
        logits: [N, classes] float32.
        batch: ``label``, [N] int32 in [0, classes).
        label_smoothing: the share of the target spread evenly over all classes, in [0, 1).

    Returns:
        ``loss`` and ``accuracy`` (0 or 1), [N] float32 each.
    """
    targets = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing)
    correct = logits.argmax(-1) == batch["label"]
    return {
        "loss": optax.softmax_cross_entropy(logits, targets),
        "accuracy": correct.astype(logits.dtype),
    }


TASKS = {"classification": Task("classification", classification_metrics)}


def get(name: str) -> Task:
    """Returns the task of that name; a UserError names the nearest where there is none."""
    check_choice("config.task", name, TASKS)
    return TASKS[name]
