"""ConvMixers named like the published PyTorch modules: the authors' and timm's."""

import torch
from torch import nn

SMALL = {
    "width": 6,
    "depth": 2,
    "kernel_size": 3,
    "patch_size": 1,
    "channels": 1,
    "num_classes": 10,
}


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


def parts(*, width, depth, kernel_size, patch_size, channels, num_classes, activation):
    """Stem, blocks and classifier of the published module."""
    after = lambda: (activation(), nn.BatchNorm2d(width))  # noqa: E731
    stem = (nn.Conv2d(channels, width, patch_size, stride=patch_size), *after())
    blocks = [
        nn.Sequential(
            Residual(
                nn.Sequential(
                    nn.Conv2d(width, width, kernel_size, groups=width, padding="same"), *after()
                )
            ),
            nn.Conv2d(width, width, 1),
            *after(),
        )
        for _ in range(depth)
    ]
    return stem, blocks, nn.Linear(width, num_classes)


class Timm(nn.Module):
    """A module with named parts, like timm's."""

    def __init__(self, **sizes):
        super().__init__()
        stem, blocks, head = parts(**sizes)
        self.stem, self.blocks, self.head = nn.Sequential(*stem), nn.Sequential(*blocks), head

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def locuslab(**sizes):
    """One Sequential, like the authors'."""
    stem, blocks, head = parts(**sizes)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), head)


MODULES = {"locuslab": locuslab, "timm": Timm}


def module(naming="locuslab", activation="gelu", **sizes):
    """A module in eval mode with random numbers everywhere, so that a forgotten one shows."""
    torch.manual_seed(0)
    twin = MODULES[naming](
        activation={"gelu": nn.GELU, "relu": nn.ReLU}[activation], **{**SMALL, **sizes}
    ).eval()
    for name, tensor in twin.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        else:
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.uniform_(
                -0.7, 0.7
            )
    return twin


def arrays(**options):
    return {key: tensor.numpy() for key, tensor in module(**options).state_dict().items()}
