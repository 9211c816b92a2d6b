"""RandAugment policies: their operations, magnitudes and probabilities, parsed from config text.

"rand-m9-mstd0.5-inc1" is timm's policy in timm's syntax; all parts except the first are optional:

    rand        the family
    m9          magnitude, 0 to mmax; default 10
    n2          operations per image; default 2
    mstd0.5     each magnitude is drawn from a normal distribution around m with this standard
                deviation; above 100: uniformly from 0 to m; default 0
    mmax12      magnitudes are clipped to 0..mmax; default 10
    inc1        every operation gets stronger with the magnitude; without it some get weaker

"torchvision-n2-m12" is torchvision's RandAugment(num_ops=2, magnitude=12), with 31 magnitudes from
0 to 30.

timm applies each operation with probability 1/2. torchvision always applies them, but one of them
is the identity. Interpolation is bilinear for timm's policy (timm itself draws bilinear or bicubic
each time) and nearest for torchvision's, which is its default.
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
_ALLOWED = (
    '"" for none, timm\'s "rand-m9-mstd0.5-inc1" (parts m, n, mstd, mmax, inc1) or '
    '"torchvision-n2-m12" (parts n, m)'
)
_TIMM = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
    "translate_y",
)  # fmt: skip
_TORCHVISION = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_ENHANCE = ("color", "contrast", "brightness", "sharpness")


@dataclasses.dataclass(frozen=True)
class Timm:
    """timm's RandAugment.

    Attributes:
        magnitude: strength of the operations, in 0..maximum.
        count: operations per image, drawn with replacement.
        magnitude_std: standard deviation of the normal distribution of magnitudes; infinity means
            uniform in 0..magnitude.
        maximum: upper limit that magnitudes are clipped to.
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
        """Argument of ``warp.apply``: the sine of the largest angle, which no shear exceeds."""
        return math.sin(math.radians(3.0 * self.maximum))

    def draw_level(self, key: jax.Array) -> Number:
        """Draws the magnitude of one operation, [] float32 in 0..maximum."""
        if self.magnitude_std == float("inf"):
            return jax.random.uniform(key, maxval=self.magnitude)
        level = self.magnitude + self.magnitude_std * jax.random.normal(key)
        return jnp.clip(level, 0.0, self.maximum)

    def arguments(
        self, level: Number, sign: Number, height: int, width: int
    ) -> Mapping[str, Number]:
        """Arguments of the operations that have one, in the units of ``randaugment.OPERATIONS``.

        Args:
            level: the magnitude.
            sign: 1 or -1.
            height, width: the image's size in pixels.

        Returns:
            Operation name -> argument.
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
        """Colour outside the image, C integers in 0..255: the data's mean, or else mid-gray."""
        return tuple(min(255, round(255 * m)) for m in mean) if mean else (128,) * channels


@dataclasses.dataclass(frozen=True)
class Torchvision:
    """torchvision's RandAugment.

    Attributes:
        magnitude: strength of the operations, an integer in 0..30.
        count: operations per image, drawn with replacement.
    """

    magnitude: int = 9
    count: int = 2

    operations = _TORCHVISION
    probability = 1.0
    interpolation = warp.NEAREST

    @property
    def steepest(self) -> float:
        """See ``Timm.steepest``."""
        return math.sin(math.radians(self.magnitude))

    def draw_level(self, key: jax.Array) -> Number:
        """Returns the magnitude, which is the same for all operations."""
        return float(self.magnitude)

    def arguments(
        self, level: Number, sign: Number, height: int, width: int
    ) -> Mapping[str, Number]:
        """See ``Timm.arguments``."""
        share = level / 30
        return {
            "shear_x": sign * share * 0.3,
            "shear_y": sign * share * 0.3,
            "translate_x": sign * _whole(share * 150 / 331 * width),
            "translate_y": sign * _whole(share * 150 / 331 * height),
            "rotate": sign * share * 30,
            **dict.fromkeys(_ENHANCE, 1 + sign * share * 0.9),
            "posterize": 8 - jnp.round(share * 4),
            # An integer is below the ceiling if and only if it is below the number itself.
            "solarize": jnp.ceil(255 - share * 255),
        }

    def fill(self, mean: tuple[float, ...], channels: int) -> tuple[int, ...]:
        """Colour outside the image: black."""
        return (0,) * channels


def parse(text: str) -> Timm | Torchvision | None:
    """Parses a policy's text; an empty text yields None.

    Raises:
        UserError: the text isn't a policy.

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


# Part -> (integers only, lowest, highest).
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
        kind = "an integer from " if whole else ""
        raise UserError(
            f"{_KEY}: got {name}{digits} in {text!r}, allowed is {kind}{least} to {most} for {name}"
        )
    return value


def _timm(given: Mapping[str, float], text: str) -> Timm:
    std, maximum = given.get("mstd", 0.0), given.get("mmax", 10.0)
    magnitude = given.get("m", 10.0)
    if magnitude > maximum:
        raise UserError(
            f"{_KEY}: got m{magnitude:g} in {text!r}, allowed is up to {maximum:g}; "
            "raise the limit with mmax, or lower m"
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
    """Truncates as Python's int() does, even if single precision falls just short of an integer."""
    return jnp.floor(value + 1e-4)
