"""JAX/Flax research codebase for small-image classification. Start reading at `step.py`, then `train.py`."""
