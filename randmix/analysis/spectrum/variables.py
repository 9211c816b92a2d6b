"""The depthwise filters among a model's variables.

They are the kernels named ``depthwise`` in the role spatial of every model of this project, trained
or converted. A ConvMixer's patch stem has that role too but is excluded: its kernel is dense, mixes
the image's channels and samples every p-th pixel, so it has no frequency response per channel.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from randmix import masks
from randmix.errors import UserError
from randmix.masks.tree import flatten
from randmix.models import filters

_DEPTHWISE = masks.path(r"spatial/(.*/)?depthwise/kernel")
_NONE = (
    "model: no depthwise filters in it; allowed are models with kernels at "
    "spatial/.../depthwise/kernel"
)


def layers(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Depthwise kernels of a model, by layer.

    Args:
        variables: parameters by role, with or without ``batch_stats``.

    Returns:
        Kernels [k, k, C] or [k, k, C, m] on the host, in the order of the layers: "block_00" and so
        on in a ConvMixer, "stem", "block_00/conv_1", "block_00/conv_2" and so on in a ResNet.

    Raises:
        UserError: the model has no depthwise kernels, or one that holds NaN or infinity.
    """
    leaves = [leaf for leaf in flatten(variables)[0] if _DEPTHWISE.matches(leaf)]
    # The stem, which belongs to no block, comes first; block_100 comes after block_20.
    leaves.sort(key=lambda leaf: (-1 if leaf.depth is None else leaf.depth, leaf.path))
    if not leaves:
        raise UserError(_NONE)
    kernels = {}
    for leaf in leaves:
        kernel = np.asarray(jax.device_get(leaf.value))
        if not np.isfinite(kernel.astype(np.float32)).all():
            raise UserError(
                f"{leaf.path}: got weights that are NaN or infinite; allowed are finite numbers"
            )
        kernels[leaf.path.removeprefix("spatial/").removesuffix("/depthwise/kernel")] = kernel
    return kernels


def smooth_filters(variables: Any, index: float, *, keep_norm: bool = True) -> Any:
    """Smooths every depthwise filter among a model's variables (section 4.3.3).

    Args:
        variables: parameters by role, with or without ``batch_stats``.
        index: strength of the smoothing, at least 0; 0 changes nothing. See ``filters.smooth``.
        keep_norm: whether each filter keeps its L2 norm.

    Returns:
        A new tree of the same structure, shapes and dtypes; all other leaves are unchanged.

    Raises:
        UserError: the index is not a number of at least 0, or the model has no depthwise kernels.
    """
    if not any(map(_DEPTHWISE.matches, flatten(variables)[0])):
        raise UserError(_NONE)
    return masks.apply(
        variables, _DEPTHWISE, functools.partial(filters.smooth, index=index, keep_norm=keep_norm)
    )
