"""Augmentation in pure JAX, on batches of uint8 images, inside the compiled step.

`Augmentation` is the whole of it; each other module is one subject: crops, the three kinds of pixel operations
(`lookup`, `enhance`, `warp`), the policies that draw them (`policies`, `randaugment`), `erasing` and `mixing`.
"""

from randmix.data.augment.pipeline import Augmentation

__all__ = ["Augmentation"]
