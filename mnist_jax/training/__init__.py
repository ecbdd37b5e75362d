"""One training run: building its parts from a config, the loop over epochs, and evaluation."""
