"""Whether the model is right as often as it says."""

import numpy as np

from mnist_jax.learning import metrics
from mnist_jax.report import style
from mnist_jax.report.style import Picture


@style.styled
def reliability(probabilities_NxK: np.ndarray, label_N: np.ndarray) -> Picture:
    """The reliability diagram: accuracy against confidence, and how many examples have which confidence."""
    found = metrics.calibration(probabilities_NxK, label_N)
    figure, (left, right) = style.new(11, 4.2, ncols=2)
    tips: dict[str, str] = {}
    width = 1 / len(found['bins'])
    left.plot([0, 1], [0, 1], color=style.SOFT, linestyle='--', linewidth=1, label='right as often as it says')
    for number, each in enumerate(found['bins']):
        if not each['count']:
            continue
        place = (number + 0.5) * width
        told = (
            f'{each["count"]:,} examples of confidence {each["from"]:.3f} to {each["to"]:.3f} '
            f'(mean {each["confidence"]:.4f}): {each["accuracy"]:.4f} of them right'
        )
        gids = f'reliability-{number}', f'confidence-{number}'
        left.bar(place, each['accuracy'], 0.94 * width, color=style.BLUE, alpha=0.75, gid=gids[0])
        left.plot([each['confidence']] * 2, [each['confidence'], each['accuracy']], color=style.ORANGE, linewidth=2)
        right.bar(place, each['count'], 0.94 * width, color=style.BLUE, alpha=0.75, gid=gids[1])
        tips |= dict.fromkeys(gids, told)
    left.set(xlim=(0, 1), ylim=(0, 1), title='Accuracy by confidence', xlabel='confidence', ylabel='share right')
    right.set(xlim=(0, 1), yscale='log', title='Examples by confidence', xlabel='confidence', ylabel='examples')
    for axis in (left, right):
        style.grid(axis)
    left.legend(loc='upper left', fontsize=9)
    about = (
        f'Expected calibration error {found["expected_calibration_error"]:.4f}, Brier score {found["brier"]:.4f}. '
        'Orange is the gap between what the model says and how often it is right.'
    )
    return Picture('Calibration', about, figure, tips)
