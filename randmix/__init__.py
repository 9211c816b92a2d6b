"""randmix: which parameters of a vision model must be learned?

- `randmix.load`, `randmix.compare`: a trained run, and runs side by side.
- `randmix.training.loop.train`: trains the run of a config.
- `randmix.masks`: selectors, labels and optimizers for any pytree; usable alone.
- `randmix.models`, `randmix.attacks`, `randmix.data`, `randmix.analysis`: the other parts.

Importing this package imports nothing heavy: host settings and ``jax.distributed`` must come before
JAX's first use, so the public names below are loaded when they are first asked for.
"""

from randmix.runtime import signals

# isort: split
if signals.is_program():  # before anything else, as a signal may come while the rest is imported
    signals.listen()

import importlib
from typing import TYPE_CHECKING

from randmix.runtime import host

if TYPE_CHECKING:
    from randmix.experiments.compare import compare
    from randmix.models.torch_weights import convmixer_from_torch, convmixer_to_torch
    from randmix.training.loading import Run, load

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "compare", "convmixer_from_torch", "convmixer_to_torch", "load"]

_HOMES = {
    "Run": "randmix.training.loading",
    "load": "randmix.training.loading",
    "compare": "randmix.experiments.compare",
    "convmixer_from_torch": "randmix.models.torch_weights",
    "convmixer_to_torch": "randmix.models.torch_weights",
}


def __getattr__(name: str):
    if name in _HOMES:
        host.leave_libtpu_alone()
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'randmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
