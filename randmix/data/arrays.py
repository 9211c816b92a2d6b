"""In-memory data sets for the loops, replicated on every device."""

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np

from randmix.data import loader
from randmix.runtime import sharding


class TrainArrays:
    """In-memory ``feeds.TrainFeed``; ``stream.TrainStream`` is its streamed counterpart."""

    def __init__(
        self,
        data: Mapping[str, np.ndarray],
        *,
        seed: int | np.ndarray,
        batch_size: int,
        mesh: jax.sharding.Mesh,
    ):
        """Copies the set to every device.

        Args:
            data: ``image`` [N, H, W, C] uint8 and ``label`` [N] int32, from ``catalog.load``.
            seed: the run's seed, or the seeds [members] of an ensemble, whose orders and rows then
                have that leading axis.
            batch_size: examples per global batch.
            mesh: the devices.
        """
        self._data = sharding.replicate(data, mesh)
        self._seed = np.asarray(seed, np.uint32)  # a Python integer would become an int32
        self._batch_size = batch_size
        self._batches_per_epoch = len(data["label"]) // batch_size
        epoch_order = partial(loader.epoch_order, examples=len(data["label"]))
        if self._seed.ndim:
            epoch_order = jax.vmap(epoch_order, in_axes=(0, None))
        self._epoch_order = jax.jit(epoch_order, out_shardings=sharding.replicated(mesh))
        self._order: tuple[int, jax.Array] | None = None

    def arguments(self, step: int) -> tuple[loader.Data, jax.Array]:
        """See ``feeds.TrainFeed``: the entire set, and the order of the step's epoch."""
        epoch = step // self._batches_per_epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._epoch_order(self._seed, epoch)
        return self._data, self._order[1]

    def rows(self, step: int) -> np.ndarray:
        """See ``feeds.TrainFeed``."""
        _, order = self.arguments(step)
        start = step % self._batches_per_epoch * self._batch_size
        return np.asarray(order)[..., start : start + self._batch_size]

    def close(self) -> None:
        """Does nothing: no threads read ahead."""


def eval_arrays(
    data: Mapping[str, np.ndarray], *, batch_size: int, mesh: jax.sharding.Mesh
) -> list[loader.Data]:
    """Returns the first argument of ``loader.eval_batch`` for each batch of a pass: the entire set.

    ``stream.EvalStream`` is its streamed counterpart; see ``TrainArrays`` for the arguments.
    """
    return [sharding.replicate(data, mesh)] * -(-len(data["label"]) // batch_size)
