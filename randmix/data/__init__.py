"""Data sets: catalog, preparation with TFDS, loading and augmentation."""

from randmix.data.own import from_arrays

__all__ = ["from_arrays"]
