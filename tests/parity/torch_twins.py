"""The two model families in PyTorch, with their parameters under randmix's paths.

The ConvMixer is an `nn.Sequential` as its authors publish it; the ResNet is the usual
pre-activation one, with each convolution split into a depthwise and a 1 x 1 convolution.
"""

import numpy as np
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def conv_mixer(*, channels, width, depth, kernel_size, patch_size, activation, num_classes):
    activation = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]
    blocks = [
        nn.Sequential(
            Residual(
                nn.Sequential(
                    nn.Conv2d(width, width, kernel_size, groups=width, padding="same"),
                    activation(),
                    nn.BatchNorm2d(width),
                )
            ),
            nn.Conv2d(width, width, 1),
            activation(),
            nn.BatchNorm2d(width),
        )
        for _ in range(depth)
    ]
    return nn.Sequential(
        nn.Conv2d(channels, width, patch_size, stride=patch_size),
        activation(),
        nn.BatchNorm2d(width),
        *blocks,
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def conv_mixer_places(model, depth):
    """The modules with parameters by randmix path: {"spatial/stem": module, ...}."""
    places = {"spatial/stem": model[0], "norm/stem_norm": model[2], "head/classifier": model[-1]}
    for i, block in enumerate(model[3 : 3 + depth]):
        places |= {
            f"spatial/block_{i:02d}/depthwise": block[0].inner[0],
            f"norm/block_{i:02d}/depthwise_norm": block[0].inner[2],
            f"channel/block_{i:02d}/pointwise": block[1],
            f"norm/block_{i:02d}/pointwise_norm": block[3],
        }
    return places


class Separable(nn.Module):
    def __init__(self, inputs, outputs, *, kernel_size, multiplier, between, stride=1):
        super().__init__()
        middle = inputs * multiplier
        # With a stride, kernels must be odd: PyTorch has no strided "same" padding.
        padding = "same" if stride == 1 else kernel_size // 2
        self.depthwise = nn.Conv2d(
            inputs, middle, kernel_size, stride=stride, padding=padding, groups=inputs, bias=False
        )
        self.norm = nn.BatchNorm2d(middle) if "bn" in between else nn.Identity()
        self.activation = nn.ReLU() if "relu" in between else nn.Identity()
        self.pointwise = nn.Conv2d(middle, outputs, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.activation(self.norm(self.depthwise(x))))


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, **options):
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(inputs)
        self.conv_1 = Separable(inputs, outputs, stride=stride, **options)
        self.norm_2 = nn.BatchNorm2d(outputs)
        self.conv_2 = Separable(outputs, outputs, **options)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x):
        y = self.norm_1(x).relu()
        if self.shortcut is not None:
            x = self.shortcut(y)
        return x + self.conv_2(self.norm_2(self.conv_1(y)).relu())


class PreActResNet(nn.Module):
    def __init__(self, *, channels, width, depth, stem, num_classes, **options):
        super().__init__()
        if stem == "imagenet":
            self.stem = Separable(channels, width, stride=2, **{**options, "kernel_size": 7})
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.stem, self.pool = Separable(channels, width, **options), nn.Identity()
        self.blocks, inputs = nn.Sequential(), width
        for stage in range(4 if stem == "imagenet" else 3):
            for place in range(depth):
                stride = 2 if stage and not place else 1
                self.blocks.append(PreActBlock(inputs, width * 2**stage, stride, **options))
                inputs = width * 2**stage
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.blocks(self.pool(self.stem(x)))
        return self.classifier(self.norm(x).relu().mean((2, 3)))


def resnet_places(model):
    """The same for a ResNet as `conv_mixer_places`."""
    places = _separable_places("stem", model.stem)
    for i, block in enumerate(model.blocks):
        name = f"block_{i:02d}"
        for half in ("1", "2"):
            places |= _separable_places(f"{name}/conv_{half}", getattr(block, f"conv_{half}"))
            places[f"norm/{name}/norm_{half}"] = getattr(block, f"norm_{half}")
        if block.shortcut is not None:
            places[f"channel/{name}/shortcut"] = block.shortcut
    return {**places, "norm/final_norm": model.norm, "head/classifier": model.classifier}


def _separable_places(name, separable):
    places = {
        f"spatial/{name}/depthwise": separable.depthwise,
        f"channel/{name}/pointwise": separable.pointwise,
    }
    if isinstance(separable.norm, nn.BatchNorm2d):
        places[f"norm/{name}/between_norm"] = separable.norm
    return places


def randomize_norms(model, generator):
    """Replaces the 1s and 0s of norms, which would hide a swapped or forgotten value."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5, generator=generator)


def tensors(places):
    """{randmix path: torch parameter} for all places."""
    found = {}
    for place, module in places.items():
        norm = isinstance(module, nn.BatchNorm2d)
        for name, tensor in module.named_parameters(recurse=False):
            found[f"{place}/{'bias' if name == 'bias' else 'scale' if norm else 'kernel'}"] = tensor
    return found


def parameters(places, *, gradients=False):
    """A twin's parameters as randmix's tree, or their gradients (zeros where frozen)."""
    tree = {}
    for path, tensor in tensors(places).items():
        place = path.rpartition("/")[0]
        if gradients:
            tensor = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        _put(tree, path, _layout(place, places[place], tensor.detach().numpy()))
    return tree


def batch_stats(places):
    """A twin's running statistics as randmix's tree."""
    tree = {}
    for place, module in places.items():
        if isinstance(module, nn.BatchNorm2d):
            path = place.removeprefix("norm/")
            _put(tree, f"{path}/mean", module.running_mean.numpy().copy())
            _put(tree, f"{path}/var", module.running_var.numpy().copy())
    return tree


def _layout(place, module, array):
    """PyTorch's axes to randmix's; biases and norms are vectors in both."""
    if array.ndim == 2:
        return array.T.copy()
    if array.ndim < 4:
        return array.copy()
    if place.startswith("channel"):
        return array[:, :, 0, 0].T.copy()
    if module.groups == 1:
        return array.transpose(2, 3, 1, 0).copy()
    k = array.shape[2]
    kernel = array.reshape(module.in_channels, -1, k, k).transpose(2, 3, 0, 1)
    # A depthwise convolution with a bias is the ConvMixer's, with one filter per channel.
    return (kernel if module.bias is None else kernel[..., 0]).copy()


def _put(tree, path, value):
    *names, leaf = path.split("/")
    for name in names:
        tree = tree.setdefault(name, {})
    tree[leaf] = np.asarray(value, np.float32)
