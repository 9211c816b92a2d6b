"""Streamed batches of sets that don't fit in memory, read, decoded and cropped during training.

An example's record and crop follow from the seed and its position in the stream. The stream is a
Grain dataset with random access: any batch can be read by index, and there is no iterator state to
save. Positions belong to global batches, of which each process reads its own rows, so any number of
processes sees the same batches, row for row.

Threads decode (libjpeg and OpenCV release Python's lock), and a separate thread copies finished
batches to the devices, two ahead of the step. Operations after the crop, such as flips and colours,
run on the devices, in the compiled step.
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

# Images that a thread decodes before it hands them over. Handing over single images costs 0.3 ms
# more per image, for Grain and for waking up.
_TOGETHER = 8
# Groups of that many images buffered per thread. Grain's default of 500 takes seconds to fill.
_BUFFERED = 2
_BATCHES_AHEAD = 2
# This many damaged images in a row aren't chance.
_MOST_SKIPPED = 100
_CROP_DRAWS = (10, 4)  # see photographs.random_box

Example = dict[str, np.ndarray | np.generic]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading images.

    Attributes:
        image_size: side of a model's input in pixels.
        crop_scale: lowest share of an image's area in a random training crop, in (0, 1]; see
            ``photographs.random_box``.
        crop_aspect: highest aspect ratio of such a crop, at least 1.
        eval_crop: share of the shorter side that evaluation uses, in (0, 1].
        decoder: one of ``photographs.DECODERS``.
        workers: number of threads; 0 for one per core.
        corrupt: 'fatal', or 'skip': the next intact record replaces a damaged one in training,
            evaluation omits it, and each is logged once.
    """

    image_size: int = catalog.IMAGE_SIZE
    crop_scale: float = 0.08
    crop_aspect: float = 4 / 3
    eval_crop: float = 0.96
    decoder: str = "auto"
    workers: int = 0
    corrupt: str = "fatal"


class Photographs:
    """A prepared split with random access to cropped images.

    Attributes:
        examples: the number of records used.
        corrupt: damaged records found by this process, row -> file name.
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
            data_set: from ``catalog.get``; it must be streamed.
            split: 'train' or 'test'.
            data_dir: TFDS's data directory; None for its default.
            reading: options for reading images.
            examples: use only this many examples, the first ones; None for all.

        Raises:
            UserError: the split isn't prepared, its files are damaged, or the decoder isn't
                installed.
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

    def for_training(self, row: int, draws: np.ndarray) -> Example:
        """Returns a randomly cropped record; if it is damaged and skipped, the next intact one.

        Args:
            row: row number in 0 .. examples - 1.
            draws: [10, 4] uniform in [0, 1); see ``photographs.random_box``.

        Returns:
            ``image`` [image_size, image_size, 3] uint8 and ``label`` [] int32.

        Raises:
            UserError: a record is damaged and that is fatal, or 100 in a row are.
        """
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
            f"{self._name}: {_MOST_SKIPPED} damaged images in a row from record {row} on; "
            "prepare it again"
        )

    def for_evaluation(self, row: int) -> Example:
        """Returns a record's centre crop, ``image`` and ``label`` as in ``for_training``.

        ``mask`` [] bool is False for padding: the row is past the end, or its record is damaged and
        skipped.
        """
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

    def _read(self, row: int, crop: Callable[[bytes], np.ndarray]) -> Example | None:
        """Reads a record and crops its image; None if it is damaged and skipped, logged once."""
        try:
            record = self._source[row]
        except RuntimeError as error:  # from ArrayRecord, which checksums each chunk
            raise catalog.damaged(self._directory, error) from error
        try:
            return {"image": crop(record["image"]), "label": np.int32(record["label"])}
        except photographs.BAD_IMAGE as error:
            self._found_corrupt(row, record.get("file_name", b"an image").decode(), error)
            return None

    def _found_corrupt(self, row: int, file_name: str, error: Exception) -> None:
        what = f"{self._name}: {file_name} (record {row}) is not a complete image ({error})"
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
class Positions(Sequence[Example]):
    """Lazy sequence of examples, each made on access, on any thread.

    Attributes:
        length: the number of examples.
        example: makes the example of a position.
    """

    length: int
    example: Callable[[int], Example]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Example:
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
    """A process's examples in the global batches of a range of steps.

    Args:
        photographs: the training split.
        seed: the run's seed, in 0 .. 2**32 - 1.
        batch_size: examples per global batch.
        rows: rows of the batch that this process reads.
        start, stop: the first step, and the one after the last.

    Returns:
        len(rows) examples per step, ``image`` [image_size, image_size, 3] uint8 and ``label`` []
        int32. An epoch's last incomplete batch is dropped.
    """
    n, rows = photographs.examples, tuple(rows)

    def example(position: int) -> Example:
        later, i = divmod(position, len(rows))
        step = start + later
        row = _train_row(step, rows[i], n=n, seed=seed, batch_size=batch_size)
        return photographs.for_training(row, _uniform(seed, step * batch_size + rows[i]))

    return Positions((stop - start) * len(rows), example)


def eval_positions(
    photographs: Photographs, *, batch_size: int, rows: Sequence[int], start: int = 0
) -> Positions:
    """A process's examples in the batches of one pass; see ``train_positions``, plus ``mask``.

    ``ceil((examples - start) / batch_size)`` batches contain every example from row ``start`` on
    exactly once; the last is padded.
    """
    rows = tuple(rows)
    batches = -(-(photographs.examples - start) // batch_size)

    def example(position: int) -> Example:
        batch, i = divmod(position, len(rows))
        return photographs.for_evaluation(start + batch * batch_size + rows[i])

    return Positions(batches * len(rows), example)


def batches(
    examples: Positions, size: int, put: Callable[[Batch], Any], *, workers: int
) -> grain.DatasetIterator:
    """Reads batches ahead: threads make the examples in order, another one puts them on devices.

    Args:
        examples: this process's examples, in complete batches.
        size: number of examples in this process's part of a batch.
        put: applied to that part, arrays with first axis ``size``.
        workers: see ``Reading``.

    Returns:
        An iterator over the results of ``put``, batch by batch. Its ``close()`` ends the threads.
    """
    workers = workers or len(os.sched_getaffinity(0))
    together = math.gcd(size, _TOGETHER)

    def piece(index: int) -> list[Example]:
        return [examples[position] for position in range(index * together, (index + 1) * together)]

    def join(pieces: Sequence[list[Example]]) -> Batch:
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
    """Returns a function that assembles global arrays from each process's rows."""

    def put(batch: Batch) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(split_batch, array)
            for name, array in batch.items()
        }

    return put


