"""Cloud TPU slices to compile for: their names, and the peak performance of their chips."""

import dataclasses

from randmix.errors import UserError, did_you_mean

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of Cloud TPU chips, with the peaks published at `source`.

    Attributes:
        name: the chip's part of a topology name, such as "v5e".
        flops_per_second: bfloat16 peak of a chip; at JAX's default precision, float32 products run
            on the same units.
        bytes_per_second: peak bandwidth of a chip's high-bandwidth memory (HBM).
        memory_bytes: HBM that libtpu 0.0.42.1 leaves to a program, according to its message about a
            program that is too large; 15.75 GiB of 16 GB, for example.
        layouts: the available slices, as chips along each axis.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    layouts: tuple[str, ...]

    @property
    def source(self) -> str:
        """The web page that publishes the peaks."""
        return f"cloud.google.com/tpu/docs/{self.name}"


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 1228e9, round(30.75 * _GIB), _CUBIC),
        Chip("v5e", 197e12, 819e9, round(15.75 * _GIB), _FLAT),
        Chip("v5p", 459e12, 2765e9, round(95.74 * _GIB), _CUBIC),
        Chip("v6e", 918e12, 1640e9, round(31.25 * _GIB), _FLAT),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a TPU pod: the chip, and the number of chips along each axis ("4x4")."""

    chip: Chip
    layout: str

    def __str__(self) -> str:
        return f"{self.chip.name}:{self.layout}"


def parse(name: str) -> Slice:
    """Returns the slice with this name.

    >>> parse("v5e:4x4").chip.memory_bytes / 2**30
    15.75

    Raises:
        UserError: an unknown name; the message lists the known ones.
    """
    chip, _, layout = name.partition(":")
    if chip not in CHIPS or layout not in CHIPS[chip].layouts:
        names = [f"{chip.name}:{layout}" for chip in CHIPS.values() for layout in chip.layouts]
        raise UserError(
            f"--compile_for: got {name!r}, allowed {', '.join(names)}{did_you_mean(name, names)}"
        )
    return Slice(CHIPS[chip], layout)
