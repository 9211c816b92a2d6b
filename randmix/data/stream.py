"""Batches of a set that doesn't fit in memory: read, decoded and cropped while training goes on.

Everything follows from the seed and an example's position in the whole stream: which record it is, and where it is
cropped. The stream is a Grain dataset with random access, so batch t is had at once and nothing of an iterator is
saved. Positions belong to global batches, of which each process reads its own rows: any number of processes see
the same batches, row for row.

Threads decode (libjpeg and OpenCV work without Python's lock), and a thread of its own puts finished batches on the
devices, two ahead of the step. What comes after the crop, flips and colours, happens there, in the compiled step.
"""

import dataclasses
import functools
import logging
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from etils import epath

from randmix.data import catalog, photographs
from randmix.errors import UserError

# Images that a thread makes before it hands them over: one by one each costs 0.3 ms more, for Grain and for waking up.
_TOGETHER = 8
# How often that many wait for their batch, for each thread. Grain's own 500 images take seconds to fill.
_BUFFERED = 2
_BATCHES_AHEAD = 2
# So many damaged images in a row aren't chance.
_MOST_SKIPPED = 100
_CROP_DRAWS = (10, 4)  # see photographs.random_box

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        image_size: side of what a model is shown.
        crop_scale: the least share of an image's area in a random training crop; see ``photographs.random_box``.
        crop_aspect: the largest aspect ratio of such a crop.
        eval_crop: the share of the shorter side that evaluation sees.
        decoder: see ``photographs``.
        workers: threads; 0 for one a core.
        corrupt: 'fatal', or 'skip': the next record that isn't takes its place in training, evaluation is
            without it, and each is named once.
    """

    image_size: int = catalog.IMAGE_SIZE
    crop_scale: float = 0.08
    crop_aspect: float = 4 / 3
    eval_crop: float = 0.96
    decoder: str = "auto"
    workers: int = 0
    corrupt: str = "fatal"


class Photographs:
    """A prepared split, of which each record can be had cropped.

    Attributes:
        examples: how many records are used.
        corrupt: what was found damaged, row -> file name; of this process.
    """

    def __init__(
        self,
        data_set: catalog.DataSet,
        split: str,
        data_dir: epath.PathLike | None,
        reading: Reading,
        *,
        examples: int | None = None,
    ):
        """Opens a split.

        Args:
            data_set: from ``catalog.get``; streamed.
            split: 'train' or 'test'.
            data_dir: where TFDS keeps its data sets; None for its default.
            reading: how.
            examples: use the first ones only; None for all.

        Raises:
            UserError: it isn't prepared, or its files are damaged; the decoder isn't installed.
        """
        catalog.require_prepared(data_set.name, data_dir)
        self._name = f"{data_set.name}, {data_set.tfds_split(split)}"
        self._directory = data_set.directory(data_dir)
        self._reading = reading
        self._decoder = photographs.choose_decoder(reading.decoder)
        self._lock = threading.Lock()
        self.corrupt: dict[int, str] = {}
        try:
            self._source = catalog.open_source(data_set, split, data_dir)
        except RuntimeError as error:
            raise catalog.damaged(self._directory, error) from error
        self.examples = len(self._source) if examples is None else examples

    def for_training(self, row: int, draws: np.ndarray) -> Batch:
        """A record, or the next one that isn't damaged, randomly cropped: ``image`` and ``label``."""
        reading = self._reading
        crop = functools.partial(
            photographs.random_crop,
            draws=draws,
            image_size=reading.image_size,
            scale=reading.crop_scale,
            aspect=reading.crop_aspect,
            decoder=self._decoder,
        )
        for further in range(min(self.examples, _MOST_SKIPPED)):
            if example := self._read((row + further) % self.examples, crop):
                return example
        raise UserError(
            f"{self._name}: {_MOST_SKIPPED} damaged images in a row from record {row} on; prepare it again"
        )

    def for_evaluation(self, row: int) -> Batch:
        """The centre of a record, and ``mask``: False if it is past the end, or damaged."""
        size = self._reading.image_size
        crop = functools.partial(
            photographs.centre_crop,
            image_size=size,
            crop=self._reading.eval_crop,
            decoder=self._decoder,
        )
        example = self._read(row, crop) if row < self.examples else None
        if example is None:
            example = {"image": np.zeros((size, size, 3), np.uint8), "label": np.int32(0)}
            return {**example, "mask": np.bool_(False)}
        return {**example, "mask": np.bool_(True)}

    def _read(self, row: int, crop: Callable[[bytes], np.ndarray]) -> Batch | None:
        """A record with its image cropped; None, said once, if it is damaged and that isn't fatal."""
        try:
            record = self._source[row]
        except RuntimeError as error:  # ArrayRecord's, which has a checksum over each chunk
            raise catalog.damaged(self._directory, error) from error
        try:
            return {"image": crop(record["image"]), "label": np.int32(record["label"])}
        except photographs.BAD_IMAGE as error:
            self._found_corrupt(row, record.get("file_name", b"an image").decode(), error)
            return None

    def _found_corrupt(self, row: int, file_name: str, error: Exception) -> None:
        what = f"{self._name}: {file_name} (record {row}) is no whole image ({error})"
        if self._reading.corrupt == "fatal":
            raise UserError(
                f"{what}; set config.data.corrupt to skip, or prepare the data set without it"
            ) from error
        with self._lock:
            known, self.corrupt[row] = row in self.corrupt, file_name
            count = len(self.corrupt)
        if not known:
            logging.getLogger(__name__).warning("%s; skipped, %d so far", what, count)


