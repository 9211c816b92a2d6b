"""Augmentation of training batches: the steps between the data set and the model."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from randmix import ranges
from randmix.data import keys as streams
from randmix.data.augment import crops, enhance, erasing, mixing, policies, randaugment
from randmix.errors import UserError

# Draws per example. Cropping and flipping use the example's key itself and split it into two
# children, which `fold_in` of 0 and 1 would repeat.
_DRAWS = {"resized_crop": 2, "randaugment": 3, "color_jitter": 4, "random_erasing": 5}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation of uint8 image batches: a pure function of (seed, step, batch).

    Operations apply in the order of the attributes. An example's draws follow from the seed and its
    position in the stream, a batch's from the seed and the step, so they are the same for any
    number of devices and processes. All operations except mixing work on single examples: if a
    batch is split over devices, only mixing moves images between them.

    Attributes:
        crop_padding: pixels of zero padding for a random crop; 0 disables it.
        crop_scale: the lowest share of the area of a random resized crop, in (0, 1]; 1 disables it.
        crop_aspect: the highest aspect ratio of that crop, at least 1.
        flip: whether to flip left to right with probability 1/2.
        randaugment: a policy's text, see ``policies``; "" disables it.
        color_jitter: the largest relative change of brightness, contrast and saturation; 0 disables
            it.
        mixup: alpha; 0 disables it.
        cutmix: alpha; 0 disables it.
        mix_probability: the probability that a batch is mixed.
        mix_switch_probability: the probability of CutMix if both are enabled.
        random_erasing: the probability that a part of an image is erased. Erasing follows mixing,
            as in timm's own training, where the loader mixes.
        mean, std: the model's normalisation, one number per channel in [0, 1], or (): the fill
            colour of timm's RandAugment, and the distribution of erasing's noise.

    Raises:
        UserError: a value is out of range, or both crops are enabled.
    """

    crop_padding: int = 0
    crop_scale: float = 1.0
    crop_aspect: float = 4 / 3
    flip: bool = False
    randaugment: str = ""
    color_jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch_probability: float = 0.5
    random_erasing: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        for key, allowed in ranges.CONFIG.items():
            group, _, name = key.partition(".")
            if group == "data" and hasattr(self, name):
                ranges.check(f"config.{key}", getattr(self, name), allowed)
        if self.crop_padding and self.crop_scale < 1:
            raise UserError(
                f"config.data.crop_scale: got {self.crop_scale!r}, allowed 1 if "
                "config.data.crop_padding isn't 0; choose one of the two crops"
            )
        policies.parse(self.randaugment)

    @property
    def mixes(self) -> bool:
        """Whether batches have second labels."""
        return bool(self.mixup or self.cutmix)

    def __call__(
        self, batch: Mapping[str, jax.Array], *, seed: streams.Seed, step: jax.Array
    ) -> dict[str, jax.Array]:
        """Augments the global batch of a step.

        Args:
            batch: ``image`` [N, H, W, C] uint8, C = 1 or 3, and ``label`` [N] int32.
            seed: the run's seed.
            step: [] int32, steps taken before this one; example i has position step * N + i.

        Returns:
            ``image`` [N, H, W, C] float32, in [0, 1] except for erasing's noise, and ``label``. If
            batches are mixed, also ``mixed_label`` and ``label_weight``; see ``mixing.mix``.
        """
        keys = streams.example_keys(seed, step, len(batch["image"]))
        images = self._augment_values(keys, batch["image"]).astype(jnp.float32) / 255
        batch = {**batch, "image": images}
        if self.mixes:
            batch = mixing.mix(
                jax.random.fold_in(streams.stream_key(seed, "mix"), step),
                batch,
                mixup=self.mixup,
                cutmix=self.cutmix,
                probability=self.mix_probability,
                switch_probability=self.mix_switch_probability,
            )
        if self.random_erasing:
            batch["image"] = erasing.random_erasing(
                _draw_keys(keys, "random_erasing"),
                batch["image"],
                probability=self.random_erasing,
                mean=self.mean,
                std=self.std,
            )
        return batch

    def _augment_values(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Applies the operations on uint8 images."""
        *_, channels = images.shape
        if self.crop_scale < 1:
            crop_keys = _draw_keys(keys, "resized_crop")
            images = crops.resized_crop(
                crop_keys, images, scale=self.crop_scale, aspect=self.crop_aspect
            )
        if self.crop_padding or self.flip:
            images = crops.crop_and_flip(keys, images, padding=self.crop_padding, flip=self.flip)
        if policy := policies.parse(self.randaugment):
            fill = policy.fill(self.mean, channels)
            images = randaugment.randaugment(
                _draw_keys(keys, "randaugment"), images, policy, fill=fill
            )
        if self.color_jitter:
            images = enhance.color_jitter(
                _draw_keys(keys, "color_jitter"), images, self.color_jitter
            )
        return images


def _draw_keys(keys: jax.Array, purpose: str) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, _DRAWS[purpose]))(keys)
