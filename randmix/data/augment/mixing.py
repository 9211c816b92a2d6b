"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) as timm has them in its mode "batch".

One draw decides for a whole batch. Each image is mixed with its partner in the flipped batch: the last one with the
first, and so on.
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
    """Mixes the images of a batch, and says how much of each label is left.

    Args:
        key: of the batch.
        batch: ``image`` [N, H, W, C] float32 and ``label`` [N] int32.
        mixup, cutmix: the alphas of their Beta(alpha, alpha) distributions; 0: not used, and one of them is.
        probability: that a batch is mixed.
        switch_probability: that it is by CutMix where both are used.

    Returns:
        ``image``, ``label``, ``mixed_label`` [N] int32, the partner's, and ``label_weight`` [N] float32 in [0, 1],
        that of ``label``; the partner's is 1 - label_weight.
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
        "image": images + share[..., None] * (images[::-1] - images),
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
    """Draws the partner's share of each pixel, [H, W] float32, and the own label's weight, [] float32."""
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
    """1 inside a box around a middle, which the image's edges cut off, else 0: [H, W] float32.

    Args:
        y, x: the middle, in shares of the height and width.
        side: the box's, in the same shares.
        height, width: of the image.
    """

    def inside(middle: jax.Array, size: int) -> jax.Array:
        middle, half = jnp.floor(middle * size), jnp.floor(jnp.floor(size * side) / 2)
        place = jnp.arange(size)
        return (place >= middle - half) & (place < middle + half)

    return (inside(y, height)[:, None] & inside(x, width)).astype(jnp.float32)
