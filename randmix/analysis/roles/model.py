"""Parameters of an unknown model by path and shape, and what they say of the whole model."""

import dataclasses
import re
from collections.abc import Mapping

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
KERNELS = frozenset({"kernel", "weight", "w"})
OFFSETS = frozenset({"bias", "beta", "offset"})


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter: its slash-joined path and its shape."""

    path: str
    shape: tuple[int, ...]

    @property
    def components(self) -> list[str]:
        """The path's parts; a dot separates them too, as in the keys of a state dict."""
        return re.split("[/.]", self.path)

    @property
    def name(self) -> str:
        """The last part, such as "kernel"."""
        return self.components[-1]

    @property
    def layer(self) -> str:
        """The path up to the last part, with the separator."""
        return self.path[: -len(self.name)]

    @property
    def own_words(self) -> frozenset[str]:
        """The words of the layer's name; if that is a number, of the next name above it."""
        named = [one for one in self.components[:-1] if not one.isdecimal()]
        own = [] if self.name in KERNELS | OFFSETS else [self.name]
        return words_of(*named[-1:], *own)

    @property
    def all_words(self) -> frozenset[str]:
        """The words of the whole path."""
        return words_of(*self.components)

    @property
    def is_vector(self) -> bool:
        """Whether it has one number for each channel, or just one."""
        longer = sum(size > 1 for size in self.shape)
        return len(self.shape) < 2 or (longer < 2 and self.name not in KERNELS)

    @property
    def form(self) -> tuple[tuple[int, ...], int, int]:
        """The window, inputs and outputs of a kernel; as many inputs as each output sees."""
        if self.name.endswith("weight"):
            outputs, inputs, *window = self.shape
        else:
            *window, inputs, outputs = self.shape
        return tuple(window), inputs, outputs


@dataclasses.dataclass(frozen=True)
class Model:
    """What is known of the whole model.

    Attributes:
        layers: the parameters of each layer by their names.
        attention: paths of the modules that have a query and a key, with the separator.
        image_shape: (height, width, channels) of its images, or None.
        num_classes: the number of its outputs, or None.
        tokens: numbers of positions that a layer may see at once.
        widths: numbers of channels, those of its norms.
        heads: the doubt, or "", about each kernel that may compute the outputs, by path.
    """

    layers: Mapping[str, Mapping[str, Parameter]]
    attention: frozenset[str]
    image_shape: tuple[int, int, int] | None
    num_classes: int | None
    tokens: frozenset[int] = frozenset()
    widths: frozenset[int] = frozenset()
    heads: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def beside(self, one: Parameter) -> Mapping[str, Parameter]:
        """The parameters of the layer of this one, by name."""
        return self.layers[one.layer]

    @property
    def is_flat(self) -> bool:
        """Whether it has dense layers alone, as one that sees flattened images."""
        parameters = [one for layer in self.layers.values() for one in layer.values()]
        return all(len(one.shape) < 3 and not self.is_attention(one) for one in parameters)

    def is_attention(self, one: Parameter) -> bool:
        """Whether a module around it is named so, or its own stands beside a query and a key."""
        named = any("attn" in word or "attention" in word for word in one.all_words)
        return named or split(one.layer)[0] in self.attention


def split(layer: str) -> tuple[str, str]:
    """Splits the path of a layer, with the separator, into that of its module and its own name."""
    match = re.fullmatch(r"(.*[/.]|)([^/.]*)[/.]", layer)
    return (match[1], match[2]) if match else ("", "")


def words_of(*names: str) -> frozenset[str]:
    """The words of names such as `LayerNorm_0`, `q_proj`, in lower case, without numbers."""
    return frozenset(word.lower() for name in names for word in WORD.findall(name))
