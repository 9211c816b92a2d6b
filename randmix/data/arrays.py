"""Sets that are held in memory, whole on every device, as the loops take them."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial

import jax
import numpy as np

from randmix import sharding
from randmix.data import loader


class TrainArrays:
    """A training set in memory, as the loop takes it; ``stream.TrainStream`` is its like."""

    def __init__(
        self, data: Mapping[str, np.ndarray], *, seed: int, batch_size: int, mesh: jax.sharding.Mesh
    ):
        """Puts the set on every device.

        Args:
            data: as ``catalog.load`` gives it.
            seed: the run's.
            batch_size: examples a batch, over all devices.
            mesh: the devices.
        """
        self._data = sharding.replicate(data, mesh)
        self._seed = seed
        self._batch_size = batch_size
        self._batches_per_epoch = len(data["label"]) // batch_size
        self._epoch_order = jax.jit(
            partial(loader.epoch_order, examples=len(data["label"])),
            out_shardings=sharding.replicated(mesh),
        )
        self._order: tuple[int, jax.Array] | None = None

    def arguments(self, step: int) -> tuple[loader.Data, jax.Array]:
        """The first two arguments of ``loader.train_batch`` for the step that follows ``step`` others."""
        epoch = step // self._batches_per_epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._epoch_order(self._seed, epoch)
        return self._data, self._order[1]

    def with_seed(self, seed: int) -> "TrainArrays":
        """The same set, on the devices once, in the order of another seed."""
        other = copy.copy(self)
        other._seed, other._order = seed, None
        return other

    def rows(self, step: int) -> np.ndarray:
        """See ``feeds.TrainFeed``."""
        _, order = self.arguments(step)
        start = step % self._batches_per_epoch * self._batch_size
        return np.asarray(order)[start : start + self._batch_size]

    def close(self) -> None:
        """There is nothing to end."""


class EvalArrays:
    """A set in memory to be evaluated on; ``stream.EvalStream`` is its like."""

    def __init__(self, data: Mapping[str, np.ndarray], *, batch_size: int, mesh: jax.sharding.Mesh):
        """Puts the set on every device; the arguments are those of ``TrainArrays``."""
        self._batches = -(-len(data["label"]) // batch_size)
        self._data = sharding.replicate(data, mesh)

    def __iter__(self) -> Iterator[loader.Data]:
        """Yields, for each batch of a pass, the first argument of ``loader.eval_batch``."""
        return iter([self._data] * self._batches)
