"""The Cloud TPU slices that a program can be compiled for: their names, and what a chip of each can do."""

import dataclasses

from randmix.errors import UserError, did_you_mean

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of Cloud TPUs, with the peaks that its page gives, see `source`.

    Attributes:
        name: as in a topology's name.
        flops_per_second: peak of a chip in bfloat16; float32 products at JAX's default precision run on the same
            units.
        bytes_per_second: peak of a chip's high-bandwidth memory (HBM).
        memory_bytes: what libtpu 0.0.42.1 leaves a program of a chip's HBM, as its message about a program that
            is too large says; 16 GB, say, are 15.75 GiB.
        layouts: of its slices, chips along each axis.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    layouts: tuple[str, ...]

    @property
    def source(self) -> str:
        """The page that the peaks are from."""
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
    """A slice of a TPU pod: which chips, and how many along each axis ("4x4")."""

    chip: Chip
    layout: str

    def __str__(self) -> str:
        return f"{self.chip.name}:{self.layout}"


def parse(name: str) -> Slice:
    """The slice of this name.

    >>> parse("v5e:4x4").chip.memory_bytes / 2**30
    15.75

    Raises:
        UserError: there is none; the message lists those that there are.
    """
    chip, _, layout = name.partition(":")
    if chip not in CHIPS or layout not in CHIPS[chip].layouts:
        names = [f"{chip.name}:{layout}" for chip in CHIPS.values() for layout in chip.layouts]
        raise UserError(
            f"--compile_for: got {name!r}, allowed {', '.join(names)}{did_you_mean(name, names)}"
        )
    return Slice(CHIPS[chip], layout)
