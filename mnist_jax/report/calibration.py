"""The reliability diagram: how well the model's confidence matches its accuracy."""

import numpy as np

from mnist_jax.learning import metrics
from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure


@figures.styled
def reliability(probabilities_NxK: np.ndarray, label_N: np.ndarray) -> ReportFigure:
    """Draws the reliability diagram, accuracy against confidence, next to a histogram of the confidence."""
    calibration = metrics.calibration(probabilities_NxK, label_N)
    bins = calibration['bins']
    width = 1 / len(bins)
    figure, ((left, right),) = figures.new_figure(11, 4.2, ncols=2)
    tooltips: dict[str, str] = {}
    left.plot([0, 1], [0, 1], color=figures.MUTED, linestyle='--', linewidth=1, label='perfect calibration')
    for index, row in enumerate(bins):
        if not row['count']:
            continue
        center, confidence, accuracy = (index + 0.5) * width, row['confidence'], row['accuracy']
        gids = f'reliability-{index}', f'confidence-{index}'
        left.bar(center, accuracy, 0.94 * width, color=figures.BLUE, alpha=0.75, gid=gids[0])
        left.plot([confidence, confidence], [confidence, accuracy], color=figures.ORANGE, linewidth=2)
        right.bar(center, row['count'], 0.94 * width, color=figures.BLUE, alpha=0.75, gid=gids[1])
        tooltip = (
            f'{row["count"]:,} examples with a confidence from {row["from"]:.3f} to {row["to"]:.3f} '
            f'(mean {confidence:.4f}): accuracy {accuracy:.4f}'
        )
        tooltips |= dict.fromkeys(gids, tooltip)
    left.set(xlim=(0, 1), ylim=(0, 1), title='Accuracy by confidence', xlabel='confidence', ylabel='accuracy')
    right.set(xlim=(0, 1), yscale='log', title='Examples by confidence', xlabel='confidence', ylabel='examples')
    for axis in (left, right):
        figures.add_grid(axis)
    left.legend(loc='upper left', fontsize=9)
    about = (
        'Confidence is the probability of the predicted class. The orange lines show the gap between confidence and '
        f'accuracy. Expected calibration error {calibration["expected_calibration_error"]:.4f}, '
        f'Brier score {calibration["brier"]:.4f}.'
    )
    return ReportFigure('Calibration', about, figure, tooltips)
