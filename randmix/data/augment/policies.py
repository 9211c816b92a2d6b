"""RandAugment's policies: which operations there are, how strong, how often; read from the text of a config.

"rand-m9-mstd0.5-inc1" is timm's, in its own words, each part but the first optional:

    rand        the family
    m9          magnitude, 0 to 10; default 10
    n2          operations an image; default 2
    mstd0.5     each magnitude is drawn from a normal distribution around m with this standard deviation; over 100:
                uniformly from 0 to m. Default 0
    mmax12      magnitudes are cut off to 0..mmax; default 10
    inc1        every operation gets stronger with the magnitude; without it some get weaker

"torchvision-n2-m12" is torchvision's RandAugment(num_ops=2, magnitude=12), of 31 magnitudes from 0.

timm applies each operation with probability 1/2, torchvision always, but has one that does nothing. Interpolation is
bilinear for the one (timm itself draws bilinear or bicubic each time), nearest for the other, as its default is.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from randmix.data.augment import warp
from randmix.errors import UserError

Number = float | jax.Array

_KEY = "config.data.randaugment"
_ALLOWED = '"" for none, timm\'s "rand-m9-mstd0.5-inc1" (parts m, n, mstd, mmax, inc1) or "torchvision-n2-m12" (parts n, m)'
_TIMM = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_TORCHVISION = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_ENHANCE = ("color", "contrast", "brightness", "sharpness")


@dataclasses.dataclass(frozen=True)
class Timm:
    """timm's RandAugment.

    Attributes:
        magnitude: how strong, in 0..maximum.
        count: operations an image, drawn with replacement.
        magnitude_std: of the normal distribution that each magnitude is drawn from; infinity: uniform in 0..magnitude.
        maximum: what magnitudes are cut off to.
        increasing: whether every operation gets stronger with the magnitude.
    """

    magnitude: float = 10.0
    count: int = 2
    magnitude_std: float = 0.0
    maximum: float = 10.0
    increasing: bool = False

    operations = _TIMM
    probability = 0.5
    interpolation = warp.BILINEAR

    @property
    def steepest(self) -> float:
        """Of ``warp.apply``: the sine of the largest angle, which no shear exceeds."""
        return math.sin(math.radians(3.0 * self.maximum))

    def draw_level(self, key: jax.Array) -> Number:
        """The magnitude of one operation."""
        if self.magnitude_std == float("inf"):
            return jax.random.uniform(key, maxval=self.magnitude)
        level = self.magnitude + self.magnitude_std * jax.random.normal(key)
        return jnp.clip(level, 0.0, self.maximum)

    def arguments(
        self, level: Number, sign: Number, height: int, width: int
    ) -> Mapping[str, Number]:
        """What each operation that takes an argument is given, in the unit of ``randaugment.OPERATIONS``.

        Args:
            level: the magnitude.
            sign: 1 or -1.
            height, width: of the image.
        """
        bits, threshold = _whole(level * 0.4), _whole(level * 25.6)
        if self.increasing:
            bits, threshold = 4 - bits, 256 - threshold
            factor = jnp.maximum(0.1, 1 + sign * level * 0.09)
        else:
            factor = 0.1 + level * 0.18
        return {
            "rotate": sign * level * 3.0,
            "posterize": bits,
            "solarize": threshold,
            "solarize_add": _whole(level * 11.0),
            **dict.fromkeys(_ENHANCE, factor),
            "shear_x": sign * level * 0.03,
            "shear_y": sign * level * 0.03,
            "translate_x": sign * level * 0.045 * width,
            "translate_y": sign * level * 0.045 * height,
        }

    def fill(self, mean: tuple[float, ...], channels: int) -> tuple[int, ...]:
        """What stands outside of the image: the data's mean, mid-gray where it isn't known."""
        return tuple(min(255, round(255 * m)) for m in mean) if mean else (128,) * channels


@dataclasses.dataclass(frozen=True)
class Torchvision:
    """torchvision's RandAugment.

    Attributes:
        magnitude: how strong, a whole number in 0..30.
        count: operations an image, drawn with replacement.
    """

    magnitude: int = 9
    count: int = 2

    operations = _TORCHVISION
    probability = 1.0
    interpolation = warp.NEAREST

    @property
    def steepest(self) -> float:
        """As ``Timm.steepest``."""
        return math.sin(math.radians(self.magnitude))

    def draw_level(self, key: jax.Array) -> Number:
        """The magnitude: the same for all."""
        return float(self.magnitude)

    def arguments(
        self, level: Number, sign: Number, height: int, width: int
    ) -> Mapping[str, Number]:
        """As ``Timm.arguments``."""
        share = level / 30
        return {
            "shear_x": sign * share * 0.3,
            "shear_y": sign * share * 0.3,
            "translate_x": sign * _whole(share * 150 / 331 * width),
            "translate_y": sign * _whole(share * 150 / 331 * height),
            "rotate": sign * share * 30,
            **dict.fromkeys(_ENHANCE, 1 + sign * share * 0.9),
            "posterize": 8 - jnp.round(share * 4),
            "solarize": jnp.ceil(
                255 - share * 255
            ),  # a value is below it where it is below the number itself
        }

    def fill(self, mean: tuple[float, ...], channels: int) -> tuple[int, ...]:
        """Black."""
        return (0,) * channels


def parse(text: str) -> Timm | Torchvision | None:
    """Reads a policy; None of an empty text.

    Raises:
        UserError: a text that is no policy.

    >>> parse("rand-m9-mstd0.5-inc1")
    Timm(magnitude=9.0, count=2, magnitude_std=0.5, maximum=10.0, increasing=True)
    >>> parse("torchvision-n2-m12")
    Torchvision(magnitude=12, count=2)
    """
    if not text:
        return None
    family, *parts = text.split("-")
    if family not in ("rand", "torchvision"):
        raise UserError(f"{_KEY}: got {text!r}, allowed {_ALLOWED}")
    given = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        name = match[1] if match else part
        if not match or name not in _READERS[family] or name in given:
            raise UserError(f"{_KEY}: got {part!r} in {text!r}, allowed {_ALLOWED}, each part once")
        given[name] = _number(name, match[2], text)
    return (_timm if family == "rand" else _torchvision)(given, text)


# Part -> (whole numbers only, least, most).
_READERS = {
    "rand": {
        "m": (False, 0, 30),
        "n": (True, 1, 8),
        "mstd": (False, 0, float("inf")),
        "mmax": (False, 1, 30),
        "inc": (True, 1, 1),
    },
    "torchvision": {"m": (True, 0, 30), "n": (True, 1, 8)},
}


def _number(name: str, digits: str, text: str) -> float:
    whole, least, most = _READERS[text.split("-")[0]][name]
    value = float(digits)
    if not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number of " if whole else ""
        raise UserError(
            f"{_KEY}: got {name}{digits} in {text!r}, allowed is {kind}{least} to {most} for {name}"
        )
    return value


def _timm(given: Mapping[str, float], text: str) -> Timm:
    std, maximum = given.get("mstd", 0.0), given.get("mmax", 10.0)
    magnitude = given.get("m", 10.0)
    if magnitude > maximum:
        raise UserError(
            f"{_KEY}: got m{magnitude:g} in {text!r}, allowed is up to {maximum:g}; raise it by mmax, or lower m"
        )
    return Timm(
        magnitude=magnitude,
        count=int(given.get("n", 2)),
        magnitude_std=float("inf") if std > 100 else std,
        maximum=maximum,
        increasing="inc" in given,
    )


def _torchvision(given: Mapping[str, float], text: str) -> Torchvision:
    return Torchvision(magnitude=int(given.get("m", 9)), count=int(given.get("n", 2)))


def _whole(value: Number) -> Number:
    """Cut off to a whole number, as Python's int() does, where single precision falls just short of one too."""
    return jnp.floor(value + 1e-4)
