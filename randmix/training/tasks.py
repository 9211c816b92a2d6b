"""Training tasks: the model's input, and the metrics of its outputs per example."""

import functools
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from randmix import parts
from randmix.data import feeds
from randmix.errors import UserError, check_choice
from randmix.models import reach

Batch = Mapping[str, jax.Array]
Images = TypeVar("Images", np.ndarray, jax.Array)


# Below it, the values of too many pixels can only be guessed for a verdict on a model.
LEAST_REACH = 0.9


class Prospects(NamedTuple):
    """What is known of a run before it is trained.

    Attributes:
        values: numbers by name; ``result.json`` has them under the task's name.
        text: the same in words, one line.
        warning: what speaks against the run and what to do, one line; None if nothing does.
    """

    values: Mapping[str, float]
    text: str
    warning: str | None = None


class Task(NamedTuple):
    """A training task.

    Attributes:
        name: the config's ``task``.
        metric_names: names of the results of ``metrics``, "loss" first.
        metrics: ``(outputs, batch, label_smoothing) -> {"loss": [N], ...}``, one float32 number per
            example; training minimizes "loss". ``batch`` has been prepared.
        prepare: ``batch -> batch``, from the loader's batch to the model's input ``image`` and the
            targets; runs inside the compiled step, after augmentation.
        constants: arrays that are the same for every example; a run saves each as NAME.npy.
        prospects: ``(model, train_split, test_split, train_examples) -> Prospects``, or None if
            there is nothing to say before the first step.
    """

    name: str
    metric_names: tuple[str, ...]
    metrics: Callable[[jax.Array, Batch, float], dict[str, jax.Array]]
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    constants: Mapping[str, np.ndarray] = MappingProxyType({})
    prospects: Callable[[Any, feeds.Split, feeds.Split, int], Prospects] | None = None

    @property
    def score(self) -> str | None:
        """The metric that decides which of two models is better; larger is better. None if none."""
        if self.has_accuracy:
            return "accuracy"
        return next(iter(self.metric_names[1:]), None)

    @property
    def has_accuracy(self) -> bool:
        """Whether each example is right or wrong, as attacks require."""
        return "accuracy" in self.metric_names


