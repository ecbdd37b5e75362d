"""The contents of a workdir: checkpoints, metrics, results and provenance."""
