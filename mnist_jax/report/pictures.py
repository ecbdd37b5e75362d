"""Images: where the model errs, what it is unsure of, what its first layer looks for, what its layers see."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from mnist_jax.report import style
from mnist_jax.report.style import Picture

SHOWN, COLUMNS = 18, 6  # examples, and how many of them in a row
MAX_FILTERS, MAX_MAPS = 64, 16


class Examples(NamedTuple):
    """Test examples and what is predicted for them."""

    image: Callable[[int], np.ndarray]  # the one at a place, HxWxC
    label: np.ndarray  # N
    probabilities: np.ndarray  # NxK
    names: Sequence[str]  # of the classes

    @property
    def prediction(self) -> np.ndarray:
        """The most probable classes, N."""
        return self.probabilities.argmax(-1)

    @property
    def confidence(self) -> np.ndarray:
        """The probabilities of these, N."""
        return self.probabilities.max(-1)


def mistakes(examples: Examples) -> Picture | None:
    """The errors in which the model is most confident, or None where there are none."""
    wrong = np.flatnonzero(examples.prediction != examples.label)
    chosen = wrong[np.argsort(-examples.confidence[wrong], kind='stable')][:SHOWN]
    about = 'The errors in which the model is most sure: the truth, what it was taken for, and how surely.'
    return _examples(examples, chosen, 'Most confident mistakes', about)


def doubts(examples: Examples) -> Picture | None:
    """The hits in which the model is least confident, or None where there are none."""
    right = np.flatnonzero(examples.prediction == examples.label)
    chosen = right[np.argsort(examples.confidence[right], kind='stable')][:SHOWN]
    about = 'What was right, but barely: the truth and its probability, and the class that came next.'
    return _examples(examples, chosen, 'Least confident hits', about)


@style.styled
def _examples(examples: Examples, chosen: np.ndarray, title: str, about: str) -> Picture | None:
    if not len(chosen):
        return None
    rows = -(-len(chosen) // COLUMNS)
    figure, axes = style.new(11, 2.2 * rows, nrows=rows, ncols=COLUMNS, squeeze=False)
    tips: dict[str, str] = {}
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, place in zip(axes.ravel(), chosen, strict=False):
        probabilities = examples.probabilities[place]
        first, second = np.argsort(-probabilities, kind='stable')[:2]
        truth = examples.names[examples.label[place]]
        names = examples.names
        gid = f'example-{place}'
        _show(axis, examples.image(place), gid)
        if first == examples.label[place]:
            caption = f'{truth} {probabilities[first]:.0%}\nthen {names[second]} {probabilities[second]:.0%}'
        else:
            caption = f'{truth}\n\u2192 {names[first]} {probabilities[first]:.1%}'
        axis.set_title(caption, fontsize=9, loc='center')
        likely = np.argsort(-probabilities, kind='stable')[:4]
        told = ', '.join(f'{names[label]} {probabilities[label]:.2%}' for label in likely)
        tips[gid] = f'test example {place:,}, truth {truth}: {told}'
    return Picture(title, about, figure, tips)


def _show(axis: Axes, image_HxWxC: np.ndarray, gid: str | None = None) -> None:
    grey = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC / max(image_HxWxC.max(), 1)
    axis.imshow(grey, cmap='gray', interpolation='none', gid=gid)


@style.styled
def filters(kernel_hxwxCxF: np.ndarray) -> Picture:
    """The weights of the first layer, an image for each feature, averaged over the channels."""
    weights = kernel_hxwxCxF.mean(axis=2)[..., :MAX_FILTERS]
    count, most = weights.shape[-1], float(np.abs(weights).max())
    columns = min(16, count)
    rows = -(-count // columns)
    figure, axes = style.new(11, 0.8 * rows + 0.3, nrows=rows, ncols=columns, squeeze=False)
    tips = {}
    for number, axis in enumerate(axes.ravel()):
        axis.set_axis_off()
        if number < count:
            gid = f'filter-{number}'
            axis.imshow(weights[..., number], cmap='RdBu', vmin=-most, vmax=most, interpolation='none', gid=gid)
            tips[gid] = f'feature {number}: {weights[..., number].min():.3f} to {weights[..., number].max():.3f}'
    shown = (
        f'{count} of its {kernel_hxwxCxF.shape[-1]} features' if count < kernel_hxwxCxF.shape[-1] else 'each feature'
    )
    about = f'What {shown} looks for: blue weights are above zero, red ones below; the strongest is {most:.3f}.'
    return Picture('Filters of the first layer', about, figure, tips)


@style.styled
def feature_maps(image_HxWxC: np.ndarray, maps: Mapping[str, np.ndarray], name: str) -> Picture | None:
    """What each layer makes of an example, as far as its output is an image; None where no layer's is."""
    shown = {layer: array for layer, array in maps.items() if array.ndim == 3 and min(array.shape[:2]) > 1}
    if not shown:
        return None
    columns = MAX_MAPS + 1
    figure, axes = style.new(11, 0.85 * len(shown) + 0.3, nrows=len(shown), ncols=columns, squeeze=False)
    tips: dict[str, str] = {}
    for axis in axes.ravel():
        axis.set_axis_off()
    _show(axes[0][0], image_HxWxC, 'example')
    tips['example'] = f'the example, a {name}'
    for row, (layer, array) in zip(axes, shown.items(), strict=True):
        row[1].set_title(f'{layer}, {" x ".join(map(str, array.shape))}', fontsize=8)
        for channel in range(min(MAX_MAPS, array.shape[-1])):
            gid = f'map-{layer.replace("/", "-")}-{channel}'
            row[channel + 1].imshow(array[..., channel], cmap='gray', interpolation='none', gid=gid)
            tips[gid] = (
                f'{layer}, channel {channel}: {array[..., channel].min():.3g} to {array[..., channel].max():.3g}'
            )
    about = f'What the layers make of a test example, {name}: the first {MAX_MAPS} channels, each on its own scale.'
    return Picture('Feature maps', about, figure, tips)
