"""Rewriting of a separable ResNet with other frozen weights, without changing what it computes.

With nothing between its halves, a separable convolution is the dense one with the kernel
W[:, :, c] = D[:, :, c] P[c], a product of matrices: D[:, :, c] is [k k, m] and P[c] is [m, C_out]
(see `randmix.ops.separable`). Filters of rank k k therefore restrict nothing: whatever they are,
some pointwise weights give any dense kernel. Likewise pointwise weights of rank C_out, which needs
C_out <= m, leave everything to the filters. Both hold for every stride and padding, since the dense
kernel is the same. Neither holds with an activation, a norm or a bias between the halves.

Everything is computed in float64 on the host. A layer is named by its path without role and leaf:
"stem", "block_03/conv_1".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from randmix.errors import UserError

Kernels = Mapping[str, np.ndarray]

# Weights are stored in float32: smaller singular values, relative to the largest, are its rounding.
_TOLERANCE = float(np.finfo(np.float32).eps)

_FILTERS = "/depthwise/kernel"
_MIXING = "/pointwise/kernel"


def dense_kernels(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Composes the dense kernel of every separable convolution.

    Args:
        variables: of a `ResNet` with ``between="none"``. Those with ``between="relu"`` look the
            same and aren't told apart.

    Returns:
        [k, k, C, C_out] float64 by layer. With the shortcuts, the norms and the head, which stay as
        they are, they make a dense ResNet.

    Raises:
        UserError: the variables aren't such a model's.
    """
    filters = _layers(variables.get("spatial", {}), _FILTERS)
    mixing = _layers(variables.get("channel", {}), _MIXING)
    normed = any("between_norm" in path for path in flatten_dict(variables.get("norm", {})))
    if not filters or filters.keys() != mixing.keys() or normed:
        raise UserError(
            "rewriting: got the variables of another model, allowed are those of a ResNet with "
            "between='none'"
        )
    return {
        layer: np.einsum("ijcm,cmo->ijco", kernel, _by_channel(mixing[layer], kernel.shape[2]))
        for layer, kernel in filters.items()
    }


def with_filters(
    variables: Mapping[str, Any],
    spatial: Mapping[str, Any],
    kernels: Kernels | None = None,
    *,
    exact: bool = True,
) -> dict[str, Any]:
    """Gives a ResNet other filters and solves for the pointwise kernels, so that it stays the same.

    It turns a Full model into a Chans one: ``spatial`` may be that of another seed or bank. The
    filters need rank k k in every channel, hence m >= k k. Nine random 3 x 3 filters have it; equal
    filters, as of the banks "box" and "identity", have rank 1.

    Args:
        variables: of a `ResNet` with ``between="none"``.
        spatial: the role "spatial" with the new filters, [k, k, C, m'] for every layer; m' may
            differ from the m of ``variables``.
        kernels: the dense kernels to give to the layers instead of the model's own, as
            `dense_kernels` returns them.
        exact: False takes the least-squares solution where the rank doesn't suffice.

    Returns:
        The variables with ``spatial`` and with pointwise kernels [C m', C_out] float64; all others
        are kept.

    Raises:
        UserError: with ``exact``, a layer's filters have a lower rank; or the variables aren't such
            a model's, or the shapes don't fit.
    """
    kernels = dense_kernels(variables) if kernels is None else kernels
    filters = _layers(spatial, _FILTERS)
    _check_layers("filters", filters, kernels)
    solved = {
        layer + _MIXING: _solve_mixing(layer, kernel, filters[layer], exact=exact)
        for layer, kernel in kernels.items()
    }
    return {**variables, "spatial": spatial, "channel": _replaced(variables["channel"], solved)}


def with_mixing(
    variables: Mapping[str, Any], channel: Mapping[str, Any], kernels: Kernels | None = None
) -> dict[str, Any]:
    """Gives a ResNet other pointwise kernels and solves for the filters, so that it stays the same.

    The mirror of `with_filters`. The pointwise weights need rank C_out in every channel, hence
    C_out <= m. Shortcuts, which have no spatial half, keep their kernels; a Space model freezes
    those as well, so it is restricted there at any width.

    Args:
        variables: of a `ResNet` with ``between="none"``.
        channel: the role "channel" with the new pointwise kernels, [C m', C_out] for every layer.
        kernels: as in `with_filters`.

    Returns:
        The variables with those pointwise kernels and with filters [k, k, C, m'] float64; all
        others are kept.

    Raises:
        UserError: a layer's pointwise weights have a lower rank; or the variables aren't such a
            model's, or the shapes don't fit.
    """
    kernels = dense_kernels(variables) if kernels is None else kernels
    mixing = _layers(channel, _MIXING)
    _check_layers("pointwise kernels", mixing, kernels)
    solved = {
        layer + _FILTERS: _solve_filters(layer, kernel, mixing[layer])
        for layer, kernel in kernels.items()
    }
    kept = {layer + _MIXING: kernel for layer, kernel in mixing.items()}
    return {
        **variables,
        "spatial": _replaced(variables["spatial"], solved),
        "channel": _replaced(variables["channel"], kept),
    }


