"""Splits of photographs, each of which is decoded and cropped when it is asked for."""

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable

import numpy as np
from etils import epath

from randmix.data import catalog, photographs, records
from randmix.errors import UserError

# This many damaged images in a row aren't chance.
_MOST_SKIPPED = 100

Example = dict[str, np.ndarray | np.generic]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading images.

    Attributes:
        image_size: side of a model's input in pixels.
        crop_scale: lowest share of an image's area in a random training crop, in (0, 1]; see
            ``photographs.random_box``. 1 means evaluation's crop in training, too.
        crop_aspect: highest aspect ratio of such a crop, at least 1.
        interpolation: for such crops; see ``photographs``.
        eval_crop: share of the shorter side that evaluation uses, in (0, 1].
        decoder: "auto", "simplejpeg" or "pillow", for random crops. Evaluation uses any: its pixels
            are the same.
        workers: number of threads; 0 for one per core.
        corrupt: 'fatal', or 'skip': the next intact record replaces a damaged one in training,
            evaluation omits it, and each is logged once.
    """

    image_size: int = catalog.IMAGE_SIZE
    crop_scale: float = 0.08
    crop_aspect: float = 4 / 3
    interpolation: str = "fast"
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
            UserError: the split isn't prepared, or its files are damaged.
        """
        self._name = f"{data_set.name}, {data_set.tfds_split(split)}"
        self._directory = data_set.directory(data_dir)
        self._reading = reading
        self._lock = threading.Lock()
        self.corrupt: dict[int, str] = {}
        self._source = catalog.open_source(data_set, split, data_dir)
        self._held = records.contents(self._directory)
        self.examples = len(self._source) if examples is None else examples

    def blank(self, count: int) -> dict[str, np.ndarray]:
        """Returns memory for a batch, with the entries of ``for_training``."""
        side = self._reading.image_size
        return {
            "image": np.empty((count, side, side, 3), np.uint8),
            **{name: np.empty(count, np.int32) for name in ("label", "row", "skipped")},
        }

    def for_training(self, row: int, draws: np.ndarray, out: np.ndarray | None = None) -> Example:
        """Returns a cropped record; if it is damaged and skipped, the next intact one.

        Args:
            row: row number in 0 .. examples - 1.
            draws: [11, 4] uniform in [0, 1); see ``photographs.random_crop``.
            out: memory that the image may use.

        Returns:
            ``image`` [image_size, image_size, 3] uint8, ``label`` [] int32, ``row`` [] int32, and
            ``skipped`` [] int32: so many records from ``row`` on were damaged and skipped.

        Raises:
            UserError: a record is damaged and that is fatal, or 100 in a row are.
        """
        crop = functools.partial(self._random_crop, draws=draws, out=out)
        most = min(self.examples, _MOST_SKIPPED)
        for further in range(most):
            if example := self._read((row + further) % self.examples, crop):
                return {**example, "row": np.int32(row), "skipped": np.int32(further)}
        raise UserError(
            f"{self._name}: {most} damaged images in a row from record {row} on; prepare it again"
        )

    def for_evaluation(self, row: int) -> Example:
        """Returns a record's centre crop, with the entries of ``for_training``.

        ``mask`` [] bool is False for padding: the row is past the end, or its record is damaged and
        skipped.
        """
        inside = row < self.examples
        example = self._read(row, self._centre_crop) if inside else None
        more = {"row": np.int32(row), "skipped": np.int32(inside and example is None)}
        if example is None:
            size = self._reading.image_size
            example = {"image": np.zeros((size, size, 3), np.uint8), "label": np.int32(0)}
            return {**example, **more, "mask": np.bool_(False)}
        return {**example, **more, "mask": np.bool_(True)}

    def file_name(self, row: int) -> str | None:
        """The file that a record's image came from; None if that isn't recorded."""
        with contextlib.suppress(RuntimeError):  # a record that can't be read
            return self._source[row]["file_name"].decode() or None
        return None

    @functools.cached_property
    def _random_crop(self) -> Callable[..., np.ndarray]:
        reading = self._reading
        if reading.crop_scale == 1:
            return lambda data, **_: self._centre_crop(data)
        return functools.partial(
            photographs.random_crop,
            image_size=reading.image_size,
            scale=reading.crop_scale,
            aspect=reading.crop_aspect,
            interpolation=reading.interpolation,
            decoder=photographs.choose_decoder(reading.decoder),
        )

    @functools.cached_property
    def _centre_crop(self) -> Callable[[bytes], np.ndarray]:
        return functools.partial(
            photographs.centre_crop,
            image_size=self._reading.image_size,
            crop=self._reading.eval_crop,
            decoder=photographs.choose_decoder("auto"),
        )

    def _read(self, row: int, crop: Callable[[bytes], np.ndarray]) -> Example | None:
        """Reads a record and crops its image; None if it is damaged and skipped, logged once."""
        fatal = self._reading.corrupt == "fatal"
        try:
            record = self._source[row]
        except RuntimeError as error:
            if fatal:
                raise records.damaged(self._directory, error) from error
            self._leave_out(row, "a record", f"can't be read ({photographs.reason(error)})")
            return None
        file_name = record["file_name"].decode() or "an image"
        try:
            label = records.label_of(record, f"{self._name}, record {row}", self._held)
        except UserError:
            if fatal:
                raise
            self._leave_out(row, file_name, f"has the label {record['label']}")
            return None
        try:
            return {"image": crop(record["image"]), "label": np.int32(label)}
        except photographs.BAD_IMAGE as error:
            why = f"is not a complete image ({photographs.reason(error)})"
            if fatal:
                raise UserError(
                    f"{self._name}: {file_name} (record {row}) {why}; set config.data.corrupt to "
                    "skip, or prepare the data set without it"
                ) from error
            self._leave_out(row, file_name, why)
            return None

    def _leave_out(self, row: int, file_name: str, why: str) -> None:
        with self._lock:
            known, self.corrupt[row] = row in self.corrupt, file_name
            count = len(self.corrupt)
        if not known:
            logging.getLogger(__name__).warning(
                "%s: %s (record %d) %s; skipped, %d so far", self._name, file_name, row, why, count
            )
