"""From sums over examples to what is reported. Sums are divided once, here, on the host."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Totals = dict[str, np.ndarray]


def add(totals: Totals, sums: Mapping[str, Any]) -> Totals:
    """`totals + sums` in float64, so that many batches add without rounding; {} is the empty total."""
    return {name: totals.get(name, 0) + np.asarray(value, np.float64) for name, value in sums.items()}


def means(totals: Totals) -> dict[str, float]:
    """Mean loss and accuracy over all examples counted."""
    count = float(totals['count'])
    return {'loss': float(totals['loss']) / count, 'accuracy': float(totals['correct']) / count}