@dataclasses.dataclass(frozen=True)
class Positions(Sequence[Batch]):
    """Examples by their position; each is made when it is asked for, on any thread.

    Attributes:
        length: how many there are.
        example: makes one.
    """

    length: int
    example: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Batch:
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of {self.length}")
        return self.example(position)


def train_positions(
    photographs: Photographs,
    *,
    seed: int,
    batch_size: int,
    rows: Sequence[int],
    start: int,
    stop: int,
) -> Positions:
    """The examples that a process gives to the global batches of some steps.

    Args:
        photographs: the training split.
        seed: the run's, in 0 .. 2**32 - 1.
        batch_size: examples in a global batch.
        rows: which of them this process reads.
        start, stop: steps, the first and the one after the last.

    Returns:
        len(rows) examples a step, ``image`` [image_size, image_size, 3] uint8 and ``label`` [] int32. An
        epoch's remainder, less than a batch, is dropped.
    """
    n, rows = photographs.examples, tuple(rows)

    def example(position: int) -> Batch:
        later, i = divmod(position, len(rows))
        step = start + later
        row = _train_row(step, rows[i], n=n, seed=seed, batch_size=batch_size)
        return photographs.for_training(row, _uniform(seed, step * batch_size + rows[i]))

    return Positions((stop - start) * len(rows), example)


def eval_positions(
    photographs: Photographs, *, batch_size: int, rows: Sequence[int], start: int = 0
) -> Positions:
    """The examples that a process gives to the batches of one pass, as ``train_positions``, with ``mask``.

    ``ceil(examples / batch_size)`` batches hold every example from ``start`` on exactly once; the last is padded.
    """
    rows = tuple(rows)
    batches = -(-(photographs.examples - start) // batch_size)

    def example(position: int) -> Batch:
        batch, i = divmod(position, len(rows))
        return photographs.for_evaluation(start + batch * batch_size + rows[i])

    return Positions(batches * len(rows), example)


def batches(
    examples: Positions, size: int, put: Callable[[Batch], Any], *, workers: int
) -> grain.DatasetIterator:
    """Reads ahead: threads make the examples, in their order, another one puts each batch on the devices.

    Args:
        examples: of this process, whole batches.
        size: how many of them make its part of a batch.
        put: what to do with that part, arrays with the first axis ``size``.
        workers: see ``Reading``.

    Returns:
        What ``put`` returns, batch by batch. ``close()`` ends its threads.
    """
    workers = workers or len(os.sched_getaffinity(0))
    together = math.gcd(size, _TOGETHER)

    def piece(index: int) -> list[Batch]:
        return [examples[position] for position in range(index * together, (index + 1) * together)]

    def join(pieces: Sequence[list[Batch]]) -> Batch:
        whole = [example for piece in pieces for example in piece]
        return {name: np.stack([example[name] for example in whole]) for name in whole[0]}

    pieces = grain.MapDataset.range(len(examples) // together).map(piece)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=_BUFFERED * workers)
    on_devices = pieces.to_iter_dataset(options).batch(size // together, batch_fn=join).map(put)
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            on_devices, prefetch_buffer_size=_BATCHES_AHEAD
        )
    )


def to_devices(split_batch: jax.sharding.NamedSharding) -> Callable[[Batch], dict[str, jax.Array]]:
    """What makes global arrays of the rows that each process has."""

    def put(batch: Batch) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(split_batch, array)
            for name, array in batch.items()
        }

    return put


