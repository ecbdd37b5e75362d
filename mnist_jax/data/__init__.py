"""Raw sources, their TFDS builders, and the batches made from them."""
