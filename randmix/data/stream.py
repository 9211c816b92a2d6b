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
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from randmix.data import photographs
from randmix.data.reader import Example, Photographs

# Images that a thread decodes before it hands them over. Handing over single images costs 0.3 ms
# more per image, for Grain and for waking up.
_TOGETHER = 16
# Groups of that many images buffered per thread. Grain's default of 500 takes seconds to fill.
_BUFFERED = 2
_BATCHES_AHEAD = 2

Batch = dict[str, np.ndarray]


def train_batches(
    photographs: Photographs,
    *,
    seed: int,
    batch_size: int,
    rows: Sequence[int],
    steps: range,
    put: Callable[[Batch], Any],
    workers: int,
) -> grain.DatasetIterator:
    """A process's parts of the global batches of some steps; an epoch's incomplete one is dropped.

    Args:
        photographs: the training split.
        seed: the run's seed, in 0 .. 2**32 - 1.
        batch_size: examples per global batch.
        rows: rows of the batch that this process reads.
        steps: the steps; each batch depends on its own step only.
        put: applied to each part: ``image`` [len(rows), image_size, image_size, 3] uint8, and
            ``label``, ``row`` and ``skipped`` [len(rows)] int32, as in
            ``reader.Photographs.for_training``.
        workers: see ``reader.Reading``.

    Returns:
        An iterator over the results of ``put``. Its ``close()`` ends the threads.
    """
    n = photographs.examples

    def example(step: int, i: int, out: np.ndarray) -> Example:
        row = _train_row(step, i, n=n, seed=seed, batch_size=batch_size)
        return photographs.for_training(row, _uniform(seed, step * batch_size + i), out)

    blank = functools.partial(photographs.blank, len(rows))
    return _batches(example, blank, rows, steps, put, workers=workers)