def rows_of_this_process(batch_size: int, split_batch: jax.sharding.NamedSharding) -> list[int]:
    """Rows of a global batch on this process's devices, ascending."""
    rows: set[int] = set()
    for index in split_batch.addressable_devices_indices_map((batch_size,)).values():
        assert index is not None
        (part,) = index
        rows.update(range(*part.indices(batch_size)))
    return sorted(rows)


class TrainStream:
    """Streamed ``feeds.TrainFeed``; ``arrays.TrainArrays`` is its in-memory counterpart."""

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
        """Sets up the stream; nothing is read before the first call of ``arguments``.

        Args:
            photographs: the training split.
            seed: the run's seed.
            batch_size: examples per global batch.
            total_steps: number of steps of the run; nothing is read ahead beyond them.
            workers: see ``Reading``.
            split_batch: sharding of a batch over the devices.
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
        """Returns the batch after ``step`` steps, and None as order; fast for successive steps."""
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = self._from(step)
        self._next = step + 1
        return next(self._iterator), None

    def rows(self, step: int) -> np.ndarray:
        """See ``feeds.TrainFeed``."""
        return np.asarray([self._row(step, i) for i in range(self._batch_size)])

    def close(self) -> None:
        """Stops the threads that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class EvalStream:
    """Streamed ``feeds.EvalFeed``; ``arrays.EvalArrays`` is its in-memory counterpart."""

    def __init__(
        self,
        photographs: Photographs,
        *,
        batch_size: int,
        workers: int,
        split_batch: jax.sharding.NamedSharding,
        start: int = 0,
    ):
        """Sets up the stream; nothing is read before iteration.

        Args:
            photographs, batch_size, workers, split_batch: see ``TrainStream``.
            start: row of the first example.
        """
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
    """Loads all examples into memory with the images that evaluation uses.

    Returns:
        ``image`` [N, image_size, image_size, 3] uint8 and ``label`` [N] int32, as in
        ``catalog.load``, without damaged examples that are skipped.
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
    """Row in 0..n-1 of the i-th example in the global batch after ``step`` steps."""
    epoch, batch = divmod(step, n // batch_size)
    return _shuffled(batch * batch_size + i, n, seed, epoch)


def _shuffled(index: int, n: int, seed: int, epoch: int) -> int:
    """Maps an index by a permutation of range(n) per seed and epoch, without storing it."""
    key = int(_seed_sequence(seed, "order", epoch).generate_state(1)[0])
    return grain.experimental.index_shuffle(index, max_index=n - 1, seed=key, rounds=4)


def _uniform(seed: int, position: int) -> np.ndarray:
    """Uniform draws [10, 4] float64 in [0, 1) from the seed and a position in the stream."""
    # Raw bits, not a Generator's numbers: NumPy guarantees these across versions.
    bits = np.random.Philox(_seed_sequence(seed, "crop", position)).random_raw(np.prod(_CROP_DRAWS))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(_CROP_DRAWS)


def _seed_sequence(seed: int, purpose: str, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number])
