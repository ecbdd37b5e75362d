"""Grids of images: mistakes, uncertain predictions, first-layer filters and feature maps."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from mnist_jax.learning.label_errors import LabelSuspects
from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure

MAX_EXAMPLES, EXAMPLE_COLUMNS = 18, 6
MAX_FILTERS, FILTER_COLUMNS = 64, 16
MAX_CHANNELS = 16  # maximum number of feature maps to draw per layer


class PredictedExamples(NamedTuple):
    """Labeled examples and the predictions for them."""

    image: Callable[[int], np.ndarray]  # maps the index of an example to its image, HxWxC
    label: np.ndarray  # N
    probabilities: np.ndarray  # NxK
    class_names: Sequence[str]

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.label)

    @property
    def prediction(self) -> np.ndarray:
        """The most probable classes, N."""
        return self.probabilities.argmax(-1)

    @property
    def confidence(self) -> np.ndarray:
        """The probabilities of the predicted classes, N."""
        return self.probabilities.max(-1)


def most_confident_mistakes(examples: PredictedExamples) -> np.ndarray:
    """Returns the indices of all errors, those with the highest confidence first."""
    wrong = np.flatnonzero(examples.prediction != examples.label)
    return wrong[np.argsort(-examples.confidence[wrong], kind='stable')]


def mistakes(examples: PredictedExamples) -> ReportFigure | None:
    """Draws the errors with the highest confidence; returns None if there are no errors."""
    indices = most_confident_mistakes(examples)[:MAX_EXAMPLES]
    about = (
        'The errors with the highest confidence. Above each image: the true class, the predicted class and its '
        'probability.'
    )
    return _draw_examples(examples, indices, 'Most confident mistakes', about)


def doubts(examples: PredictedExamples) -> ReportFigure | None:
    """Draws the correct predictions with the lowest confidence; returns None if there are none."""
    right = np.flatnonzero(examples.prediction == examples.label)
    indices = right[np.argsort(examples.confidence[right], kind='stable')][:MAX_EXAMPLES]
    about = (
        'The correct predictions with the lowest confidence. Above each image: the true class and the second most '
        'probable class, each with its probability.'
    )
    return _draw_examples(examples, indices, 'Least confident correct predictions', about)


def label_suspects(examples: PredictedExamples, suspects: LabelSuspects) -> ReportFigure | None:
    """Draws the examples whose labels are most suspicious; returns None if there are none."""
    about = (
        'Examples for which models that were not trained on them suggest another class. Above each image: its index, '
        'the label, the suggested class and its probability.'
    )
    return _draw_examples(examples, suspects.example[:MAX_EXAMPLES], 'Label suspects', about, suspects.suggestion)


def suspect_rows(
    examples: PredictedExamples, suspects: LabelSuspects, limit: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table of label suspects, at most `limit` of them."""
    rows = []
    for index, suggestion, _, confident in itertools.islice(zip(*suspects, strict=True), limit):
        probabilities, label = examples.probabilities[index], examples.label[index]
        pairs = [(examples.class_names[number], f'{probabilities[number]:.4f}') for number in (label, suggestion)]
        rows.append([str(index), *pairs[0], *pairs[1], 'yes' if confident else 'no'])
    return ['index', 'label', 'probability', 'suggestion', 'its probability', 'confident'], rows


