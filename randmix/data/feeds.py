"""Feeds, a common interface of the loops to sets in memory and to streams of photographs.

A feed's ``arguments(step)`` is the impure half: it returns arrays on the devices.
``loader.train_batch`` and ``loader.eval_batch`` are the pure half, inside the compiled step, and
are the same for both kinds of feed.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Protocol

import jax
import numpy as np
from etils import epath

from randmix.data import arrays, catalog, loader, reader, stream
from randmix.errors import UserError, check_choice
from randmix.runtime import sharding

Shapes = Mapping[str, jax.ShapeDtypeStruct]
EvalFeed = Iterable[loader.Data]  # the first arguments of ``loader.eval_batch`` in a pass


class TrainFeed(Protocol):
    """The training batches of a run."""

    def arguments(self, step: int) -> tuple[loader.Data, jax.Array | None]:
        """Returns the first two arguments of ``loader.train_batch`` after ``step`` steps."""
        ...

    def rows(self, step: int) -> np.ndarray:
        """Rows of the training split in that batch, in its order: [batch_size] int."""
        ...

    def close(self) -> None:
        """Stops reading ahead."""


def train_shapes(
    data_set: catalog.DataSet, *, examples: int, batch_size: int, mesh: jax.sharding.Mesh
) -> tuple[Shapes, jax.ShapeDtypeStruct | None]:
    """Shapes, dtypes and shardings of ``TrainFeed.arguments``, without reading the data set.

    Args:
        data_set: from ``catalog.get``.
        examples: number of training examples used.
        batch_size: examples per global batch.
        mesh: the devices; they don't need to exist.
    """
    if data_set.streamed:
        return _shapes(data_set, batch_size, sharding.split_batch(mesh)), None
    whole = sharding.replicated(mesh)
    return _shapes(data_set, examples, whole), jax.ShapeDtypeStruct(
        (examples,), np.int32, sharding=whole
    )


def eval_shapes(
    data_set: catalog.DataSet, *, examples: int, batch_size: int, mesh: jax.sharding.Mesh
) -> Shapes:
    """Shapes, dtypes and shardings of an ``EvalFeed``'s batches; see ``train_shapes``."""
    if not data_set.streamed:
        return _shapes(data_set, examples, sharding.replicated(mesh))
    split = sharding.split_batch(mesh)
    mask = jax.ShapeDtypeStruct((batch_size,), np.bool_, sharding=split)
    return {**_shapes(data_set, batch_size, split), "mask": mask}


def _shapes(data_set: catalog.DataSet, count: int, layout: jax.sharding.NamedSharding) -> Shapes:
    return {
        "image": jax.ShapeDtypeStruct((count, *data_set.image_shape), np.uint8, sharding=layout),
        "label": jax.ShapeDtypeStruct((count,), np.int32, sharding=layout),
    }


class Split:
    """An opened split of a data set: its files exist and have the right format.

    Attributes:
        data_set: the data set.
        skipped: rows of damaged records that this process left out of the batches so far.
    """

    def __init__(
        self,
        data_set: catalog.DataSet,
        split: str,
        data_dir: epath.PathLike | None,
        reading: reader.Reading,
    ):
        """Opens a streamed set, or reads any other set into memory.

        Args:
            data_set: from ``catalog.get``.
            split: 'train' or 'test'.
            data_dir: TFDS's data directory; None for its default.
            reading: options for reading images of a streamed set.

        Raises:
            UserError: there is no such split, it isn't prepared, or it is damaged.
        """
        check_choice("split", split, catalog.SPLITS)
        self.data_set, self._reading, self._arrays = data_set, reading, None
        self.skipped: set[int] = set()
        if data_set.streamed:
            self._open = functools.partial(reader.Photographs, data_set, split, data_dir, reading)
            self._whole = self._open()
            self._total = self._whole.examples
        else:
            self._arrays = catalog.read(data_set, split, data_dir)
            self._total = len(self._arrays["label"])

    def examples(self, first: int | None = None) -> int:
        """Number of examples, at most ``first`` if given."""
        return self._total if first is None else min(first, self._total)

    def for_training(
        self,
        *,
        seed: int | np.ndarray,
        batch_size: int,
        total_steps: int,
        examples: int,
        mesh: jax.sharding.Mesh,
    ) -> TrainFeed:
        """Returns the training batches of a run.

        Args:
            seed: the run's seed, or an ensemble's seeds [members], for a set in memory.
            batch_size: examples per global batch.
            total_steps: number of steps of the run.
            examples: use only this many examples, the first ones.
            mesh: the devices that share each batch.
        """
        if self._arrays is not None:
            return arrays.TrainArrays(
                _first(self._arrays, examples), seed=seed, batch_size=batch_size, mesh=mesh
            )
        return stream.TrainStream(
            self._open(examples=examples),
            seed=int(seed),
            batch_size=batch_size,
            total_steps=total_steps,
            workers=self._reading.workers,
            split_batch=sharding.split_batch(mesh),
            skipped=self.skipped,
        )

    def for_evaluation(
        self,
        *,
        batch_size: int,
        mesh: jax.sharding.Mesh,
        examples: int | None = None,
        start: int = 0,
    ) -> EvalFeed:
        """Returns the batches of a pass.

        Args:
            batch_size: examples per global batch.
            mesh: the devices that share each batch.
            examples: use only this many examples from ``start`` on; None for all.
            start: row of the first example.
        """
        stop = self.examples(None if examples is None else start + examples)
        if self._arrays is not None:
            part = {name: array[start:stop] for name, array in self._arrays.items()}
            return arrays.eval_arrays(part, batch_size=batch_size, mesh=mesh)
        return stream.EvalStream(
            self._open(examples=stop),
            start=start,
            batch_size=batch_size,
            workers=self._reading.workers,
            split_batch=sharding.split_batch(mesh),
            skipped=self.skipped,
        )

    def file_name(self, row: int) -> str | None:
        """The file that a record's image came from; None if that isn't recorded."""
        return None if self._arrays is not None else self._whole.file_name(row)

    def arrays(self, examples: int | None = None) -> dict[str, np.ndarray]:
        """Loads the first examples into memory, with the images that evaluation uses.

        Args:
            examples: how many; None for all, which a streamed set refuses.

        Returns:
            {"image": [N, H, W, C] uint8, "label": [N] int32}.

        Raises:
            UserError: the set is streamed and ``examples`` is None.
        """
        if self._arrays is not None:
            return _first(self._arrays, examples)
        if examples is None:
            raise UserError(
                f"{self.data_set.name} may not fit in memory; "
                "use only the first examples, for example --examples=1000"
            )
        source = self._open(examples=self.examples(examples))
        whole = stream.load(source, workers=self._reading.workers)
        self.skipped.update(source.corrupt)
        return whole


def _first(data: dict[str, np.ndarray], examples: int | None) -> dict[str, np.ndarray]:
    return {name: array[:examples] for name, array in data.items()}
