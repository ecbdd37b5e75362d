"""Studies of many runs: sweeps, populations, cross-validation, stress tests, and the reproduction of experiments."""
