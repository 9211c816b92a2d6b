"""Allowed numbers: the ranges of a config's numeric keys, of its groups' settings and of models.

A range writes its own text from its bounds, so an error message can't contradict the check. Where
nothing else limits a number, the upper bound is the largest float32 or lies beyond anything sane;
NaN and infinity are in no range.
"""

import dataclasses
from typing import Any

from randmix.errors import UserError

INT32 = 2**31 - 1  # the largest step: the train state counts steps in int32
UINT32 = 2**32 - 1  # the largest seed: JAX's keys take 32 bits
FLOAT32 = 3.4e38  # nearly the largest float32, the dtype of parameters and learning rates


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers; its text is, for example, "more than 0, up to 1".

    Attributes:
        low, high: the bounds.
        open_low, open_high: whether the bound itself is left out.
        integer: whether numbers must be integers; otherwise they may be.
        optional: whether None is allowed.
        unit: ends the text.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    integer: bool = False
    optional: bool = False
    unit: str = ""

    def __str__(self) -> str:
        low, high = (format(x, "d" if isinstance(x, int) else "g") for x in (self.low, self.high))
        if self.open_low or self.open_high:
            text = f"more than {low}" if self.open_low else f"{low} or more"
            text += f", less than {high}" if self.open_high else f", up to {high}"
        else:
            text = f"{low} to {high}"
        return text + self.unit + (", or None" if self.optional else "")

    def __contains__(self, got: Any) -> bool:
        if got is None or not self.fits_type(got):
            return got is None and self.optional
        above = got > self.low or (got == self.low and not self.open_low)
        return above and (got < self.high or (got == self.high and not self.open_high))

    def fits_type(self, got: Any) -> bool:
        """Whether a value is a number of the right type; True and False aren't."""
        return isinstance(got, int if self.integer else int | float) and not isinstance(got, bool)

    def describe(self, got: Any) -> str:
        """The text, after the type that is allowed if ``got`` has another one."""
        kind = "an integer, " if self.integer else "a number, "
        return f"{'' if self.fits_type(got) else kind}{self}"


@dataclasses.dataclass(frozen=True)
class Tuples:
    """Tuples with any number of entries, each a tuple with a number in each of several ranges.

    With a single range the entries are the numbers themselves.
    """

    ranges: tuple[Range, ...]

    def __contains__(self, got: Any) -> bool:
        if not isinstance(got, tuple | list):
            return False
        entries = [(entry,) for entry in got] if len(self.ranges) == 1 else got
        return all(
            isinstance(entry, tuple | list)
            and len(entry) == len(self.ranges)
            and all(number in allowed for number, allowed in zip(entry, self.ranges, strict=True))
            for entry in entries
        )

    def describe(self, got: Any) -> str:
        """What is allowed."""
        if len(self.ranges) == 1:
            return f"a tuple of numbers, each {self.ranges[0]}"
        return f"a tuple of tuples, each of numbers {' and '.join(map(str, self.ranges))}"


def integers(low: int, high: int, *, optional: bool = False) -> Range:
    """Returns the range of the integers from ``low`` to ``high``; None may be allowed, too.

    >>> print(integers(1, 9, optional=True))
    1 to 9, or None
    """
    return Range(low, high, integer=True, optional=optional)


def numbers(
    low: float = 0,
    high: float = FLOAT32,
    *,
    above: float | None = None,
    below: float | None = None,
    unit: str = "",
) -> Range:
    """Returns the range of the numbers from ``low`` to ``high``, or ``above`` and ``below`` them.

    >>> print(numbers(above=0, high=1))
    more than 0, up to 1
    >>> print(numbers(0, below=1))
    0 or more, less than 1
    """
    low, high = (low if above is None else above), (high if below is None else below)
    return Range(low, high, open_low=above is not None, open_high=below is not None, unit=unit)


def tuples(*ranges: Range) -> Tuples:
    """Returns the tuples whose entries have a number in each of the ranges."""
    return Tuples(ranges)


def shown(got: Any) -> str:
    """The repr of a value in one line; that of a config has several."""
    return " ".join(repr(got).split("\n"))


