"""What a model is trained for: what it is shown, and how its outputs are scored, example by example."""

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from randmix.errors import check_choice

Batch = Mapping[str, jax.Array]
Images = TypeVar("Images", np.ndarray, jax.Array)


class Task(NamedTuple):
    """A task.

    Attributes:
        name: the config's ``task``.
        metric_names: what ``metrics`` gives, "loss" first.
        metrics: ``(outputs, batch, label_smoothing) -> {"loss": [N], ...}``, float32 numbers an example; "loss"
            is what training lowers. ``batch`` is a prepared one.
        prepare: ``batch -> batch``, from what the loader gives to what the model is shown as ``image`` and
            scored against; it runs inside the compiled step, after the augmentation.
        constants: arrays that are one and the same for every example of the run; it saves each as NAME.npy.
    """

    name: str
    metric_names: tuple[str, ...]
    metrics: Callable[[jax.Array, Batch, float], dict[str, jax.Array]]
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    constants: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def score(self) -> str:
        """The metric by which of two models the better is told: larger is better."""
        return self.metric_names[1]

    @property
    def has_accuracy(self) -> bool:
        """Whether examples are right or wrong, as attacks need it."""
        return "accuracy" in self.metric_names


def classification_metrics(
    logits: jax.Array, batch: Batch, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Cross-entropy and correctness of each example.

    Args:
        logits: [N, classes] float32.
        batch: ``label``, [N] int32 in [0, classes); of mixed images also ``mixed_label`` [N], that of the other
            image, and ``label_weight`` [N] in [0, 1], that of ``label``.
        label_smoothing: the share of the target spread evenly over all classes, in [0, 1).

    Returns:
        ``loss`` and ``accuracy`` (0 or 1), [N] float32 each. Of mixed images the accuracy counts the label that
        weighs more.
    """
    targets = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
    dominant = batch["label"]
    if "mixed_label" in batch:
        weight = batch["label_weight"]
        others = jax.nn.one_hot(batch["mixed_label"], logits.shape[-1], dtype=logits.dtype)
        targets = weight[:, None] * targets + (1 - weight)[:, None] * others
        dominant = jnp.where(weight >= 0.5, dominant, batch["mixed_label"])
    # Smoothing is linear: of the mixture it is the mixture of both labels smoothed.
    targets = optax.smooth_labels(targets, label_smoothing)
    correct = logits.argmax(-1) == dominant
    return {
        "loss": optax.softmax_cross_entropy(logits, targets),
        "accuracy": correct.astype(logits.dtype),
    }


CLASSIFICATION = Task("classification", ("loss", "accuracy"), classification_metrics)


def unshuffling(permutation: np.ndarray) -> Task:
    """Pixel un-shuffling, the paper's section 4.4: give an image back whose pixels have changed places.

    Args:
        permutation: [H W] integers, one for every image of the run; see ``shuffle``.
    """

    def prepare(batch: Batch) -> Batch:
        return {**batch, "image": shuffle(batch["image"], permutation), "target": batch["image"]}

    return Task(
        "unshuffling",
        ("loss", "psnr"),
        unshuffling_metrics,
        prepare,
        constants={"permutation": permutation},
    )


def unshuffling_metrics(
    outputs: jax.Array, batch: Batch, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Mean squared error and peak signal-to-noise ratio of each image.

    Args:
        outputs: [N, H, W, C] float32, not clipped to [0, 1]: the metric is of what the loss sees.
        batch: ``target``, [N, H, W, C] float32 in [0, 1].
        label_smoothing: 0; there are no labels.

    Returns:
        ``loss``, the mean over an image's pixels and channels, and ``psnr``, -10 log10 of it, in decibels for
        the data range 1. [N] float32 each; an image that is given back exactly has the PSNR infinity, and so
        has then the mean over images.
    """
    loss = jnp.square(outputs - batch["target"]).mean((1, 2, 3))
    return {"loss": loss, "psnr": -10 * jnp.log10(loss)}


def pixel_permutation(seed: int, height: int, width: int) -> np.ndarray:
    """The permutation of a seed: a bijection of the H W positions, [H W] int32.

    >>> pixel_permutation(0, 2, 3)
    array([0, 5, 4, 1, 2, 3], dtype=int32)
    """
    # Raw bits ranked, and not Generator.permutation: NumPy keeps the bits the same across versions.
    bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(b"unshuffling")]))
    return np.argsort(bits.random_raw(height * width), kind="stable").astype(np.int32)


def shuffle(images: Images, permutation: np.ndarray) -> Images:
    """Moves whole pixels: position i, row by row, of the result is position ``permutation[i]`` of the image.

    ``shuffle(shuffled, np.argsort(permutation))`` undoes it.

    Args:
        images: [N, H, W, C].
        permutation: [H W] integers.

    Returns:
        [N, H, W, C] of the images' dtype, an array of NumPy or JAX as ``images`` is one.
    """
    n, h, w, c = images.shape
    return images.reshape(n, h * w, c)[:, permutation].reshape(n, h, w, c)


TASKS = ("classification", "unshuffling")


def build(name: str, *, image_shape: tuple[int, int, int], permutation_seed: int) -> Task:
    """Builds a task from plain values, as a config gives them.

    Args:
        name: one of ``TASKS``.
        image_shape: (height, width, channels).
        permutation_seed: un-shuffling's, from 0.

    Raises:
        UserError: an unknown name; it names the nearest.
    """
    check_choice("config.task", name, TASKS)
    if name == "classification":
        return CLASSIFICATION
    height, width, _ = image_shape
    return unshuffling(pixel_permutation(permutation_seed, height, width))


def model_arguments(name: str, num_classes: int | None) -> dict[str, Any]:
    """What a task decides of a model: its read-out, as arguments of ``models.build``.

    Raises:
        UserError: an unknown name; it names the nearest.
    """
    check_choice("config.task", name, TASKS)
    return {"num_classes": num_classes} if name == "classification" else {"head": "image"}
