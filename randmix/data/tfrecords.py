"""TFDS's TFRecord files, copied to ArrayRecord files without TensorFlow.

A TFRecord file is a sequence of records without an index:

    uint64  length, little-endian
    uint32  masked CRC-32C of the length's 8 bytes
    bytes   data, a serialized tf.train.Example
    uint32  masked CRC-32C of the data

TFDS's ArrayRecord files have the same data, each in a chunk of its own, and can be read in any
order. TFDS reads them once dataset_info.json lists the format.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters
from tqdm import tqdm

from randmix.data import photographs
from randmix.errors import UserError
from randmix.runtime import durable

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_BLOCK = 512  # bytes per row; the tables of longer rows don't fit the processor's cache
# The bytes that lead the CRC's register from 0 to its initial value 0xFFFFFFFF. With them in front,
# more zeros in front change nothing, so that any data fills whole rows.
_START = bytes.fromhex("54641f64")


def convert(directory: Path, scratch: Path, *, progress: bool = True) -> None:
    """Adds ArrayRecord files to a data set that TFDS prepared as TFRecord files.

    Args:
        directory: the data set's folder, which contains dataset_info.json.
        scratch: an empty folder on the same file system.
        progress: whether to show a progress bar, if stderr is a terminal.

    Raises:
        UserError: a file is missing or damaged; the message names it and the record.
    """
    shards = list(_shards(directory))
    with tqdm(
        total=sum(examples for _, _, examples in shards),
        desc=f"copy {directory.parent.name}",
        unit=" records",
        leave=False,
        disable=None if progress else True,
    ) as bar:

        def examples_of(source: Path, expected: int) -> Iterator[tuple[int, bytes]]:
            found = 0
            for data in read_records(source):
                yield found, data
                found += 1
                bar.update()
            if found != expected:
                raise UserError(
                    f"{source} contains {found:,} records, dataset_info.json says {expected:,}; "
                    "copy or prepare the data set again"
                )

        for source, target, expected in shards:
            file_adapters.ArrayRecordFileAdapter.write_examples(
                scratch / target.name, examples_of(source, expected)
            )
    durable.flush_tree(scratch)
    for _, target, _ in shards:
        durable.move(scratch / target.name, target)
    file = directory / "dataset_info.json"
    info = json.loads(file.read_text())
    info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), "array_record"]
    durable.write(file, json.dumps(info, indent=2))


def _shards(directory: Path) -> Iterator[tuple[Path, Path, int]]:
    """Yields each TFRecord file of a data set, the ArrayRecord file to write, and its records."""
    try:
        splits: Any = tfds.builder_from_directory(directory).info.splits
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{directory}: TFDS can't read its description ({photographs.reason(error)}); "
            "copy or prepare it again"
        ) from error
    for split in splits.values():
        template, n = split.filename_template, len(split.shard_lengths)
        converted = template.replace(filetype_suffix="array_record")
        for i, examples in enumerate(split.shard_lengths):
            source, target = (
                Path(names.sharded_filepath(shard_index=i, num_shards=n))
                for names in (template, converted)
            )
            yield source, target, examples


def read_records(file: Path) -> Iterator[bytes]:
    """Yields the data of each record of a TFRecord file.

    Raises:
        UserError: the file is missing, truncated or damaged; the message names the record.
    """
    try:
        with file.open("rb") as stream:
            row = 0
            while header := stream.read(12):
                yield _record(header, stream, f"{file}, record {row}")
                row += 1
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; copy or prepare the data set again") from error


def _record(header: bytes, stream: Any, where: str) -> bytes:
    """Reads the record of a header."""
    if len(header) == 12:
        length, checksum = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != checksum:
            raise UserError(
                f"{where}: its length is damaged, or the file is compressed or no TFRecord file; "
                "copy or prepare the data set again"
            )
        data, footer = stream.read(length), stream.read(4)
        if len(footer) == 4:
            if masked_crc32c(data) != struct.unpack("<I", footer)[0]:
                raise UserError(
                    f"{where} is damaged: its checksum is wrong; copy or prepare the data set again"
                )
            return data
    raise UserError(f"{where} is truncated; copy or prepare the data set again")


def masked_crc32c(data: bytes) -> int:
    """CRC-32C of some bytes, masked as in TFRecord files.

    An interpreted loop over bytes takes 30 to 40 times as long.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) of some bytes."""
    data = _START + data
    padded = np.zeros(-(-len(data) // _BLOCK) * _BLOCK, np.uint8)
    padded[len(padded) - len(data) :] = np.frombuffer(data, np.uint8)
    parts = _TABLES.take(padded.reshape(-1, _BLOCK) + _OFFSETS)
    crc = 0
    for row in np.bitwise_xor.reduce(parts, axis=1).tolist():
        # The register enters a row as if XORed to the row's first four bytes; the CRC is linear.
        for first in range(4):
            row ^= _FIRST[first][crc >> 8 * first & 0xFF]
        crc = row
    return crc ^ 0xFFFFFFFF


def _tables() -> np.ndarray:
    """[_BLOCK, 256] uint32: the CRC of each byte, from 0, at each place in a row."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    places = [table]
    for _ in range(_BLOCK - 1):
        places.append(places[-1] >> 8 ^ table[places[-1] & 0xFF])
    return np.stack(places[::-1])


_TABLES = _tables()
_FIRST = _TABLES[:4].tolist()
_OFFSETS = np.arange(_BLOCK) * 256
