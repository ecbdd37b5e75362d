"""One training run: from a config to its parts, the loop over epochs, and evaluation."""
