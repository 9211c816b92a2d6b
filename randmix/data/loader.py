"""Batches as pure functions of (seed, step).

In-memory sets stay on the device as uint8, and every batch is gathered inside the compiled step.
There is no iterator state to save: the order of an epoch follows from the seed and the epoch's
number, an example's augmentation from the seed and its position in the stream. For a set that
doesn't fit in memory ``randmix.data.stream`` supplies the batches, and the rest is the same.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from randmix.data.augment import Augmentation
from randmix.data.keys import Seed, stream_key

Data = Mapping[str, jax.Array]


def epoch_order(seed: Seed, epoch: int, *, examples: int) -> jax.Array:
    """Order in which an epoch visits the training set: a permutation, [examples] int32.

    It is computed once per epoch and passed to the step: computing a permutation of 60,000 in each
    step would cost 36 ms on a CPU.
    """
    return jax.random.permutation(jax.random.fold_in(stream_key(seed, "order"), epoch), examples)


def train_batch(
    data: Data,
    order: jax.Array | None,
    step: jax.Array,
    seed: Seed,
    *,
    batch_size: int,
    augmentation: Augmentation,
) -> dict[str, jax.Array]:
    """Returns the global batch of a step; an epoch's last incomplete batch is dropped.

    Args:
        data: ``image`` [examples, H, W, C] uint8 and ``label`` [examples] int32.
        order: the permutation of the step's epoch; None if ``data`` is the batch itself.
        step: [] int32, steps taken before this one.
        seed: the run's seed.
        batch_size: examples per global batch.
        augmentation: applied to the batch; static.

    Returns:
        ``image`` [batch_size, H, W, C] float32 in [0, 1] and ``label`` [batch_size] int32; see
        ``Augmentation`` for further entries.
    """
    if order is None:
        batch = _gather(data, slice(None))
    else:
        start = step % (order.shape[0] // batch_size) * batch_size
        batch = _gather(data, jax.lax.dynamic_slice_in_dim(order, start, batch_size))
    return augmentation(batch, seed=seed, step=step)


def eval_batch(data: Data, index: jax.Array, *, batch_size: int) -> dict[str, jax.Array]:
    """Returns batch ``index`` of a pass over a set in its own order.

    ``ceil(examples / batch_size)`` batches cover every example exactly once; the last is padded.

    Args:
        data: the entire set, or the batch itself with a ``mask``.
        index: [] integer.
        batch_size: examples per global batch.

    Returns:
        ``image`` and ``label`` as in ``train_batch``, and ``mask`` [batch_size] bool, False for
        padding.
    """
    if "mask" in data:
        batch, mask = _gather(data, slice(None)), data["mask"]
        return {**batch, "image": batch["image"].astype(jnp.float32) / 255, "mask": mask}
    examples = data["label"].shape[0]
    indices = index * batch_size + jnp.arange(batch_size)
    batch = _gather(data, jnp.minimum(indices, examples - 1))
    return {**batch, "image": batch["image"].astype(jnp.float32) / 255, "mask": indices < examples}


def _gather(data: Data, indices: jax.Array | slice) -> dict[str, jax.Array]:
    return {name: data[name][indices] for name in ("image", "label")}
