"""A CNN on your own images, in one directory per class.

    python -m mnist_jax.main --config=configs/image_folder.py --config.dataset.raw_dir=DIRECTORY

The directory holds one directory per class, or `train` and `test` with one directory per class each. PNG, JPEG, BMP,
WebP, TIFF and GIF files are read; docs/data.md describes how images of several sizes are fitted. Without a directory
`test`, 20% of each class is drawn for testing.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the default config with images from a directory, of which a part is drawn for validation."""
    config = default_config()
    config.dataset.name = 'image_folder'
    with config.dataset.unlocked():
        config.dataset.image_size = ()  # height and width; (): the size that all images have
        config.dataset.channels = 'auto'  # 'gray', 'color', or 'auto': color if one of the files is, as WebP always is
        config.dataset.fit = 'resize'  # how images of other sizes are fitted: 'resize', 'crop' or 'pad'
        config.dataset.test_fraction = 0.2  # of each class, if there is no directory `test`
        config.dataset.skip_unreadable = False  # True: leave out files that cannot be read, with a warning
    config.dataset.validation_fraction = 0.1
    config.early_stopping.restore_best = True
    return config
