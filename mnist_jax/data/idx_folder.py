"""Images of any size and number of classes in IDX files."""

from pathlib import Path
from typing import Literal

from mnist_jax.data import idx
from mnist_jax.data.arrays import make_contents, to_images, to_labels
from mnist_jax.data.builder import Contents, OpenBuilder
from mnist_jax.data.idx_builders import FILES
from mnist_jax.errors import UserError
from mnist_jax.factory import Rate


class IdxFolder(OpenBuilder):
    """A directory with four IDX files named as those of MNIST or EMNIST, or with the two of the training images."""

    RECURSIVE = False

    @classmethod
    def read(
        cls,
        raw_dir: Path,
        split_seed: int,
        *,
        transpose: Literal['auto', 'yes', 'no'] = 'auto',
        test_fraction: Rate = 0.2,
    ) -> Contents:
        """Reads all files.

        Args:
          raw_dir: The directory.
          split_seed: Seed of the split into training and test images.
          transpose: Whether to swap rows and columns; 'auto': if the names of the files start like those of EMNIST,
            whose images are transposed.
          test_fraction: The fraction of each class to draw for testing if there are no test files.
        """
        if not raw_dir.is_dir():
            raise UserError(f'config.dataset.raw_dir must be a directory of IDX files, got the file {str(raw_dir)!r}')
        prefix = idx.find_prefix(raw_dir)
        transposed = idx.is_transposed(prefix, transpose)
        matches = (idx.NAME.fullmatch(path.name) for path in raw_dir.iterdir())
        has_test = any(match and match['prefix'] == prefix and match[2] != 'train' for match in matches)
        images, labels = {}, {}
        for split, (images_name, labels_name) in FILES.items():
            if split == 'test' and not has_test:
                continue
            paths = [idx.find(raw_dir, name, prefix) for name in (images_name, labels_name)]
            array = idx.read(paths[0], dimensions=3)
            images[split] = to_images(f'raw file {str(paths[0])!r}', array.transpose(0, 2, 1) if transposed else array)
            labels[split] = to_labels(f'raw file {str(paths[1])!r}', idx.read(paths[1], dimensions=1))
        return make_contents(raw_dir, images, labels, test_fraction, split_seed)