def classification_metrics(
    logits: jax.Array, batch: Batch, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Returns the cross-entropy and correctness of each example.

    Args:
        logits: [N, classes] float32.
        batch: ``label``, [N] int32 in [0, classes); for mixed images also ``mixed_label`` [N], the
            other image's label, and ``label_weight`` [N] in [0, 1], the weight of ``label``.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).

    Returns:
        ``loss`` and ``accuracy`` (0 or 1), [N] float32 each. For mixed images, accuracy counts the
        label with the larger weight.
    """
    targets = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
    dominant = batch["label"]
    if "mixed_label" in batch:
        weight = batch["label_weight"]
        others = jax.nn.one_hot(batch["mixed_label"], logits.shape[-1], dtype=logits.dtype)
        targets = weight[:, None] * targets + (1 - weight)[:, None] * others
        dominant = jnp.where(weight >= 0.5, dominant, batch["mixed_label"])
    # Smoothing is linear, so smoothing the mixture equals mixing the smoothed labels.
    targets = optax.smooth_labels(targets, label_smoothing)
    correct = logits.argmax(-1) == dominant
    return {
        "loss": optax.softmax_cross_entropy(logits, targets),
        "accuracy": correct.astype(logits.dtype),
    }


CLASSIFICATION = Task("classification", ("loss", "accuracy"), classification_metrics)


def unshuffling(permutation: np.ndarray) -> Task:
    """Returns the pixel unshuffling task (paper, section 4.4): restore permuted images.

    Args:
        permutation: [H W] integers, the same for every image of the run; see ``shuffle``.
    """

    def prepare(batch: Batch) -> Batch:
        return {**batch, "image": shuffle(batch["image"], permutation), "target": batch["image"]}

    return Task(
        "unshuffling",
        ("loss", "psnr"),
        unshuffling_metrics,
        prepare,
        constants={"permutation": permutation},
        prospects=functools.partial(_unshuffling_prospects, permutation),
    )


def _unshuffling_prospects(
    permutation: np.ndarray,
    model: nn.Module,
    train: feeds.Split,
    test: feeds.Split,
    train_examples: int,
) -> Prospects:
    """Returns the reach of the model and, for a set in memory, the PSNR of the mean image."""
    shape = train.data_set.image_shape
    sizes = (model.depth, model.kernel_size, model.patch_size)
    share = reach.reach(*sizes, shape)
    here = reach.permutation_reach(permutation, reach.windows(*sizes, shape))
    values = {"reach": share, "permutation_reach": here}
    text = (
        f"unshuffling: {100 * here:.1f} % of the pixels are within reach "
        f"({100 * share:.1f} % over all permutations)"
    )
    if not train.data_set.streamed:
        mean = mean_image(train.arrays(train_examples)["image"])
        values["mean_image_psnr"] = float(psnr(mean[None], test.arrays()["image"]).mean())
        text += f"; the mean training image scores {values['mean_image_psnr']:.2f} dB"
    warning = (
        f"unshuffling: got a reach of {100 * share:.1f} %, needed for a fair comparison are "
        f"{100 * LEAST_REACH:.0f} % or more; raise config.model.depth or config.model.kernel_size"
    )
    return Prospects(values, text, None if share >= LEAST_REACH else warning)


def mean_image(images: np.ndarray) -> np.ndarray:
    """Returns the mean of images [N, H, W, C] uint8 as [H, W, C] float32 in [0, 1]."""
    return (images.mean(axis=0, dtype=np.float64) / 255).astype(np.float32)


def psnr(restored: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns the PSNR of each image on the host, in dB, [N] float32; see `unshuffling_metrics`.

    Args:
        restored: [N, H, W, C] or [1, H, W, C] float32, the same image for all.
        images: [N, H, W, C] uint8, the originals.
    """
    target = jnp.asarray(images.astype(np.float32) / 255)
    return np.asarray(unshuffling_metrics(jnp.asarray(restored), {"target": target})["psnr"])


def unshuffling_metrics(
    outputs: jax.Array, batch: Batch, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Returns the mean squared error and peak signal-to-noise ratio of each image.

    Args:
        outputs: [N, H, W, C] float32, not clipped to [0, 1], so that the metric measures what the
            loss does.
        batch: ``target``, [N, H, W, C] float32 in [0, 1].
        label_smoothing: must be 0; there are no labels.

    Returns:
        ``loss``, the mean over an image's pixels and channels, and ``psnr``, -10 log10 of it, in dB
        for a data range of 1; [N] float32 each. The PSNR of an exact image is infinite, and so is
        the mean over images then.
    """
    loss = jnp.square(outputs - batch["target"]).mean((1, 2, 3))
    return {"loss": loss, "psnr": -10 * jnp.log10(loss)}


def pixel_permutation(seed: int, height: int, width: int) -> np.ndarray:
    """Returns a seed's permutation of the H W pixel positions, [H W] int32.

    >>> pixel_permutation(0, 2, 3)
    array([0, 5, 4, 1, 2, 3], dtype=int32)
    """
    # NumPy guarantees the same raw bits across versions, but not the same Generator.permutation.
    bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(b"unshuffling")]))
    return np.argsort(bits.random_raw(height * width), kind="stable").astype(np.int32)


def shuffle(images: Images, permutation: np.ndarray) -> Images:
    """Permutes pixels: position i (row by row) of the result is the image's ``permutation[i]``.

    ``shuffle(shuffled, np.argsort(permutation))`` reverses it.

    Args:
        images: [N, H, W, C], a NumPy or JAX array.
        permutation: [H W] integers.

    Returns:
        [N, H, W, C], with the type and dtype of ``images``.
    """
    n, h, w, c = images.shape
    return images.reshape(n, h * w, c)[:, permutation].reshape(n, h, w, c)


TASKS = ("classification", "unshuffling")


def build(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    permutation_seed: int,
    outputs: Any = None,
    code_dir: str | None = None,
    user: Mapping[str, Any] | None = None,
) -> Task:
    """Builds a task from a config's plain values.

    Args:
        name: one of ``TASKS``, or MODULE:FUNCTION.
        image_shape: (height, width, channels).
        permutation_seed: seed of unshuffling's permutation, 0 or more.
        outputs: the shapes and dtypes of the model's outputs for two images; needed for a task of
            the user's own.
        code_dir, user: the keys of the config, for a task of the user's own.

    Raises:
        UserError: an unknown name; the message suggests the nearest. Or a function of the user's
            own that raises an error, or returns something else than metrics per example.
    """
    if parts.is_own(name):
        function = parts.find("config.task", name, code_dir)
        if not callable(function):
            raise UserError(f"config.task: got {name!r}, which isn't a function")
        return _own(name, parts.bound(function, user or {}), outputs, image_shape)
    _check(name)
    if name == "classification":
        return CLASSIFICATION
    height, width, _ = image_shape
    return unshuffling(pixel_permutation(permutation_seed, height, width))


def _own(
    name: str,
    function: Callable[[Any, Batch], Mapping[str, jax.Array]],
    outputs: Any,
    image_shape: tuple[int, int, int],
) -> Task:
    """A task of the user's own: its function, checked on shapes, with the accuracy of a classifier.

    The accuracy is added to what the function returns if the outputs are logits, [N, classes].
    """
    is_classifier = isinstance(outputs, jax.ShapeDtypeStruct) and outputs.ndim == 2

    def metrics(outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> dict[str, jax.Array]:
        returned = function(outputs, batch)
        if not isinstance(returned, Mapping) or "loss" not in returned:
            got = ", ".join(returned) if isinstance(returned, Mapping) else type(returned).__name__
            raise UserError(
                f'config.task: {name} returned {got}, allowed is a dict with "loss", and further '
                "metrics, each one number per example"
            )
        values = {"loss": returned["loss"], **returned}
        if is_classifier and "accuracy" not in values:
            values["accuracy"] = classification_metrics(outputs, batch)["accuracy"]
        return {metric: jnp.asarray(value).astype(jnp.float32) for metric, value in values.items()}

    names: list[str] = []

    def traced(outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        values = metrics(outputs, batch)
        names.extend(values)  # in their order, which JAX doesn't keep
        return values

    batch = {
        "image": jax.ShapeDtypeStruct((2, *image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    with parts.running("config.task", name):
        shapes = jax.eval_shape(traced, outputs, batch)
    for metric, value in shapes.items():
        if metric in ("steps", "examples"):
            raise UserError(
                f"config.task: {name} returned {metric!r}, which counts what is averaged over; "
                "give it another name"
            )
        if value.shape != (2,):
            raise UserError(
                f"config.task: {name} returned {metric!r} of shape {value.shape} for two examples, "
                "allowed is one number per example: don't average"
            )
    return Task(name, tuple(names), metrics)


def _check(name: str) -> None:
    check_choice("config.task", name, [*TASKS, "MODULE:FUNCTION"])


def model_arguments(name: str, num_classes: int | None) -> dict[str, Any]:
    """Returns the arguments of ``models.build`` that a task determines: the output layer.

    Raises:
        UserError: an unknown name; the message suggests the nearest.
    """
    if not parts.is_own(name):
        _check(name)
    return {"head": "image"} if name == "unshuffling" else {"num_classes": num_classes}
