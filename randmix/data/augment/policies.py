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

from randmix import ranges
from randmix.data.augment import warp
from randmix.data.augment.warp import Number
from randmix.errors import UserError

_KEY = "config.data.randaugment"
_ALLOWED = (
    '"" for none, timm\'s "rand-m9-mstd0.5-inc1" (parts m, n, mstd, mmax, inc1) or '
    '"torchvision-n2-m12" (parts n, m)'
)


@dataclasses.dataclass(frozen=True)
class Timm:
    """timm's RandAugment.

    Attributes:
        magnitude: strength of the operations, in 0..maximum.
        count: operations per image, drawn with replacement.
        magnitude_std: standard deviation of the normal distribution of magnitudes; above 100 they
            are uniform in 0..magnitude.
        maximum: upper limit that magnitudes are clipped to.
        increasing: whether every operation gets stronger with the magnitude.

    Raises:
        UserError: the magnitude is above the maximum.
    """

    magnitude: float = 10.0
    count: int = 2
    magnitude_std: float = 0.0
    maximum: float = 10.0
    increasing: bool = False

    probability = 0.5
    interpolation = warp.BILINEAR

    def __post_init__(self):
        if self.magnitude > self.maximum:
            raise UserError(
                f"{_KEY}: got m{self.magnitude:g}, allowed is up to {self.maximum:g}; "
                "raise the limit with mmax, or lower m"
            )

    @property
    def steepest(self) -> float:
        """Argument of ``warp.apply``: the sine of the largest angle, which no shear exceeds."""
        return math.sin(math.radians(3.0 * self.maximum))

    def draw_level(self, key: jax.Array) -> Number:
        """Draws the magnitude of one operation, [] float32 in 0..maximum."""
        if self.magnitude_std > 100:
            return jax.random.uniform(key, maxval=self.magnitude)
        level = self.magnitude + self.magnitude_std * jax.random.normal(key)
        return jnp.clip(level, 0.0, self.maximum)

    def arguments(
        self, level: Number, sign: Number, height: int, width: int
    ) -> Mapping[str, Number]:
        """The operations, and their arguments in the units of ``randaugment.OPERATIONS``.

        Args:
            level: the magnitude.
            sign: 1 or -1.
            height, width: the image's size in pixels.

        Returns:
            Operation name -> argument, 0 if it has none. Draws depend on the order.
        """
        bits, threshold = _whole(level * 0.4), _whole(level * 25.6)
        if self.increasing:
            bits, threshold = 4 - bits, 256 - threshold
            factor = jnp.maximum(0.1, 1 + sign * level * 0.09)
        else:
            factor = 0.1 + level * 0.18
        return {
            **dict.fromkeys(("autocontrast", "equalize", "invert"), 0.0),
            "rotate": sign * level * 3.0,
            "posterize": bits,
            "solarize": threshold,
            "solarize_add": _whole(level * 11.0),
            **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), factor),
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
        factor = 1 + sign * share * 0.9
        return {
            "identity": 0.0,
            "shear_x": sign * share * 0.3,
            "shear_y": sign * share * 0.3,
            "translate_x": sign * _whole(share * 150 / 331 * width),
            "translate_y": sign * _whole(share * 150 / 331 * height),
            "rotate": sign * share * 30,
            **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor),
            "posterize": 8 - jnp.round(share * 4),
            # An integer is below the ceiling if and only if it is below the number itself.
            "solarize": jnp.ceil(255 - share * 255),
            **dict.fromkeys(("autocontrast", "equalize"), 0.0),
        }

    def fill(self, mean: tuple[float, ...], channels: int) -> tuple[int, ...]:
        """Colour outside the image: black."""
        return (0,) * channels


# Family -> (policy, part -> (attribute, its type, allowed numbers)).
_FAMILIES = {
    "rand": (
        Timm,
        {
            "m": ("magnitude", float, ranges.numbers(0, 30)),
            "n": ("count", int, ranges.integers(1, 8)),
            "mstd": ("magnitude_std", float, ranges.numbers()),
            "mmax": ("maximum", float, ranges.numbers(1, 30)),
            "inc": ("increasing", bool, ranges.integers(1, 1)),
        },
    ),
    "torchvision": (
        Torchvision,
        {
            "m": ("magnitude", int, ranges.integers(0, 30)),
            "n": ("count", int, ranges.integers(1, 8)),
        },
    ),
}


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
    family, *given = text.split("-")
    if family not in _FAMILIES:
        raise UserError(f"{_KEY}: got {text!r}, allowed {_ALLOWED}")
    policy, parts = _FAMILIES[family]
    settings = {}
    for part in given:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if not match or match[1] not in parts or parts[match[1]][0] in settings:
            raise UserError(f"{_KEY}: got {part!r} in {text!r}, allowed {_ALLOWED}, each part once")
        name, kind, allowed = parts[match[1]]
        number = float(match[2])
        number = int(number) if number.is_integer() else number
        ranges.check(f"{_KEY}: {match[1]} in {text!r}", number, allowed)
        settings[name] = kind(number)
    return policy(**settings)


def _whole(value: Number) -> Number:
    """Truncates as Python's int() does, even if single precision falls just short of an integer."""
    return jnp.floor(value + 1e-4)
