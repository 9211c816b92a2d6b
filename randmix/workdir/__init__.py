"""A run's folder: its files, its checkpoints, and the functions that read them."""
