"""PyTorch's depthwise convolution with 'same' padding, and each of its gradients by itself."""

from collections.abc import Callable

import torch
from torch.nn import functional


def parts(x, kernel, g) -> dict[str, tuple[Callable, tuple]]:
    """Each part as a function and its tensors: x, g [N, C, H, W] and kernel [C, 1, k, k].

    PyTorch's "same" padding has one more zero after than before for an even k, which its
    convolutions have no argument for: as it does itself, this pads first.
    """
    _, c, h, w = x.shape
    k = kernel.shape[-1]
    lo, more = (k - 1) // 2, (k - 1) % 2

    def pad(x):
        return functional.pad(x, (0, more, 0, more)) if more else x

    def forward(x, kernel):
        return functional.conv2d(pad(x), kernel, padding=lo, groups=c)

    def backward(g, x, kernel, of):
        return torch.ops.aten.convolution_backward(
            g, x, kernel, None, [1, 1], [lo, lo], [1, 1], False, [0, 0], c, of
        )

    def input_gradient(g, kernel):
        # Of the input only the shape matters here, so it is left empty, which costs nothing.
        shape, options = (len(g), c, h + more, w + more), {"dtype": g.dtype, "device": g.device}
        padded = torch.empty(shape, memory_format=torch.channels_last, **options)
        return backward(g, padded, kernel, [True, False, False])[0][..., :h, :w]

    def weight_gradient(x, g, kernel):
        return backward(g, pad(x), kernel, [False, True, False])[1]

    return {
        "forward": (forward, (x, kernel)),
        "input gradient": (input_gradient, (g, kernel)),
        "weight gradient": (weight_gradient, (x, g, kernel)),
    }