def residual(kernel: np.ndarray, filters: np.ndarray) -> float:
    """What filters can't express of a dense kernel, in [0, 1].

    The distance of the kernel from the nearest one that the filters reach with any pointwise
    weights, relative to its L2 norm: 0 up to rounding for filters of rank k k. For kernels
    of independent normal weights, its root mean square is sqrt(1 - rank / (k k)).

    Args:
        kernel: [k, k, C, C_out].
        filters: [k, k, C, m].
    """
    wanted, factor = _columns(kernel), _columns(filters)
    reached = factor @ (_inverses(factor) @ wanted)
    return float(np.linalg.norm(wanted - reached) / np.linalg.norm(wanted))


def ranks(filters: np.ndarray) -> np.ndarray:
    """Rank of the filters of each channel, [C] int, for filters [k, k, C, m].

    Singular values up to float32's rounding of the largest count as zero. What is of use in
    training has a higher threshold; see `randmix.analysis.spectrum.restriction.rank`.
    """
    return np.linalg.matrix_rank(_columns(filters), rtol=_TOLERANCE)


def _solve_mixing(
    layer: str, kernel: np.ndarray, filters: np.ndarray, *, exact: bool
) -> np.ndarray:
    """Pointwise weights [C m, C_out] with which filters [k, k, C, m] make a dense kernel."""
    k, _, c, features = kernel.shape
    if filters.shape[:3] != kernel.shape[:3]:
        shape = f"[{k}, {k}, {c}, m]"
        raise UserError(f"{layer}: got filters {list(filters.shape)}, allowed {shape}")
    factor, lowest = _columns(filters), ranks(filters).min()
    if exact and lowest < k * k:
        raise UserError(
            f"{layer}: got filters of rank {lowest}, needed is rank {k * k} in every channel; "
            f"take a bank of full rank, as 'random' or 'same', with a multiplier of {k * k} or more"
        )
    return (_inverses(factor) @ _columns(kernel)).reshape(-1, features)


def _solve_filters(layer: str, kernel: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    """Filters [k, k, C, m] with which pointwise weights [C m, C_out] make a dense kernel."""
    k, _, c, features = kernel.shape
    if mixing.shape[0] % c or mixing.shape[1] != features:
        shape = f"[{c} m, {features}]"
        raise UserError(f"{layer}: got pointwise weights {list(mixing.shape)}, allowed {shape}")
    factor = _by_channel(mixing, c)
    lowest = np.linalg.matrix_rank(factor, rtol=_TOLERANCE).min()
    if lowest < features:
        raise UserError(
            f"{layer}: got pointwise weights of rank {lowest}, needed is rank {features} in every "
            f"input channel; take random ones with a multiplier of {features} or more"
        )
    solution = _columns(kernel) @ _inverses(factor)
    return np.moveaxis(solution.reshape(c, k, k, -1), 0, 2)


def _check_layers(what: str, given: Kernels, kernels: Kernels) -> None:
    if given.keys() != kernels.keys():
        raise UserError(
            f"rewriting: got {what} for {', '.join(sorted(given)) or 'no layer'}, "
            f"allowed are those for {', '.join(sorted(kernels))}"
        )


def _layers(role: Mapping[str, Any], leaf: str) -> dict[str, np.ndarray]:
    """The kernels of a role's separable convolutions by layer, float64."""
    return {
        path.removesuffix(leaf): np.asarray(kernel, np.float64)
        for path, kernel in flatten_dict(role, sep="/").items()
        if path.endswith(leaf)
    }


def _replaced(role: Mapping[str, Any], kernels: Kernels) -> dict[str, Any]:
    return unflatten_dict({**flatten_dict(role, sep="/"), **kernels}, sep="/")


def _columns(kernel: np.ndarray) -> np.ndarray:
    """[k, k, C, n] as one matrix per channel, [C, k k, n]."""
    k, _, c, n = kernel.shape
    return np.moveaxis(np.asarray(kernel, np.float64), 2, 0).reshape(c, k * k, n)


def _by_channel(mixing: np.ndarray, channels: int) -> np.ndarray:
    """[C m, C_out] as one matrix per input channel, [C, m, C_out]."""
    return mixing.reshape(channels, -1, mixing.shape[1])


def _inverses(matrices: np.ndarray) -> np.ndarray:
    """Moore-Penrose inverses, which cut off what `ranks` doesn't count."""
    return np.linalg.pinv(matrices, rcond=_TOLERANCE)
