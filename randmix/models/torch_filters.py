"""Depthwise filters of any PyTorch model, read from a file of its weights.

They are found by shape, [C, 1, k, k] with k > 1, so that the model needn't be known: ConvMixer,
ConvNeXt, MobileNet and so on. The first layer of a model for grey images has that shape too. It is
dense, and left out if it has one of the names in `_STEM`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from randmix.errors import UserError
from randmix.models import torch_files

# First layers: of the authors' ConvMixer and any Sequential, of timm and of torchvision.
_STEM = re.compile(
    r"(0|stem|stem\.0|stem\.conv|conv1|conv1\.0|conv_stem|stem_conv|features\.0(\.0)?"
    r"|patch_embed\.(proj|conv))\.weight"
)
# The depthwise layer of a ConvMixer's block, counted from 0 by timm, from 3 by the authors.
_CONVMIXER = re.compile(r"(blocks\.)?(\d+)\.0\.fn\.0\.weight")


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the depthwise filters in a file of weights, without running any code in it.

    Args:
        path: a .safetensors, .pth, .pt, .bin or .tar file with a state dict, alone or in a training
            checkpoint under "state_dict" or "model".

    Returns:
        Kernels [k, k, C] by name, float32 with exactly the file's values. The name is that of the
        array in the file; a ConvMixer's is our path of the layer, as in converted weights.

    Raises:
        UserError: the file can't be read, or has no depthwise kernels or unusable ones; the
            message is one line.
    """
    found = torch_files.read(path, lambda found: _kernels(path, found))
    return {
        _path(name): np.array(
            torch_files.float32(f"{path}: {torch_files.named(name)}", kernel)[:, 0].transpose(
                1, 2, 0
            ),
            order="C",
        )
        for name, kernel in _kernels(path, found).items()
    }


def _kernels(path: Path, found: Any) -> dict[str, Any]:
    """The depthwise kernels [C, 1, k, k] of a state dict, whose values aren't read."""
    arrays = torch_files.unwrap(str(path), found)
    shapes = {name: tuple(getattr(array, "shape", ())) for name, array in arrays.items()}
    chosen = {
        name: arrays[name]
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[0] and shape[1] == 1 and 1 < shape[2] == shape[3]
        if not _STEM.fullmatch(name)
    }
    if not chosen:
        first = next((name for name, shape in shapes.items() if len(shape) == 4), None)
        got = f", the first kernel {torch_files.named(first)} {shapes[first]}" if first else ""
        raise UserError(
            f"{path}: got {len(arrays)} arrays{got}, expected depthwise kernels (C, 1, k, k) with "
            "k > 1; give the weights of a model that has them, such as a ConvMixer or a ConvNeXt"
        )
    for name, kernel in chosen.items():
        torch_files.check_stored(f"{path}: {torch_files.named(name)}", kernel)
    return chosen


def _path(name: str) -> str:
    match = _CONVMIXER.fullmatch(name)
    if match is None:
        return name
    block = int(match[2]) - (0 if match[1] else 3)
    return f"spatial/block_{block:02d}/depthwise/kernel"
