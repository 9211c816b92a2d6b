"""What each parameter of an unknown model is for, guessed from its name and shape.

The rules stand in `_RULES`, in the order in which they are asked: names first where a shape says
little (norms, embeddings, attention, the head), shapes where they say more (convolutions, token
mixing). Arrays named `weight` have PyTorch's order of axes, [out, in, *window], which is Equinox's
too; all others have Flax's, [*window, in, out].
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from randmix.analysis.roles.model import (
    KERNELS,
    OFFSETS,
    Model,
    Parameter,
    split,
    words_of,
)

BIAS = "bias of its layer"
_LARGEST_WINDOW = 64  # side of a kernel [k, k, C]; larger arrays are stacked matrices
_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked", "mean", "var"})
_SCALES = frozenset({"scale", "weight", "gamma", "alpha"})
_LAYER_SCALES = frozenset({"ls", "scale", "gamma"})
_NORMS = frozenset({"bn", "ln", "gn", "rms"})
_POSITIONS = frozenset(
    {"pos", "posemb", "posembed", "position", "positions", "positional", "wpe", "cpb"}
)
_TOKENS = frozenset({"cls", "class", "token", "tokens", "reg", "register", "dist", "probe"})
_QUERY_KEY = frozenset({"q", "k", "qk", "query", "key", "queries", "keys", "wq", "wk"})
_VALUE = frozenset({"v", "value", "values", "wv"})
_FUSED = frozenset({"qkv", "kqv", "kv"})
_OUTPUT = frozenset({"o", "out", "output", "proj", "projection", "wo"})
_DEPTHWISE = frozenset({"dw", "dwconv", "depthwise"})
_POINTWISE = frozenset({"pw", "pwconv", "pointwise", "mlp", "fc", "ff", "ffn", "feed", "channel"})
_PATCHES = frozenset({"patch", "patches", "stem", "embed", "embedding", "patchify"})
_HEADS = frozenset({"head", "heads", "classifier", "logits"})
_TOP_HEADS = frozenset({"fc", "output", "out", "readout"})  # right below the model


class Guess(NamedTuple):
    """What one parameter is for.

    Attributes:
        role: "spatial", "channel", "norm" or "head".
        why: the reason, in a few words.
        doubt: why it may be wrong, as a sentence without a subject; "" for a sure guess.
    """

    role: str
    why: str
    doubt: str = ""


def detect(
    parameters: Sequence[Parameter],
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    tokens: int | None = None,
) -> list[Guess]:
    """Guesses what each parameter is for; see `propose` for the arguments.

    Args:
        parameters: all of the model's, in any order.
        image_shape: (height, width, channels).
        num_classes: number of outputs.
        tokens: number of positions; None to infer it.
    """
    layers: dict[str, dict[str, Parameter]] = defaultdict(dict)
    parts: dict[str, set[str]] = defaultdict(set)
    for one in parameters:
        layers[one.layer][one.name] = one
        module, own = split(one.layer)
        parts[module] |= words_of(own)
    families = {path for path, own in parts.items() if own & {"q", "query"} and own & {"k", "key"}}
    model = Model(layers, frozenset(families), image_shape, num_classes)
    norms = [one for one in parameters if (guess := norm(one, model)) and not guess.doubt]
    positions = {tokens} if tokens else _positions(parameters, model)
    widths = {math.prod(one.shape) if one.is_vector else one.shape[-1] for one in norms} - {0, 1}
    model = dataclasses.replace(model, tokens=frozenset(positions), widths=frozenset(widths))
    model = dataclasses.replace(model, heads=_heads(parameters, model))
    return [_guess(one, model) for one in parameters]


def _guess(one: Parameter, model: Model) -> Guess:
    kernel = _kernel_of(one, model)
    if kernel is not None:
        return _guess(kernel, model)._replace(why=BIAS)
    return next(guess for rule in _RULES if (guess := rule(one, model)))


def _kernel_of(one: Parameter, model: Model) -> Parameter | None:
    """The kernel that a bias belongs to."""
    if "bias" not in one.name:
        return None
    beside = model.beside(one)
    names = (one.name.replace("bias", word) for word in ("kernel", "weight"))
    found = next((beside[name] for name in names if name in beside), None)
    return None if found is None or found.is_vector else found


def norm(one: Parameter, model: Model) -> Guess | None:
    """Norms: a layer of vectors alone, or one that is named so."""
    if one.name in _STATISTICS:
        return Guess("norm", "running statistics")
    own = one.own_words
    # Before the shape: a scan stacks the vectors of its layers, [layers, C].
    if _is_norm(own) and one.name in _SCALES | OFFSETS:
        return Guess("norm", "named as a norm")
    if not one.is_vector:
        return None
    names = model.beside(one).keys()
    vectors = all(other.is_vector for other in model.beside(one).values())
    if vectors and names & _SCALES and names & OFFSETS and math.prod(one.shape) > 1:
        return Guess("norm", "scale and bias vectors")
    if one.name in _SCALES or own & _LAYER_SCALES:
        doubt = (
            "scales channels as a norm does, but may normalise nothing: a layer scale, or slopes"
        )
        return Guess("norm", "lone scale", doubt)
    return None


def _is_norm(own: frozenset[str]) -> bool:
    return bool(own & _NORMS) or any("norm" in word for word in own)


def embedding(one: Parameter, model: Model) -> Guess | None:
    """Position embeddings and learned tokens."""
    *_, rows, width = (0, 0, *one.shape)
    if one.own_words & _POSITIONS and len(one.shape) > 1:
        return Guess("spatial", "position embedding")
    if one.name == "embedding":
        doubt = "is a table of vectors: an embedding of positions, if there is one for each"
        return Guess("spatial", "embedding table", doubt)
    token = words_of(one.name) & _TOKENS
    if token and width > 1 and math.prod(one.shape[:-1]) < 100:
        return Guess("channel", "learned token", "is read by attention and mixes nothing itself")
    if one.name not in KERNELS and one.shape == (1, rows, width) and rows > 1:
        return Guess(
            "spatial",
            f"{rows} vectors",
            "has the shape of a position embedding, but not the name",
        )
    return None


def attention(one: Parameter, model: Model) -> Guess | None:
    """Attention: query and key choose what is mixed, value and output mix channels."""
    if not one.shape or (one.is_vector and one.name in _SCALES):
        return None
    own, inside = one.own_words, model.is_attention(one)
    kinds = {kind for kind in (_QUERY_KEY, _VALUE) if own & kind}
    if not inside and max(map(len, own & (_QUERY_KEY | _VALUE | _FUSED)), default=0) < 3:
        return None
    if own & _FUSED or len(kinds) == 2 or (inside and one.name.startswith("in_proj")):
        return _fused(one)
    doubt = "" if inside else "has a name of attention, but no query, key and value beside it"
    if kinds == {_QUERY_KEY}:
        return Guess("spatial", "query or key of attention", doubt)
    if kinds == {_VALUE}:
        return Guess("channel", "value of attention", doubt)
    if not inside or one.is_vector or one.all_words & _POINTWISE:
        return None
    if own & _OUTPUT:
        return Guess("channel", "output of attention")
    window, inputs, outputs = one.form
    if not window and outputs == 3 * inputs:
        return _fused(one)
    if math.prod(window) == 1:
        doubt = "is inside attention, but its name says neither query, key, value nor output"
        return Guess("channel", "part of attention", doubt)
    return None


def _fused(one: Parameter) -> Guess:
    return Guess(
        "spatial",
        "fused attention",
        "holds query, key and value, or two of them, in one array, which a mask by leaf can't "
        "divide: as spatial mixing, freezing it freezes the value's channel mixing too; give each "
        "a layer of its own",
    )


def head(one: Parameter, model: Model) -> Guess | None:
    """The layer that computes the outputs."""
    doubt = model.heads.get(one.path)
    return None if doubt is None else Guess("head", "output layer", doubt)


def _heads(parameters: Sequence[Parameter], model: Model) -> dict[str, str]:
    """The kernels of the head, with the doubt about each.

    Those in a module that is named as a head, and has a layer with the right number of outputs;
    else the last, outermost layer with that number; else what is named as a head.
    """
    dense = [
        one
        for one in parameters
        if not one.is_vector and len(one.shape) > 1 and math.prod(one.form[0]) == 1
        if not (_is_norm(one.own_words) or embedding(one, model) or attention(one, model))
    ]
    named = {one.path: module for one in dense if (module := _head_module(one))}
    if model.num_classes is None:
        return dict.fromkeys(named, "")
    fitting = [one for one in dense if one.form[2] == model.num_classes]
    if modules := {named[one.path] for one in fitting if one.path in named}:
        return {path: "" for path, module in named.items() if module in modules}
    if fitting:
        last = max(fitting, key=lambda one: (-len(one.components), _natural(one.path)))
        doubt = "is the last of several layers with as many outputs as the model"
        return {last.path: doubt if len(fitting) > 1 else ""}
    doubt = f"is named as a head, but doesn't have the model's {model.num_classes} outputs"
    return dict.fromkeys(named, doubt)


def _head_module(one: Parameter) -> tuple[str, ...] | None:
    """The outermost module around a parameter whose name is a word for the head."""
    modules = one.components[:-1]
    named = [part for part in modules if not part.isdecimal()]
    for number, part in enumerate(modules, start=1):
        own = words_of(part)
        if own & (_HEADS | _TOP_HEADS if len(named) == 1 else _HEADS) and "multi" not in own:
            return tuple(modules[:number])
    return None


def _natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts Dense_10 after Dense_9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path)]


def convolution(one: Parameter, model: Model) -> Guess | None:
    """Kernels with a window."""
    if one.is_vector or len(one.shape) < 3:
        return None
    window, inputs, outputs = one.form
    equal_sides = len(window) == 1 and 1 < one.shape[0] == one.shape[1] < _LARGEST_WINDOW
    if equal_sides and not one.name.endswith("weight"):  # PyTorch's are [out, in, k]
        window, inputs, outputs = one.shape[:2], 1, one.shape[2]  # [k, k, C]
    size = " x ".join(map(str, window))
    channels = model.image_shape[2] if model.image_shape else 3
    if inputs == channels and one.own_words & _PATCHES:
        return _patches(f"patches, {size}")
    if math.prod(window) == 1:
        if inputs == 1 < outputs:
            return Guess("norm", "1 x 1 depthwise", "scales each channel, as a norm does")
        return Guess("channel", f"pointwise, {size}")
    if inputs == 1 or one.own_words & _DEPTHWISE:  # on grey images, a first layer may be dense
        either = " or dense" if inputs == channels and not one.own_words & _DEPTHWISE else ""
        return Guess("spatial", f"depthwise{either}, {size}")
    if len(window) == 1:
        return Guess(
            "channel" if one.all_words & _POINTWISE else "spatial",
            "three axes",
            "has three axes: a convolution along one, or equal layers stacked by a scan",
        )
    if inputs == channels:
        return _patches(f"dense first layer, {size}")
    return Guess(
        "spatial",
        f"dense, {size}",
        "mixes space and channels at once: as spatial mixing, freezing it freezes both; replace it "
        "by a depthwise and a pointwise convolution to tell them apart",
    )


def _patches(why: str) -> Guess:
    return Guess(
        "spatial",
        why,
        "mixes the pixels and the colours of a patch at once; it counts as spatial mixing, like a "
        "ConvMixer's stem",
    )


def token_mixing(one: Parameter, model: Model) -> Guess | None:
    """Dense layers along the axis of positions, as in MLP-Mixer."""
    if len(one.shape) != 2:
        return None
    _, inputs, outputs = one.form
    modules = [words_of(part) for part in one.components[:-1]]
    named = any(
        found & {"token", "tokens", "spatial"} and "mixer" not in found for found in modules
    )
    sizes = {inputs, outputs}
    fits = sizes & model.tokens
    if named and (fits or not model.tokens):
        return Guess("spatial", "token mixing, by name" + ("" if not fits else " and width"))
    if named:
        counts = " or ".join(map(str, sorted(model.tokens)))
        doubt = f"is named as token mixing, but no side of it has {counts} positions"
        return Guess("spatial", "token mixing, by name", doubt)
    if fits - model.widths and not sizes & model.widths:
        return Guess("spatial", f"token mixing: {min(fits)} positions")
    if fits & model.widths:
        doubt = (
            f"may mix tokens: the model has {min(fits)} positions and as many channels, so that "
            "the shape can't tell"
        )
        return None if one.own_words & _POINTWISE else Guess("channel", "dense layer", doubt)
    return None


def dense(one: Parameter, model: Model) -> Guess | None:
    """Dense layers along the axis of channels."""
    if len(one.shape) != 2 or (one.is_vector and one.name not in KERNELS):
        return None
    _, inputs, outputs = one.form
    why = f"dense, {inputs} to {outputs}"
    if one.own_words & _PATCHES:
        return _patches(why)
    if model.is_flat and model.image_shape and inputs == math.prod(model.image_shape):
        return Guess("spatial", why, "sees the whole image, and mixes space and channels at once")
    is_kernel = one.name in KERNELS or one.name.endswith(("kernel", "weight"))
    if one.all_words & _POINTWISE or (is_kernel and {inputs, outputs} & model.widths):
        return Guess("channel", why)
    doubt = (
        "is dense along an axis that its name doesn't tell; no norm has the size of either side"
        if is_kernel
        else "has two axes, but not the name of a kernel: a dense layer's, or a table of vectors"
    )
    return Guess("channel", why, doubt)


def other(one: Parameter, model: Model) -> Guess:
    """Whatever no other rule knows."""
    if one.is_vector:
        doubt = "is a vector or a number alone: a layer's scale, an offset, a slope, a temperature"
        return Guess("norm", "vector alone", doubt)
    return Guess("channel", "unknown", "has neither a name nor a shape that says what it mixes")


_RULES: tuple[Callable[[Parameter, Model], Guess | None], ...] = (
    norm,
    embedding,
    head,
    attention,
    convolution,
    token_mixing,
    dense,
    other,
)


def _positions(parameters: Sequence[Parameter], model: Model) -> set[int]:
    """Numbers of positions, from the image and the patches; none if attention mixes them."""
    if model.image_shape is None or any(map(model.is_attention, parameters)):
        return set()
    height, width, channels = model.image_shape
    found = set()
    for one in parameters:
        if len(one.shape) == 4 and not one.is_vector:
            (rows, columns), inputs, _ = one.form
            if inputs == channels and rows > 1 and not (height % rows or width % columns):
                found.add((height // rows) * (width // columns))
    return found - {1}
