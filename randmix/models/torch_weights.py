"""Convert ConvMixer weights between this library and PyTorch (locuslab/convmixer or timm).

Each of our leaves corresponds to one PyTorch array. Kernels differ in the order of their axes:
[out, in, height, width] in PyTorch, [height, width, in, out] here. The PyTorch names are those of
the public modules: the authors' is a single ``Sequential``, timm's has named parts.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from randmix import models
from randmix.errors import UserError, check_choice
from randmix.models import torch_files

NAMINGS = ("locuslab", "timm")

# 4 GiB of float32; the largest published ConvMixer has 52 million parameters.
_MAX_VALUES = 2**30

# Our path of each layer, and PyTorch's by naming, in the order of PyTorch's modules. {i} counts the
# blocks, {n} the modules of the authors' Sequential.
_STEM = (("spatial/stem", "0", "stem.0"), ("norm/stem_norm", "2", "stem.2"))
_BLOCK = (
    ("spatial/block_{i:02d}/depthwise", "{n}.0.fn.0", "blocks.{i}.0.fn.0"),
    ("norm/block_{i:02d}/depthwise_norm", "{n}.0.fn.2", "blocks.{i}.0.fn.2"),
    ("channel/block_{i:02d}/pointwise", "{n}.1", "blocks.{i}.1"),
    ("norm/block_{i:02d}/pointwise_norm", "{n}.3", "blocks.{i}.3"),
)
_HEAD = (("head/classifier", "{n}", "head"),)
# PyTorch's name and our path of each array of a layer; None for what we don't keep.
_CONVOLUTION = {"weight": "{role}/{place}/kernel", "bias": "{role}/{place}/bias"}
_NORM = {
    "weight": "norm/{place}/scale",
    "bias": "norm/{place}/bias",
    "running_mean": "batch_stats/{place}/mean",
    "running_var": "batch_stats/{place}/var",
    "num_batches_tracked": None,
}
_BLOCK_KEY = re.compile(r"(blocks\.)?(\d+)\.0\.fn\..+")
# Axes of length 1 in PyTorch's kernels, as [height, width, in, out], that ours don't have.
_UNIT_AXES = {"depthwise": (2,), "pointwise": (0, 1)}


class _Sizes(NamedTuple):
    """The sizes of a ConvMixer, as read from the shapes of its weights."""

    width: int
    depth: int
    kernel_size: int
    patch_size: int
    num_classes: int
    channels: int

    def shape(self, path: str) -> tuple[int, ...]:
        """PyTorch's shape of the leaf at one of our paths."""
        layer, leaf = path.split("/")[-2:]
        if leaf != "kernel":
            return (self.num_classes,) if layer == "classifier" else (self.width,)
        return {
            "stem": (self.width, self.channels, self.patch_size, self.patch_size),
            "depthwise": (self.width, 1, self.kernel_size, self.kernel_size),
            "pointwise": (self.width, self.width, 1, 1),
            "classifier": (self.num_classes, self.width),
        }[layer]