def check(key: str, got: Any, allowed: Range | Tuples) -> None:
    """Raises a UserError that names the key unless the value is in its range.

    >>> check("config.batch_size", 2.0, integers(1, 9))
    Traceback (most recent call last):
    ...
    randmix.errors.UserError: config.batch_size: got 2.0, allowed an integer, 1 to 9
    """
    if got not in allowed:
        raise UserError(f"{key}: got {shown(got)}, allowed {allowed.describe(got)}")


# The numeric arguments of models and of their filter banks.
MODEL: dict[str, Range | Tuples] = {
    "width": integers(1, 65_536),
    "depth": integers(1, 1000),
    "kernel_size": integers(1, 128),  # a CPU unrolls their pixels
    "patch_size": integers(1, 1024),
    "multiplier": integers(1, 1024),
    "stages": tuples(integers(1, 1024)),
    "head_dim": integers(1, 65_536),
    "mlp_ratio": numbers(1, 1024),
    "token_ratio": numbers(0.01, 1024),
    "layer_scale": numbers(0, 1000),
    "position_embedding": Range(0, 1000, optional=True),
    "filter_rank": integers(1, 16_384, optional=True),  # the pixels of the largest kernel
    "smoothing_index": numbers(0, 1000),
    "mean": tuples(numbers(-1000, 1000)),
    "std": tuples(numbers(1e-6, 1000)),
}

# The keys of randmix/config.py. A config has those of its own model only.
CONFIG: dict[str, Range | Tuples] = {
    "seed": integers(0, UINT32),
    "permutation_seed": integers(0, UINT32),
    "batch_size": integers(1, INT32),
    "accumulate": integers(1, INT32),
    "epochs": numbers(above=0, high=1_000_000),
    "steps": integers(1, INT32, optional=True),
    "label_smoothing": numbers(0, below=1),
    "ema": numbers(0, below=1),
    "log_every": integers(1, INT32),
    "eval_every": integers(1, INT32),
    "checkpoint_every": integers(1, INT32),
    "keep_checkpoints": integers(2, INT32),
    **{f"model.{name}": allowed for name, allowed in MODEL.items()},
    "data.subset": numbers(above=0, high=1),
    "data.validation": numbers(0, below=1),
    "data.crop_padding": integers(0, 1024),
    "data.crop_scale": numbers(above=0, high=1),
    "data.crop_aspect": numbers(1, 100),
    "data.color_jitter": numbers(0, 100),
    "data.mixup": numbers(0, 1000),
    "data.cutmix": numbers(0, 1000),
    "data.mix_probability": numbers(0, 1),
    "data.mix_switch_probability": numbers(0, 1),
    "data.random_erasing": numbers(0, 1),
    "data.image_size": integers(1, 65_535, optional=True),  # the largest side of a JPEG
    "data.eval_crop": numbers(above=0, high=1),
    "data.workers": integers(0, 1024),
    "defense.epsilon": numbers(0, 255, unit=" (in 1/255)"),
    "defense.share": numbers(above=0, high=1),
    "defense.pgd_steps": integers(1, INT32),
    "defense.pgd_examples": integers(1, INT32),
    "optimizer.learning_rate": numbers(),
    "optimizer.weight_decay": numbers(),
    "optimizer.clip_norm": numbers(),
    # Closer to 1, Adam's bias correction would divide by 0 in float32.
    "optimizer.b1": numbers(0, 0.999999),
    "optimizer.b2": numbers(0, 0.999999),
    "optimizer.eps": numbers(1e-30, 1),
    "optimizer.momentum": numbers(0, below=1),
    "schedule.points": tuples(numbers(0, 1), numbers()),
    "schedule.boundaries": tuples(numbers(0, 1)),
    "schedule.factor": numbers(),
    "schedule.warmup": numbers(0, 1),
}

# What a group of config.groups may set besides the keys of config.optimizer.
GROUP = {
    "lr_scale": numbers(),
    "start_epoch": numbers(0, 1_000_000),
    "start_step": integers(0, INT32),
}
