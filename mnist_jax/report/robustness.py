"""Figures of robustness: accuracy against the strength of each corruption, and what the corruptions look like."""

from collections.abc import Mapping, Sequence

import numpy as np

from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure

COLUMNS = 4  # small figures per row
Strengths = Mapping[str, tuple[str, tuple[float, ...]]]


@figures.styled
def curves(
    strengths: Strengths, clean: Mapping[str, float], accuracies: Mapping[str, Mapping[str, Sequence[float]]]
) -> ReportFigure:
    """Draws one small figure per corruption, with a line per run."""
    count = -(-len(strengths) // COLUMNS)
    figure, axes = figures.new_figure(11, 2.3 * count, count, COLUMNS)
    tooltips: dict[str, str] = {}
    for index, (axis, (name, (unit, values))) in enumerate(zip(axes.flat, strengths.items(), strict=False)):
        places = range(len(values) + 1)
        for number, (run, by_name) in enumerate(accuracies.items()):
            color = figures.SERIES_COLORS[number % len(figures.SERIES_COLORS)]
            line = [clean[run], *by_name[name]]
            label = figures.literal_text(figures.shorten(run))
            axis.plot(places, line, color=color, linewidth=1.8, label=label if index == 0 else None)
            for place, accuracy in zip(places, line, strict=True):
                gid = f'robustness-{index}-{number}-{place}'
                axis.plot(place, accuracy, 'o', color=color, markersize=4, gid=gid)
                strength = f'{values[place - 1]:g} ({unit})' if place else 'unchanged'
                tooltips[gid] = f'{run}, {name}, {strength}: accuracy {accuracy:.4f}'
        axis.set(title=name[0].upper() + name[1:], ylim=(0, 1.03), xlabel=unit)
        axis.set_xticks(places, ['none', *(f'{value:g}' for value in values)])
        figures.add_grid(axis)
    for axis in axes.flat[len(strengths) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel('accuracy')
    if len(accuracies) > 1:
        figure.legend(loc='outside upper center', ncols=min(len(accuracies), 4), fontsize=9)
    about = 'The leftmost point of each line is the accuracy on the unchanged images.'
    return ReportFigure('Accuracy under corruption', about, figure, tooltips)


@figures.styled
def pictures(strengths: Strengths, images: Mapping[str, np.ndarray]) -> ReportFigure:
    """Draws one image under each corruption: unchanged, and at each strength."""
    columns = 1 + max(len(values) for _, values in strengths.values())
    figure, axes = figures.new_figure(8, 1.15 * len(images), len(images), columns)
    for number, (row, (name, changed)) in enumerate(zip(axes, images.items(), strict=True)):
        labels = ['' if number else 'unchanged', *(f'{value:g}' for value in strengths[name][1])]
        for axis, image, label in zip(row, changed, labels, strict=True):
            shown = image[..., 0] if image.shape[-1] == 1 else image
            axis.imshow(np.clip(shown, 0, 1), cmap='gray', vmin=0, vmax=1)
            axis.set_title(label, fontsize=8, loc='center')
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha='right', va='center', fontsize=9, color=figures.TEXT)
    return ReportFigure('What the corruptions look like', 'One of the test images.', figure, {})