@figures.styled
def _draw_examples(
    examples: PredictedExamples, indices: np.ndarray, title: str, about: str, suggestion_M: np.ndarray | None = None
) -> ReportFigure | None:
    """Draws test examples, or training examples for which `suggestion_M` has other classes than their labels."""
    if not len(indices):
        return None
    names, short = examples.class_names, [figures.shorten(name) for name in examples.class_names]
    rows = -(-len(indices) // EXAMPLE_COLUMNS)
    figure, axes = figures.new_figure(11, 2.2 * rows, nrows=rows, ncols=EXAMPLE_COLUMNS)
    tooltips: dict[str, str] = {}
    for axis in axes.ravel():
        axis.set_axis_off()
    suggestions = itertools.repeat(None) if suggestion_M is None else suggestion_M
    for axis, index, suggested in zip(axes.ravel(), indices, suggestions, strict=False):
        probabilities = examples.probabilities[index]
        ranking = np.argsort(-probabilities, kind='stable')
        first, second = ranking[:2]
        label = examples.label[index]
        gid = f'example-{index}'
        _draw_image(axis, examples.image(index), gid)
        if suggested is not None:
            caption = f'{index:,}: {short[label]}\n\u2192 {short[suggested]} {probabilities[suggested]:.1%}'
        elif first == label:
            caption = f'{short[label]} {probabilities[first]:.0%}\nnext {short[second]} {probabilities[second]:.0%}'
        else:
            caption = f'{short[label]}\n\u2192 {short[first]} {probabilities[first]:.1%}'
        axis.set_title(caption, fontsize=9, loc='center')
        likely = ', '.join(f'{names[other]} {probabilities[other]:.2%}' for other in ranking[:4])
        kind, what = ('test example', 'true class') if suggested is None else ('training example', 'label')
        tooltips[gid] = f'{kind} {index:,}, {what} {names[label]}, predicted: {likely}'
    return ReportFigure(title, about, figure, tooltips)


def _draw_image(axis: Axes, image_HxWxC: np.ndarray, gid: str) -> None:
    pixels = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC / max(image_HxWxC.max(), 1)
    axis.imshow(pixels, cmap='gray', interpolation='none', gid=gid)


@figures.styled
def filters(kernel_hxwxCxF: np.ndarray) -> ReportFigure:
    """Draws the weights of the first layer, one image per output feature, averaged over the input channels."""
    weights_hxwxF = kernel_hxwxCxF.mean(axis=2)[..., :MAX_FILTERS]
    count, limit = weights_hxwxF.shape[-1], float(np.abs(weights_hxwxF).max())
    columns = min(FILTER_COLUMNS, count)
    rows = -(-count // columns)
    figure, axes = figures.new_figure(11, 0.8 * rows + 0.3, nrows=rows, ncols=columns)
    tooltips: dict[str, str] = {}
    for index, axis in enumerate(axes.ravel()):
        axis.set_axis_off()
        if index < count:
            weights_hxw, gid = weights_hxwxF[..., index], f'filter-{index}'
            axis.imshow(weights_hxw, cmap='RdBu', vmin=-limit, vmax=limit, interpolation='none', gid=gid)
            tooltips[gid] = f'feature {index}: weights from {weights_hxw.min():.3f} to {weights_hxw.max():.3f}'
    features = kernel_hxwxCxF.shape[-1]
    drawn = f'the first {count} of {features} features' if count < features else 'each feature'
    averaged = ', averaged over the input channels' if kernel_hxwxCxF.shape[2] > 1 else ''
    about = (
        f'The weights of {drawn}{averaged}: positive weights are blue, negative weights are red. '
        f'The largest absolute value drawn is {limit:.3f}.'
    )
    return ReportFigure('First-layer filters', about, figure, tooltips)


@figures.styled
def feature_maps(image_HxWxC: np.ndarray, maps: Mapping[str, np.ndarray], class_name: str) -> ReportFigure | None:
    """Draws what each layer computes from an example; returns None if no layer's output is an image.

    Args:
      image_HxWxC: The example.
      maps: The output of each layer by name; outputs that are not HxWxC with H and W above 1 are left out.
      class_name: The class of the example.
    """
    spatial = {layer: output for layer, output in maps.items() if output.ndim == 3 and min(output.shape[:2]) > 1}
    if not spatial:
        return None
    figure, axes = figures.new_figure(11, 0.85 * len(spatial) + 0.3, nrows=len(spatial), ncols=MAX_CHANNELS + 1)
    for axis in axes.ravel():
        axis.set_axis_off()
    _draw_image(axes[0][0], image_HxWxC, 'example')
    tooltips = {'example': f'the input, an example of class {class_name}'}
    for row, (layer, output_HxWxC) in zip(axes, spatial.items(), strict=True):
        row[1].set_title(f'{layer}, {" x ".join(map(str, output_HxWxC.shape))}', fontsize=8)
        for channel in range(min(MAX_CHANNELS, output_HxWxC.shape[-1])):
            map_HxW, gid = output_HxWxC[..., channel], f'map-{layer.replace("/", "-")}-{channel}'
            row[channel + 1].imshow(map_HxW, cmap='gray', interpolation='none', gid=gid)
            tooltips[gid] = f'{layer}, channel {channel}: values from {map_HxW.min():.3g} to {map_HxW.max():.3g}'
    about = (
        f'The output of each layer for a test example of class {class_name}: the first {MAX_CHANNELS} channels, each '
        'on its own scale.'
    )
    return ReportFigure('Feature maps', about, figure, tooltips)


@figures.styled
def explanations(
    examples: PredictedExamples, indices: Sequence[int], maps: Sequence[Mapping[str, np.ndarray]]
) -> ReportFigure | None:
    """Draws which pixels the predictions of some examples depend on; returns None if there are no examples.

    Args:
      examples: All examples.
      indices: Those to draw, one per column.
      maps: For each of them, one number per pixel, HxW, by the name of the method; positive numbers speak for the
        predicted class.
    """
    if not len(indices):
        return None
    methods = list(maps[0])
    figure, axes = figures.new_figure(11, 1.75 * (1 + len(methods)), 1 + len(methods), max(4, len(indices)))
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    tooltips: dict[str, str] = {}
    for column, (index, by_method) in enumerate(zip(indices, maps, strict=True)):
        truth, predicted = (
            examples.class_names[label] for label in (examples.label[index], examples.prediction[index])
        )
        _draw_image(axes[0, column], examples.image(index), f'explained-{index}')
        caption = f'{figures.shorten(truth)}\n\u2192 {figures.shorten(predicted)}'
        axes[0, column].set_title(caption, fontsize=9, loc='center')
        tooltips[f'explained-{index}'] = f'test example {index:,}, true class {truth}, predicted {predicted}'
        for row, (method, map_HxW) in enumerate(by_method.items(), 1):
            limit = float(np.abs(map_HxW).max()) or 1.0
            axes[row, column].imshow(
                map_HxW, cmap='RdBu', vmin=-limit, vmax=limit, interpolation='none', gid=f'{method}-{index}'
            )
            tooltips[f'{method}-{index}'] = f'{method}: from {map_HxW.min():.3g} to {map_HxW.max():.3g}'
    for row, name in enumerate(['image', *methods]):
        axes[row, 0].set_ylabel(name, fontsize=9, color=figures.TEXT)
    about = (
        'Which pixels the predicted classes of the most confident mistakes depend on. Gradient: how much the class '
        'reacts to a small change of each pixel. Integrated gradients: what each pixel adds to the logarithm of the '
        'probability (blue) or takes from it (red), compared with a black image. Occlusion: how far the probability '
        'falls (blue) or rises (red) if a square around the pixel is hidden.'
    )
    return ReportFigure('Why the most confident mistakes', about, figure, tooltips)
