"""Studies of many runs: the reproduction of published experiments, and cross-validation."""
