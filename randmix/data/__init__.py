"""Data sets: catalog, preparation with TFDS, loading and augmentation."""
