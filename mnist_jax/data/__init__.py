"""Datasets: raw file formats, TFDS builders, splits, batches, and the framing of a user's own images."""