def convmixer_from_torch(
    state_dict: Mapping[str, Any] | str | Path,
    *,
    activation: str = "gelu",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> tuple[models.ConvMixer, dict[str, Any]]:
    """Builds a ConvMixer with the weights of a PyTorch model.

    In eval mode it computes the same logits as PyTorch's model.

    Args:
        state_dict: float32, float16 or bfloat16 arrays or tensors by name, as returned by
            ``model.state_dict()``, with the names of locuslab/convmixer or of timm; or the path of
            a file that contains them, see ``python -m randmix convert --help``.
            ``num_batches_tracked`` may be missing and isn't kept, because BatchNorm doesn't count
            batches here.
        activation: "gelu" or "relu"; it can't be inferred from the weights.
        mean: one number per channel for images in [0, 1]: the normalisation that was applied before
            PyTorch's model and is part of this one. Empty: no normalisation.
        std: one number per channel, as many as in ``mean``.

    Returns:
        ``(model, variables)``, where variables are NumPy float32 arrays with exactly PyTorch's
        values.

    Raises:
        UserError: the file doesn't exist or can't be read, the state dict isn't that of a ConvMixer
            with finite numbers (the message names the key, what was found and what was expected),
            or an argument is invalid for the model.
    """
    what = "state dict"
    if isinstance(state_dict, str | Path):
        what = str(state_dict)
        state_dict = torch_files.read(Path(what), lambda found: _layout(what, found))
    arrays, keys, sizes = _layout(what, state_dict)
    flat = {path: _to_ours(f"{what}: {key}", arrays[key], path) for path, key in keys.items()}
    arguments = sizes._asdict()
    channels = arguments.pop("channels")
    model = models.build(
        "convmixer", **arguments, activation=activation, mean=tuple(mean), std=tuple(std)
    )
    assert isinstance(model, models.ConvMixer)
    model.check_image_shape((sizes.patch_size, sizes.patch_size, channels))
    return model, unflatten_dict(flat, sep="/")


def convmixer_to_torch(
    model: models.ConvMixer, variables: Mapping[str, Any], naming: str = "locuslab"
) -> dict[str, np.ndarray]:
    """Returns the state dict of the PyTorch model that computes the same logits.

    Args:
        model: a ConvMixer with a classifier. A state dict doesn't contain its ``mean`` and ``std``:
            normalise the images before PyTorch's model.
        variables: its parameters by role and ``batch_stats``.
        naming: "locuslab" or "timm".

    Returns:
        Contiguous float32 arrays by name, in the order of PyTorch's module. The int64
        ``num_batches_tracked`` are 0: batches aren't counted here, and PyTorch reads the counts
        only for a BatchNorm with ``momentum=None``.

    Raises:
        UserError: the naming is unknown, the model isn't a ConvMixer with a classifier, or the
            variables aren't those of the model.
    """
    check_choice("naming", naming, NAMINGS)
    if not isinstance(model, models.ConvMixer) or model.head != "classifier":
        head = f" with the head {model.head!r}" if isinstance(model, models.ConvMixer) else ""
        raise UserError(
            f"got a {type(model).__name__}{head}, allowed a ConvMixer with the head 'classifier'"
        )
    flat = {
        path: np.asarray(leaf, np.float32)
        for path, leaf in flatten_dict(variables, sep="/").items()
    }
    leaves = dict(_leaves(naming, model.depth))
    if differing := sorted(flat.keys() ^ set(filter(None, leaves.values()))):
        is_there = "is not a leaf of this model" if differing[0] in flat else "is missing"
        raise UserError(
            f"variables: {differing[0]} {is_there}; give the variables of the same model"
        )
    channels = (*flat["spatial/stem/kernel"].shape, 0, 0, 0)[2]  # ``_to_torch`` checks the shapes
    assert model.num_classes is not None, "a classifier has a number of classes"
    sizes = _Sizes(
        model.width, model.depth, model.kernel_size, model.patch_size, model.num_classes, channels
    )
    return {
        key: _to_torch(path, flat[path], sizes.shape(path)) if path else np.zeros((), np.int64)
        for key, path in leaves.items()
    }


def _layout(what: str, found: Any) -> tuple[dict[str, Any], dict[str, str], _Sizes]:
    """Checks everything about a state dict but its values, of which it allocates none.

    Returns:
        Its arrays by name, the name of each of our leaves by path, and the sizes of the model.
    """
    arrays = torch_files.unwrap(what, found)
    blocks = [match for key in arrays if (match := _BLOCK_KEY.fullmatch(key))]
    if not blocks:
        first = ", ".join([*map(torch_files.named, list(arrays)[:3]), *["..."] * (len(arrays) > 3)])
        raise UserError(
            f"{what}: not a ConvMixer: got the keys {first}, expected blocks such as "
            "3.0.fn.0.weight (locuslab) or blocks.0.0.fn.0.weight (timm)"
        )
    naming, depth = "timm" if blocks[0][1] else "locuslab", len({match[2] for match in blocks})
    leaves = dict(_leaves(naming, depth))
    those = f"the {len(leaves)} keys of a ConvMixer of depth {depth} in {naming}'s naming"
    if missing := [key for key, path in leaves.items() if path and key not in arrays]:
        raise UserError(f"{what}: {missing[0]} is missing; expected {those}")
    if unexpected := [key for key in arrays if key not in leaves]:
        key = torch_files.named(unexpected[0])
        raise UserError(f"{what}: got the key {key}; expected {those}")
    keys = {path: key for key, path in leaves.items() if path}
    for key in keys.values():
        torch_files.check_stored(f"{what}: {key}", arrays[key])
    sizes = _sizes(what, arrays, keys, depth)
    count = 0
    for path, key in keys.items():
        expected = sizes.shape(path)
        if (got := tuple(arrays[key].shape)) != expected:
            raise UserError(f"{what}: {key}: got shape {got}, expected {expected}")
        count += math.prod(expected)
    if count > _MAX_VALUES:
        raise UserError(
            f"{what}: got {count:,} values, allowed {_MAX_VALUES:,}; give a smaller model"
        )
    return arrays, keys, sizes


def _leaves(naming: str, depth: int) -> Iterator[tuple[str, str | None]]:
    """PyTorch's key and our path of each leaf, in PyTorch's order; None for what we don't keep."""
    layers = [(0, 0, layer) for layer in _STEM]
    layers += [(i, i + 3, layer) for i in range(depth) for layer in _BLOCK]
    layers += [(0, depth + 5, layer) for layer in _HEAD]  # after pooling and flattening
    for i, n, (ours, *theirs) in layers:
        role, _, place = ours.format(i=i).partition("/")
        prefix = theirs[NAMINGS.index(naming)].format(i=i, n=n)
        for name, path in (_NORM if role == "norm" else _CONVOLUTION).items():
            yield f"{prefix}.{name}", path and path.format(role=role, place=place)


def _sizes(what: str, arrays: Mapping[str, Any], keys: Mapping[str, str], depth: int) -> _Sizes:
    """Reads the sizes from the three kernels that determine them; `keys` maps paths to keys."""

    def shape(path: str, rank: int, form: str) -> tuple[int, ...]:
        found = tuple(getattr(arrays[keys[path]], "shape", ()))
        if len(found) != rank or 0 in found or found[2:3] != found[3:]:
            raise UserError(f"{what}: {keys[path]}: got shape {found}, expected {form}")
        return found

    width, channels, patch_size, _ = shape(
        "spatial/stem/kernel", 4, "(width, channels, patch, patch)"
    )
    *_, kernel_size = shape("spatial/block_00/depthwise/kernel", 4, f"({width}, 1, kernel, kernel)")
    num_classes, _ = shape("head/classifier/kernel", 2, f"(classes, {width})")
    return _Sizes(width, depth, kernel_size, patch_size, num_classes, channels)


def _to_ours(what: str, value: Any, path: str) -> np.ndarray:
    """Checks and reorders the values of a leaf."""
    value = torch_files.float32(what, value)
    if path.startswith("batch_stats/") and path.endswith("/var") and value.min() < 0:
        raise UserError(
            f"{what}: got the variance {value.min():g}, allowed at least 0; "
            "give an undamaged checkpoint"
        )
    return np.array(_reordered(value, path), order="C")


def _to_torch(path: str, value: np.ndarray, theirs: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_to_ours`, to PyTorch's shape."""
    ours = _reordered(np.broadcast_to(np.float32(0), theirs), path).shape
    if value.shape != ours:
        raise UserError(f"variables: {path}: got shape {value.shape}, expected {ours}")
    value = np.expand_dims(value, _unit_axes(path))
    return np.array(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T, order="C")


def _reordered(value: np.ndarray, path: str) -> np.ndarray:
    """PyTorch's [out, in, height, width] as our [height, width, in, out]; also for vectors."""
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value.squeeze(_unit_axes(path))


def _unit_axes(path: str) -> tuple[int, ...]:
    layer, leaf = path.split("/")[-2:]
    return _UNIT_AXES.get(layer, ()) if leaf == "kernel" else ()
