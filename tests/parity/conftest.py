"""PyTorch and timm as the parity tests need them."""

import sys
import types

import pytest
import torch

if torch.version.cuda is None:
    # PyPI's torchvision is built for CUDA. Beside another PyTorch, this module of it alone fails,
    # which timm doesn't need.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
    """PyTorch computes its convolutions itself.

    oneDNN's gradient of strided 1 x 1 kernels of few channels writes past its workspace, so that
    some machines get wrong values (github.com/uxlfoundation/oneDNN/issues/6035).
    """
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
