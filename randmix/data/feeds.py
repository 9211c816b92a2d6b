"""Where a loop's batches come from: a set in memory, or a stream of photographs. The loops don't see which.

A feed's ``arguments(step)`` is the half that needs the world: arrays on the devices. ``loader.train_batch`` and
``loader.eval_batch`` are the pure half, inside the compiled step, and the same for both kinds.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Protocol

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from randmix import sharding
from randmix.data import arrays, catalog, loader, stream
from randmix.data.augment import Augmentation
from randmix.errors import UserError, check_choice


class TrainFeed(Protocol):
    """The training batches of a run."""

    def arguments(self, step: int) -> tuple[loader.Data, jax.Array | None]:
        """The first two arguments of ``loader.train_batch`` for the step that follows ``step`` others."""

    def rows(self, step: int) -> np.ndarray:
        """Which examples of the training split that step's batch holds: [batch_size] int, in its order."""

    def close(self) -> None:
        """Ends what reads ahead."""


class EvalFeed(Protocol):
    """The batches of a pass over a split."""

    def __iter__(self) -> Iterator[loader.Data]:
        """Yields, batch by batch, the first argument of ``loader.eval_batch``."""


def reading(config: ConfigDict) -> stream.Reading:
    """How a config, its part ``data``, has images read."""
    return stream.Reading(
        image_size=config.image_size,
        crop_scale=config.crop_scale,
        crop_aspect=config.crop_aspect,
        eval_crop=config.eval_crop,
        decoder=config.decoder,
        workers=config.workers,
        corrupt=config.corrupt,
    )


def augmentation(config: ConfigDict, data_set: catalog.DataSet) -> Augmentation:
    """What a config has done to training batches on the devices; photographs are cropped where they are decoded."""
    whole = Augmentation.from_config(config.data, mean=config.model.mean, std=config.model.std)
    return dataclasses.replace(whole, crop_scale=1.0) if data_set.streamed else whole


def train_shapes(
    data_set: catalog.DataSet, *, examples: int, batch_size: int, mesh: jax.sharding.Mesh
) -> tuple[loader.Data, jax.ShapeDtypeStruct | None]:
    """Shapes, dtypes and shardings of ``TrainFeed.arguments``, without the data set.

    Args:
        data_set: from ``catalog.get``.
        examples: how many of the training split are used.
        batch_size: examples a batch, over all devices.
        mesh: the devices, which needn't be there.
    """
    if data_set.streamed:
        return _shapes(data_set, batch_size, sharding.split_batch(mesh)), None
    whole = sharding.replicated(mesh)
    return _shapes(data_set, examples, whole), jax.ShapeDtypeStruct(
        (examples,), np.int32, sharding=whole
    )


def eval_shapes(
    data_set: catalog.DataSet, *, examples: int, batch_size: int, mesh: jax.sharding.Mesh
) -> loader.Data:
    """The same of what an ``EvalFeed`` yields."""
    if not data_set.streamed:
        return _shapes(data_set, examples, sharding.replicated(mesh))
    split = sharding.split_batch(mesh)
    mask = jax.ShapeDtypeStruct((batch_size,), np.bool_, sharding=split)
    return {**_shapes(data_set, batch_size, split), "mask": mask}


def _shapes(
    data_set: catalog.DataSet, count: int, layout: jax.sharding.NamedSharding
) -> loader.Data:
    return {
        "image": jax.ShapeDtypeStruct((count, *data_set.image_shape), np.uint8, sharding=layout),
        "label": jax.ShapeDtypeStruct((count,), np.int32, sharding=layout),
    }


class Split:
    """A split of a data set, opened: its files are there and of the right kind."""

    def __init__(
        self,
        data_set: catalog.DataSet,
        split: str,
        data_dir: epath.PathLike | None,
        reading: stream.Reading,
    ):
        """Opens a streamed set, and reads another one whole.

        Args:
            data_set: from ``catalog.get``.
            split: 'train' or 'test'.
            data_dir: where TFDS keeps its data sets; None for its default.
            reading: how images are read.

        Raises:
            UserError: there is no such split, it isn't prepared, or it is damaged.
        """
        check_choice("split", split, catalog.SPLITS)
        self.data_set, self._reading, self._arrays = data_set, reading, None
        if data_set.streamed:
            self._open = functools.partial(stream.Photographs, data_set, split, data_dir, reading)
            self._total = self._open().examples
        else:
            self._arrays = catalog.load(data_set.name, split, data_dir)
            self._total = len(self._arrays["label"])

    def examples(self, first: int | None = None) -> int:
        """How many there are among the first ones, or at all."""
        return self._total if first is None else min(first, self._total)

    def for_training(
        self,
        *,
        seed: int,
        batch_size: int,
        total_steps: int,
        examples: int,
        mesh: jax.sharding.Mesh,
    ) -> TrainFeed:
        """The training batches of a run.

        Args:
            seed: the run's.
            batch_size: examples a batch, over all devices.
            total_steps: of the run.
            examples: use the first ones only.
            mesh: the devices that share each batch.
        """
        if self._arrays is not None:
            return arrays.TrainArrays(
                _first(self._arrays, examples), seed=seed, batch_size=batch_size, mesh=mesh
            )
        return stream.TrainStream(
            self._open(examples=examples),
            seed=seed,
            batch_size=batch_size,
            total_steps=total_steps,
            workers=self._reading.workers,
            split_batch=sharding.split_batch(mesh),
        )

    def for_evaluation(
        self,
        *,
        batch_size: int,
        mesh: jax.sharding.Mesh,
        examples: int | None = None,
        start: int = 0,
    ) -> EvalFeed:
        """The batches of a pass; the arguments are those of ``for_training``, ``start`` the first example's row."""
        stop = self.examples(None if examples is None else start + examples)
        if self._arrays is not None:
            part = {name: array[start:stop] for name, array in self._arrays.items()}
            return arrays.EvalArrays(part, batch_size=batch_size, mesh=mesh)
        return stream.EvalStream(
            self._open(examples=stop),
            start=start,
            batch_size=batch_size,
            workers=self._reading.workers,
            split_batch=sharding.split_batch(mesh),
        )

    def arrays(self, examples: int | None = None) -> dict[str, np.ndarray]:
        """The first examples as arrays in memory, ``image`` uint8 and ``label``, as evaluation sees them."""
        if self._arrays is not None:
            return _first(self._arrays, examples)
        if examples is None:
            raise UserError(
                f"{self.data_set.name} may not fit in memory; take the first ones only, for example --examples=1000"
            )
        return stream.load(
            self._open(examples=self.examples(examples)), workers=self._reading.workers
        )


def _first(data: dict[str, np.ndarray], examples: int | None) -> dict[str, np.ndarray]:
    return {name: array[:examples] for name, array in data.items()}
