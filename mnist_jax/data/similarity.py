"""Finds images of a dataset that are the same, nearly the same, blank, or unlike most others of their class."""

from typing import NamedTuple

import numpy as np
import scipy.spatial

# Two images are nearly the same if the correlation of their pixels is at least this: brightness and contrast do not
# matter. Of the 70,000 images of MNIST, 3 pairs are that similar, and of those of Fashion-MNIST, 499.
NEAR_CORRELATION = 0.99
MAX_BLOCKS = 16  # blocks along an axis whose sums stand for an image
# Neighbors are searched in the first of these numbers of dimensions that leaves few enough candidates, as estimated
# from this many images.
DIMENSIONS = (12, 24, 48)
MAX_CANDIDATES, SAMPLES = 20_000_000, 1000
MAX_IMAGES, MAX_PAIRS = 200_000, 1_000_000  # limits of the search, which would take minutes
OUTLIER_NEIGHBORS, MAX_REFERENCES = 5, 1000
CHUNK_PIXELS = 2**22  # pixels that are converted to floating point at a time


class Pairs(NamedTuple):
    """Pairs of similar images, the most similar first."""

    indices: np.ndarray  # Mx2: those of both images, in ascending order
    correlation: np.ndarray  # M


def same_images(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """Returns for each image the index of the first one with the same pixels, N."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(image.tobytes(), index) for index, image in enumerate(images_NxHxWxC)], int)


def blank_images(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """Returns the indices of the images in which each channel has one value."""
    pixels_NxPxC = images_NxHxWxC.reshape(len(images_NxHxWxC), -1, images_NxHxWxC.shape[-1])
    return np.flatnonzero((pixels_NxPxC == pixels_NxPxC[:, :1]).all(axis=(1, 2)))


def near_duplicates(images_NxHxWxC: np.ndarray, minimum: float = NEAR_CORRELATION) -> Pairs | None:
    """Returns all pairs of different images whose pixels have at least the correlation `minimum`.

    Of images with the same pixels, each one is paired with those that are nearly the same. The distance of two images,
    as vectors of mean 0 and length 1, is sqrt(2 - 2 correlation). No projection onto orthonormal vectors makes it
    larger, so neighbors are searched in few dimensions, and only the pixels of those that are found are compared.

    Returns:
      The pairs; None if there are too many images, or if too many of them are similar.
    """
    if len(images_NxHxWxC) > MAX_IMAGES:
        return None
    groups = same_images(images_NxHxWxC)
    unique = np.unique(groups)
    radius = np.sqrt(2 - 2 * minimum)
    features, usable = _block_features(images_NxHxWxC)
    unique = unique[usable[unique]]
    components = _principal_components(features[unique], DIMENSIONS[-1])
    for dimensions in DIMENSIONS:
        tree = scipy.spatial.cKDTree(components[:, :dimensions])
        sample = components[:: max(1, len(unique) // SAMPLES), :dimensions]
        neighbors = tree.query_ball_point(sample, radius, return_length=True).sum() - len(sample)
        if neighbors / max(1, len(sample)) * len(unique) / 2 <= MAX_CANDIDATES:
            candidates = tree.query_pairs(radius, output_type='ndarray')
            near = _squared_distances(components, candidates) <= radius**2 * (1 + 1e-5)  # in all of the dimensions
            pairs = unique[candidates[near]]
            correlation = _correlations(images_NxHxWxC, pairs)
            order = np.argsort(-correlation, kind='stable')[: np.count_nonzero(correlation >= minimum)]
            return _with_copies(Pairs(pairs[order], correlation[order]), groups)
    return None


def _with_copies(pairs: Pairs, groups_N: np.ndarray) -> Pairs | None:
    """Returns the pairs of all images with the same pixels as those of `pairs`, which are the first of their groups.

    None if there are more than `MAX_PAIRS`.
    """
    order = np.argsort(groups_N, kind='stable')
    starts, ends = (np.searchsorted(groups_N[order], pairs.indices, side=side) for side in ('left', 'right'))
    counts = (ends - starts).prod(axis=1)
    if counts.sum() > MAX_PAIRS:
        return None
    if (counts == 1).all():
        return Pairs(np.sort(pairs.indices, axis=1), pairs.correlation)
    indices = []
    for (first, second), (first_end, second_end) in zip(starts, ends, strict=True):
        members = np.meshgrid(order[first:first_end], order[second:second_end], indexing='ij')
        indices.append(np.stack([member.ravel() for member in members], axis=1))
    return Pairs(np.sort(np.concatenate(indices), axis=1), np.repeat(pairs.correlation, counts))


def outlier_scores(images_NxHxWxC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Returns how far each image is from others of its class, N.

    The score is the distance to the fifth nearest of at most 1,000 other images of the class, divided by the median of
    this distance in the class. Distances are those of the principal components of the images, normalized to the same
    brightness and contrast. The score is NaN for blank images, and in classes of fewer than 7 images.
    """
    features, usable = _block_features(images_NxHxWxC)
    components = _principal_components(features, DIMENSIONS[-1])
    scores = np.full(len(label_N), np.nan)
    for label in np.unique(label_N):
        members = np.flatnonzero((label_N == label) & usable)
        if len(members) < OUTLIER_NEIGHBORS + 2:
            continue
        chosen = np.unique(np.linspace(0, len(members) - 1, min(len(members), MAX_REFERENCES)).round().astype(int))
        distances = scipy.spatial.distance.cdist(components[members], components[members[chosen]])
        distances[chosen, np.arange(len(chosen))] = np.inf  # not an image from itself
        distance = np.partition(distances, OUTLIER_NEIGHBORS - 1, axis=1)[:, OUTLIER_NEIGHBORS - 1]
        scores[members] = distance / max(np.median(distance), 1e-9)
    return scores


def _block_features(images_NxHxWxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects images of mean 0 and length 1 onto orthonormal blocks of pixels.

    Returns:
      float32 NxF, and whether each image has such a length: whether its pixels are not all the same.
    """
    rows, columns = (_block_starts(size) for size in images_NxHxWxC.shape[1:3])
    height, width, channels = images_NxHxWxC.shape[1:]
    sizes = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))[..., None]
    count = height * width * channels
    features = np.zeros((len(images_NxHxWxC), sizes.size * channels), np.float32)
    usable = np.zeros(len(images_NxHxWxC), bool)
    chunk = max(1, CHUNK_PIXELS // count)
    for start in range(0, len(images_NxHxWxC), chunk):
        images = images_NxHxWxC[start : start + chunk].astype(np.float32)
        mean = images.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
        norm = np.sqrt(np.maximum((images.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True) - count * mean**2, 0))
        sums = np.add.reduceat(np.add.reduceat(images, rows, axis=1), columns, axis=2)
        blocks = (sums - mean * sizes) / np.sqrt(sizes) / np.maximum(norm, 1e-9)
        features[start : start + len(images)] = blocks.reshape(len(images), -1)
        usable[start : start + len(images)] = norm.ravel() > 0.5  # The pixels are integers.
    return features, usable


def _block_starts(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size, min(size, MAX_BLOCKS), endpoint=False).astype(int))


def _principal_components(features_NxF: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns the coordinates of vectors along the directions in which they vary most."""
    if not len(features_NxF):
        return features_NxF[:, :dimensions]
    centered = features_NxF - features_NxF.mean(axis=0)
    _, directions = np.linalg.eigh(centered.T @ centered)  # in ascending order
    return centered @ directions[:, ::-1][:, :dimensions]


def _squared_distances(vectors_NxD: np.ndarray, pairs_Mx2: np.ndarray) -> np.ndarray:
    """Returns the squared distance of each pair of vectors."""
    distances = [np.zeros(0, np.float32)]
    for start in range(0, len(pairs_Mx2), 2**18):
        first, second = (vectors_NxD[pairs_Mx2[start : start + 2**18, side]] for side in (0, 1))
        distances.append(((first - second) ** 2).sum(axis=1))
    return np.concatenate(distances)


def _correlations(images_NxHxWxC: np.ndarray, pairs_Mx2: np.ndarray) -> np.ndarray:
    """Returns the correlation of the pixels of each pair of images, of which none is blank."""
    correlations = []
    size = max(1, 2**24 // images_NxHxWxC[:1].size)
    for start in range(0, len(pairs_Mx2), size):
        first, second = (
            images_NxHxWxC[pairs_Mx2[start : start + size, side]].reshape(-1, images_NxHxWxC[:1].size)
            for side in (0, 1)
        )
        first, second = (pixels - pixels.mean(axis=1, keepdims=True, dtype=np.float32) for pixels in (first, second))
        products, first_squares, second_squares = (
            np.einsum('ij,ij->i', a, b, dtype=np.float64)
            for a, b in ((first, second), (first, first), (second, second))
        )
        correlations.append(products / np.sqrt(first_squares * second_squares))
    return np.concatenate([np.zeros(0), *correlations])