def eval_batches(
    photographs: Photographs,
    *,
    batch_size: int,
    rows: Sequence[int],
    put: Callable[[Batch], Any],
    workers: int,
    start: int = 0,
) -> Iterator[Any]:
    """A process's parts of the batches of one pass; see ``train_batches``, plus ``mask``.

    ``ceil((examples - start) / batch_size)`` batches contain every example from row ``start`` on
    exactly once; the last is padded.
    """
    batches = range(-(-(photographs.examples - start) // batch_size))
    iterator = _batches(
        lambda batch, i, _: photographs.for_evaluation(start + batch * batch_size + i),
        lambda: {**photographs.blank(len(rows)), "mask": np.empty(len(rows), np.bool_)},
        rows,
        batches,
        put,
        workers=workers,
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
    (batch,) = eval_batches(
        photographs, batch_size=n, rows=range(n), put=lambda batch: batch, workers=workers
    )
    return {name: batch[name][batch["mask"]] for name in ("image", "label")}


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
        skipped: set[int],
    ):
        """Sets up the stream; nothing is read before the first call of ``arguments``.

        Args:
            photographs: the training split.
            seed: the run's seed.
            batch_size: examples per global batch.
            total_steps: number of steps of the run; nothing is read ahead beyond them.
            workers: see ``reader.Reading``.
            split_batch: sharding of a batch over the devices.
            skipped: gets the rows of damaged records that this process left out of the batches
                returned so far.
        """
        self._batches = functools.partial(
            train_batches,
            photographs,
            seed=seed,
            batch_size=batch_size,
            rows=rows_of_this_process(batch_size, split_batch),
            put=functools.partial(
                _to_devices, split_batch=split_batch, examples=photographs.examples
            ),
            workers=workers,
        )
        self._row = functools.partial(
            _train_row, n=photographs.examples, seed=seed, batch_size=batch_size
        )
        self._batch_size, self._total_steps = batch_size, total_steps
        self._skipped = skipped
        self._iterator: grain.DatasetIterator | None = None
        self._next = 0

    def arguments(self, step: int) -> tuple[dict[str, jax.Array], None]:
        """Returns the batch after ``step`` steps, and None as order; fast for successive steps."""
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = self._batches(steps=range(step, self._total_steps))
        self._next = step + 1
        batch, skipped = next(self._iterator)
        self._skipped.update(skipped)
        return batch, None

    def rows(self, step: int) -> np.ndarray:
        """See ``feeds.TrainFeed``."""
        return np.asarray([self._row(step, i) for i in range(self._batch_size)])

    def close(self) -> None:
        """Stops the threads that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


@dataclasses.dataclass(frozen=True)
class EvalStream:
    """Streamed evaluation batches; nothing is read before iteration, which can be repeated.

    Attributes:
        photographs, batch_size, workers, split_batch, skipped: see ``TrainStream``.
        start: row of the first example.
    """

    photographs: Photographs
    batch_size: int
    workers: int
    split_batch: jax.sharding.NamedSharding
    skipped: set[int]
    start: int = 0

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of a pass: ``image``, ``label`` and ``mask``."""
        for batch, skipped in eval_batches(
            self.photographs,
            batch_size=self.batch_size,
            rows=rows_of_this_process(self.batch_size, self.split_batch),
            put=functools.partial(
                _to_devices, split_batch=self.split_batch, examples=self.photographs.examples
            ),
            workers=self.workers,
            start=self.start,
        ):
            self.skipped.update(skipped)
            yield batch


def _batches(
    example: Callable[[int, int, np.ndarray], Example],
    blank: Callable[[], Batch],
    rows: Sequence[int],
    steps: range,
    put: Callable[[Batch], Any],
    *,
    workers: int,
) -> grain.DatasetIterator:
    """Reads ahead: threads fill batches, another one puts them on devices.

    Args:
        example: returns an example of a step and row; its image may use the array it is given.
        blank: returns memory for a batch.
        rows, steps, put, workers: see ``train_batches``.
    """
    workers = workers or len(os.sched_getaffinity(0))
    together = math.gcd(len(rows), _TOGETHER)

    # Threads write into the batch: copying images together took 3 % more processor time.
    started: dict[int, Batch] = {}
    lock = threading.Lock()

    def fill(index: int) -> int:
        place, first = divmod(index * together, len(rows))
        with lock:
            batch = started[place] = started.get(place) or blank()
        for i in range(first, first + together):
            image = batch["image"][i]
            for name, value in example(steps[place], rows[i], image).items():
                if value is not image:
                    batch[name][i] = value
        return place

    pieces = grain.MapDataset.range(len(steps) * len(rows) // together).map(fill)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=_BUFFERED * workers)
    batches = pieces.to_iter_dataset(options).batch(
        len(rows) // together, batch_fn=lambda places: started.pop(places[0])
    )
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            batches.map(put), prefetch_buffer_size=_BATCHES_AHEAD
        )
    )


def _to_devices(
    batch: Batch, split_batch: jax.sharding.NamedSharding, examples: int
) -> tuple[dict[str, jax.Array], set[int]]:
    """Assembles global arrays from each process's rows, and lists the rows that it skipped."""
    skipped = {
        int(row + further) % examples
        for row, count in zip(batch["row"], batch["skipped"], strict=True)
        for further in range(count)
    }
    return {
        name: jax.make_array_from_process_local_data(split_batch, array)
        for name, array in batch.items()
        if name not in ("row", "skipped")
    }, skipped


def _train_row(step: int, i: int, *, n: int, seed: int, batch_size: int) -> int:
    """Row in 0..n-1 of the i-th example in the global batch after ``step`` steps."""
    epoch, batch = divmod(step, n // batch_size)
    return _shuffled(batch * batch_size + i, n, seed, epoch)


def _shuffled(index: int, n: int, seed: int, epoch: int) -> int:
    """Maps an index by a permutation of range(n) per seed and epoch, without storing it."""
    key = _epoch_key(seed, epoch)
    return grain.experimental.index_shuffle(index, max_index=n - 1, seed=key, rounds=4)


@functools.lru_cache(maxsize=8)
def _epoch_key(seed: int, epoch: int) -> int:
    return int(_seed_sequence(seed, "order", epoch).generate_state(1)[0])


def _uniform(seed: int, position: int) -> np.ndarray:
    """Uniform draws [11, 4] float64 in [0, 1) from the seed and a position in the stream."""
    # Raw bits, not a Generator's numbers: NumPy guarantees these across versions.
    philox = np.random.Philox(_seed_sequence(seed, "crop", position))
    bits = philox.random_raw(math.prod(photographs.DRAWS))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(photographs.DRAWS)


def _seed_sequence(seed: int, purpose: str, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number])
