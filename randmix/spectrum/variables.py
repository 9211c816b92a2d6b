"""The depthwise filters inside the variables of a model.

They are the kernels named ``depthwise`` of the role spatial, in every model of this project, trained or
converted. A ConvMixer's patch stem has that role too and is left out: its kernel is dense, it mixes the image's
channels and samples every p-th pixel, so that it has no frequency response a channel.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from randmix import filters, masks
from randmix.errors import UserError
from randmix.masks.tree import flatten

_DEPTHWISE = masks.path(r"spatial/(.*/)?depthwise/kernel")


def layers(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The depthwise kernels of a model by layer.

    Args:
        variables: parameters by role; ``batch_stats`` may stand beside them.

    Returns:
        Kernels [k, k, C] or [k, k, C, m] on the host, from the first layer on: "block_00" and so on in a
        ConvMixer, "stem", "block_00/conv_1", "block_00/conv_2" and so on in a ResNet.

    Raises:
        UserError: the model has none, or one that holds NaN or infinity.
    """
    leaves = [leaf for leaf in flatten(variables)[0] if _DEPTHWISE.matches(leaf)]
    # The stem, which is in no block, comes first; block_100 comes after block_20.
    leaves.sort(key=lambda leaf: (-1 if leaf.depth is None else leaf.depth, leaf.path))
    if not leaves:
        raise UserError(
            "model: no depthwise filters in it; allowed is one with kernels at spatial/.../depthwise/kernel"
        )
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
    """The variables of a model with every depthwise filter smoothed, the rest as it is (paper, section 4.3.3).

    Args:
        variables: parameters by role; ``batch_stats`` may stand beside them.
        index: how strongly, from 0, which changes nothing; see ``filters.smooth``.
        keep_norm: whether each filter keeps its L2 norm.

    Returns:
        A new tree of the same structure, shapes and dtypes.

    Raises:
        UserError: an index that isn't a number from 0.
    """
    return masks.apply(
        variables, _DEPTHWISE, functools.partial(filters.smooth, index=index, keep_norm=keep_norm)
    )
