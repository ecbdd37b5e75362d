"""What a run directory holds: checkpoints, metrics, results and provenance."""
