"""Data sets: the catalogue, their preparation with TFDS, loading and augmentation."""