def rows_of_this_process(batch_size: int, split_batch: jax.sharding.NamedSharding) -> list[int]:
    """Which rows of a global batch live on this process's devices, ascending."""
    places = split_batch.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in places for row in range(*part.indices(batch_size))})


class TrainStream:
    """The training split as the loop takes it; see ``arrays.TrainArrays``, its like in memory."""

    def __init__(
        self,
        photographs: Photographs,
        *,
        seed: int,
        batch_size: int,
        total_steps: int,
        workers: int,
        split_batch: jax.sharding.NamedSharding,
    ):
        """Nothing is read before the first ``arguments``.

        Args:
            photographs: the training split.
            seed: the run's.
            batch_size: examples in a global batch.
            total_steps: of the run: nothing is read ahead beyond.
            workers: see ``Reading``.
            split_batch: how a batch lies on the devices.
        """
        self.photographs = photographs
        rows = rows_of_this_process(batch_size, split_batch)
        examples = functools.partial(
            train_positions,
            photographs,
            seed=seed,
            batch_size=batch_size,
            rows=rows,
            stop=total_steps,
        )
        self._row = functools.partial(
            _train_row, n=photographs.examples, seed=seed, batch_size=batch_size
        )
        self._batch_size = batch_size
        put = to_devices(split_batch)
        self._from = lambda step: batches(examples(start=step), len(rows), put, workers=workers)
        self._iterator: grain.DatasetIterator | None = None
        self._next = 0

    def arguments(self, step: int) -> tuple[dict[str, jax.Array], None]:
        """The batch of a step, and None for an order; quick if the steps follow on each other."""
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = self._from(step)
        self._next = step + 1
        return next(self._iterator), None

    def rows(self, step: int) -> np.ndarray:
        """See ``feeds.TrainFeed``."""
        return np.asarray([self._row(step, i) for i in range(self._batch_size)])

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class EvalStream:
    """A split to be evaluated on; see ``arrays.EvalArrays``, its like in memory."""

    def __init__(
        self,
        photographs: Photographs,
        *,
        batch_size: int,
        workers: int,
        split_batch: jax.sharding.NamedSharding,
        start: int = 0,
    ):
        """Nothing is read before it is iterated over; ``start`` is the first row, the rest as ``TrainStream``."""
        self._start = start
        self._photographs, self._workers = photographs, workers
        self._batch_size, self._split_batch = batch_size, split_batch

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of a pass: ``image``, ``label`` and ``mask``."""
        rows = rows_of_this_process(self._batch_size, self._split_batch)
        examples = eval_positions(
            self._photographs, batch_size=self._batch_size, rows=rows, start=self._start
        )
        iterator = batches(
            examples, len(rows), to_devices(self._split_batch), workers=self._workers
        )
        try:
            yield from iterator
        finally:
            iterator.close()


def load(photographs: Photographs, *, workers: int = 0) -> Batch:
    """All examples as evaluation sees them, in memory: ``image`` uint8 and ``label``, as ``catalog.load`` has them.

    Damaged ones that are skipped are left out.
    """
    n = photographs.examples
    iterator = batches(
        eval_positions(photographs, batch_size=n, rows=range(n)),
        n,
        lambda batch: batch,
        workers=workers,
    )
    try:
        batch = next(iterator)
    finally:
        iterator.close()
    return {name: batch[name][batch["mask"]] for name in ("image", "label")}


def _train_row(step: int, i: int, *, n: int, seed: int, batch_size: int) -> int:
    """Which of n examples is the i-th of the global batch that follows ``step`` others."""
    epoch, batch = divmod(step, n // batch_size)
    return _shuffled(batch * batch_size + i, n, seed, epoch)


def _shuffled(index: int, n: int, seed: int, epoch: int) -> int:
    """Where a permutation of range(n) has ``index``; one for each seed and epoch, without making all of it."""
    key = int(_seed_sequence(seed, "order", epoch).generate_state(1)[0])
    return grain.experimental.index_shuffle(index, max_index=n - 1, seed=key, rounds=4)


def _uniform(seed: int, position: int) -> np.ndarray:
    """[10, 4] float64 in [0, 1), of the seed and a position in the stream."""
    # Raw bits and not a Generator's numbers: NumPy keeps these the same across versions.
    bits = np.random.Philox(_seed_sequence(seed, "crop", position)).random_raw(np.prod(_CROP_DRAWS))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(_CROP_DRAWS)


def _seed_sequence(seed: int, purpose: str, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number])
