"""Augmentation of uint8 image batches in pure JAX, inside the compiled step.

`Augmentation` is the entry point. The other modules cover one subject each: crops, the three kinds
of pixel operations (`lookup`, `enhance`, `warp`), the policies that draw them (`policies`,
`randaugment`), `erasing` and `mixing`.
"""

from randmix.data.augment.pipeline import Augmentation

__all__ = ["Augmentation"]
