"""A map of the examples by what the last layer of a model sees of them."""

from collections.abc import Sequence

import numpy as np

from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure

MAX_LABELED_CLASSES = 20


def principal_components(features_NxF: np.ndarray) -> np.ndarray:
    """Returns the coordinates Nx2 along the two directions of largest variance."""
    centered_NxF = features_NxF - features_NxF.mean(axis=0)
    left_NxR, sizes_R, _ = np.linalg.svd(centered_NxF, full_matrices=False)
    coordinates = left_NxR[:, :2] * sizes_R[:2]
    return np.pad(coordinates, ((0, 0), (0, 2 - coordinates.shape[1])))


def neighborhoods(features_NxF: np.ndarray) -> np.ndarray:
    """Returns coordinates Nx2 in which neighbors stay neighbors: t-SNE (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE  # Importing it takes a second.

    perplexity = min(30.0, (len(features_NxF) - 1) / 3)
    return TSNE(perplexity=perplexity, init='random', random_state=0, n_jobs=1).fit_transform(features_NxF)


@figures.styled
def feature_map(
    features_NxF: np.ndarray, label_N: np.ndarray, prediction_N: np.ndarray, class_names: Sequence[str]
) -> ReportFigure | None:
    """Draws the examples in two dimensions, colored by class, with rings around errors; None for very few examples."""
    if len(features_NxF) < 10 or not np.isfinite(features_NxF).all():
        return None
    figure, ((left, right),) = figures.new_figure(11, 5.2, ncols=2)
    hues = [figures.categorical_color(number, len(class_names)) for number in range(len(class_names))]
    wrong = label_N != prediction_N
    tooltips: dict[str, str] = {}
    for axis, title, points in (
        (left, 'Principal components', principal_components(features_NxF)),
        (right, 't-SNE', neighborhoods(features_NxF)),
    ):
        for label, name in enumerate(class_names):
            own = label_N == label
            if own.any():
                gid = f'features-{title.split()[0]}-{label}'
                axis.scatter(*points[own].T, color=hues[label], s=9, linewidths=0, gid=gid)
                tooltips[gid] = f'class {name}: {own.sum():,} examples, {(own & wrong).sum():,} errors'
        axis.scatter(*points[wrong].T, s=60, facecolors='none', edgecolors=figures.TEXT, linewidths=1.2)
        axis.set(title=title, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    if len(class_names) <= MAX_LABELED_CLASSES:
        for name, color in zip(class_names, hues, strict=True):
            right.scatter([], [], color=color, s=20, label=figures.literal_text(figures.shorten(name)))
        figure.legend(loc='outside right center', fontsize=9)
    about = (
        f'{len(label_N):,} test examples by the features that the last layer gets, colored by their true class; rings '
        'mark errors. Left, the two directions of largest variance; right, an arrangement that keeps neighbors '
        'together, whose distances between groups mean nothing.'
    )
    return ReportFigure('Feature space', about, figure, tooltips)
