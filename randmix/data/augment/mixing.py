"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), as in timm's mode "batch".

One draw applies to the entire batch. Each image is mixed with its partner in the reversed batch:
the first with the last, and so on.
"""

import jax
import jax.numpy as jnp


def mix(
    key: jax.Array,
    batch: dict[str, jax.Array],
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    switch_probability: float,
) -> dict[str, jax.Array]:
    """Mixes the images of a batch and returns each label's weight.

    Args:
        key: the batch's key.
        batch: ``image`` [N, H, W, C] float32 and ``label`` [N] int32.
        mixup, cutmix: alphas of their Beta(alpha, alpha) distributions; 0 disables one, and at
            least one must be positive.
        probability: the probability that a batch is mixed.
        switch_probability: the probability of CutMix if both are enabled.

    Returns:
        ``image``; ``label``; ``mixed_label`` [N] int32, the partner's label; and ``label_weight``
        [N] float32 in [0, 1], the weight of ``label``. The partner's weight is 1 - label_weight.
    """
    images, labels = batch["image"], batch["label"]
    n, h, w, _ = images.shape
    share, weight = draw(
        key,
        h,
        w,
        mixup=mixup,
        cutmix=cutmix,
        probability=probability,
        switch_probability=switch_probability,
    )
    return {
        **batch,
        "image": images + share[None, ..., None] * (images[::-1] - images),
        "mixed_label": labels[::-1],
        "label_weight": jnp.broadcast_to(weight, (n,)),
    }


def draw(
    key: jax.Array,
    height: int,
    width: int,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    switch_probability: float,
) -> tuple[jax.Array, jax.Array]:
    """Draws the partner's share of each pixel, [H, W], and the own label's weight, []; float32."""
    uniform_key, beta_key = jax.random.split(key)
    used, switch, y, x = jax.random.uniform(uniform_key, (4,))
    cut = (switch < switch_probability) if mixup and cutmix else jnp.asarray(bool(cutmix))
    alpha = jnp.where(cut, cutmix, mixup)
    weight = jax.random.beta(beta_key, alpha, alpha)
    box = _box(y, x, jnp.sqrt(1 - weight), height, width)
    share = jnp.where(cut, box, 1 - weight)
    weight = jnp.where(cut, 1 - box.mean(), weight)
    used = used < probability
    return jnp.where(used, share, 0.0), jnp.where(used, weight, 1.0)


def _box(y: jax.Array, x: jax.Array, side: jax.Array, height: int, width: int) -> jax.Array:
    """Box mask [H, W] float32: 1 inside the box, clipped at the image's edges, 0 elsewhere.

    Args:
        y, x: the box's centre, as fractions of the height and width.
        side: the box's side, as the same fractions.
        height, width: the image's size in pixels.
    """

    def inside(middle: jax.Array, size: int) -> jax.Array:
        middle, half = jnp.floor(middle * size), jnp.floor(jnp.floor(size * side) / 2)
        place = jnp.arange(size, dtype=jnp.float32)
        return (place >= middle - half) & (place < middle + half)

    return (inside(y, height)[:, None] & inside(x, width)[None]).astype(jnp.float32)
