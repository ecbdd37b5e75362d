"""Tests that what is prepared is what `dataset.raw_dir` names, and that its files may have other spellings."""

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import make_small

from mnist_jax.data import builder, digits, idx, idx_builders, kaggle, source
from mnist_jax.data.builder import ArrayBuilder
from mnist_jax.data.framing import Framing
from mnist_jax.errors import UserError
from mnist_jax.train import train

PACKAGED = idx_builders.MnistIdx.DIRECTORIES[0]
DASHES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
DOTS = tuple(name.replace('-idx', '.idx') for name in DASHES)
EMNIST = tuple(f'emnist-digits-{name.replace("t10k", "test")}' for name in DASHES)


def make_arrays(seed=0, train=70, test=30, largest=255):
    generator = np.random.default_rng(seed)
    arrays = []
    for count in (train, test):
        arrays += [generator.integers(0, largest + 1, (count, 28, 28)), generator.integers(0, 10, count)]
    return [array.astype(np.uint8) for array in arrays]


def write_idx(directory, arrays, names=DASHES, compress=bytes):
    directory.mkdir(exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
        suffix = '.gz' if compress is gzip.compress else ''
        (directory / f'{name}{suffix}').write_bytes(compress(header + array.tobytes()))
    return directory


def prepare(name, data_dir, raw_dir, **options):
    """Returns the prepared source."""
    prepared = source.SOURCES[name](str(data_dir), str(raw_dir), 'train', '', 'test', **options)
    prepared.data.prepare()
    return prepared


def assert_equal(prepared, arrays):
    for split, images, labels in (('train', *arrays[:2]), ('test', *arrays[2:])):
        np.testing.assert_array_equal(prepared.split(split).image[..., 0], images)
        np.testing.assert_array_equal(prepared.split(split).label, labels)


@pytest.fixture
def prepared_mnist(data_dir, tmp_path):
    """A data directory of its own in which MNIST is prepared."""
    shutil.copytree(Path(data_dir) / 'mnist_idx', tmp_path / 'data' / 'mnist_idx')
    return tmp_path / 'data'


def test_own_files_are_used_although_mnist_is_prepared(prepared_mnist, tmp_path, caplog):
    arrays = make_arrays()
    assert_equal(prepare('mnist', prepared_mnist, write_idx(tmp_path / 'raw', arrays)), arrays)
    assert f'The files in {tmp_path / "raw"} differ from the published ones of mnist;' in caplog.text
    assert prepare('mnist', prepared_mnist, '').split('train').size == 60_000


def test_changed_raw_files_are_prepared_again(tmp_path):
    for seed in (0, 1, 0):
        arrays = make_arrays(seed)
        assert_equal(prepare('mnist', tmp_path / 'data', write_idx(tmp_path / 'raw', arrays)), arrays)
    labels = write_idx(tmp_path / 'raw', [*arrays[:3], (arrays[3] + 1) % 10])
    assert_equal(prepare('mnist', tmp_path / 'data', labels), [*arrays[:3], (arrays[3] + 1) % 10])


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'kaggle_digits'])
def test_a_raw_directory_that_does_not_exist_is_an_error_although_the_data_is_prepared(prepared_mnist, tmp_path, name):
    before = sorted(prepared_mnist.rglob('*'))
    with pytest.raises(UserError) as error:
        prepare(name, prepared_mnist, tmp_path / 'nowhere')
    message = str(error.value)
    assert (
        message.startswith('config.dataset.raw_dir must be a ')
        and "nowhere'" in message
        and 'does not exist' in message
    )
    assert message.endswith(
        'if the raw files were moved after training, run the training command again with the new raw_dir'
    )
    assert sorted(prepared_mnist.rglob('*')) == before


def test_a_raw_directory_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r"raw_dir must be a directory with the raw files, got '.*', which is a file"):
        prepare('mnist', tmp_path / 'data', tmp_path / 'file')


def test_the_original_files_use_the_data_that_is_prepared_without_a_raw_directory(prepared_mnist, tmp_path):
    before = sorted(prepared_mnist.rglob('*'))
    prepare('mnist', prepared_mnist, PACKAGED)
    plain = tmp_path / 'plain'
    plain.mkdir()
    for name, dotted in zip(DASHES, DOTS, strict=True):
        (plain / dotted).write_bytes(gzip.decompress((PACKAGED / f'{name}.gz').read_bytes()))
    prepare('mnist', prepared_mnist, plain)
    assert sorted(prepared_mnist.rglob('*')) == before


def test_a_raw_directory_for_digits_is_refused(tmp_path):
    for seed in (0, 3):
        assert digits.Digits.variant(None, seed) == ''
    with pytest.raises(
        UserError, match=r"config.dataset.raw_dir must be '' for digits, which come with scikit-learn, got"
    ):
        prepare('digits', tmp_path / 'data', write_idx(tmp_path / 'raw', make_arrays()))


class OwnDataset(ArrayBuilder):
    """Images with the pixel value in a text file."""

    def _load_arrays(self, dl_manager):
        value = int((self._raw_dir / 'sub' / 'value.txt').read_text()) + self._split_seed
        arrays = np.full((5, 28, 28, 1), value, np.uint8), np.arange(5)
        return {'train': arrays, 'test': arrays}


def test_a_users_dataset_is_prepared_again_if_its_raw_files_or_the_seed_change(tmp_path):
    raw = tmp_path / 'raw'
    (raw / 'sub').mkdir(parents=True)
    for value, seed in ((7, 0), (8, 0), (8, 3), (7, 0)):
        (raw / 'sub' / 'value.txt').write_text(str(value))
        options = {'train': 'train', 'validation': '', 'test': 'test', 'split_seed': seed}
        own = source.Source('own', OwnDataset, str(tmp_path / 'data'), str(raw), **options)
        own.data.prepare()
        assert (own.split('train').image == value + seed).all()
    with pytest.raises(UserError, match=r"config.dataset.raw_dir must be readable, got '.*nowhere' \(No such file"):
        OwnDataset.variant(tmp_path / 'nowhere', 0)


def make_noisy(noise):
    class Noisy(ArrayBuilder):
        """Images whose pixels are all `noise`."""

        def _load_arrays(self, dl_manager):
            arrays = np.full((5, 28, 28, 1), noise, np.uint8), np.arange(5)
            return {'train': arrays, 'test': arrays}

    return Noisy


def test_a_dataset_with_another_value_from_outside_its_class_is_other_data(tmp_path):
    for noise in (3, 4, 3):
        with tfds.core.registered.skip_registration():
            builder = make_noisy(noise)
        own = source.Source('noisy', builder, str(tmp_path), '', train='train', validation='', test='test')
        own.data.prepare()
        assert (own.split('train').image == noise).all()
    assert len(list((tmp_path / 'noisy').glob('*/1.0.0'))) == 2


@pytest.mark.parametrize(
    ('images', 'labels', 'message'),
    [
        (
            np.zeros((3, 28, 28, 1), np.uint8),
            [0.0, 1.0, 1.7],
            'integers from 0 to 9, its classes, got float64 of shape',
        ),
        (np.zeros((3, 28, 28, 1), np.uint8), [0, 1, -1], 'must be integers from 0 to 9, its classes, got -1 to 1'),
        (np.zeros((3, 28, 28, 1), np.uint8), [0, 1, 10], 'must be integers from 0 to 9, its classes, got 0 to 10'),
        (np.full((3, 28, 28, 1), 200, np.uint8), [0, 1, 2], 'must be at most 15, got 200'),
        (np.zeros((3, 28, 28), np.uint8), [0, 1, 2], 'must be uint8 of shape (3, 28, 28, 1), one for each label, got'),
        (np.zeros((3, 28, 28, 1)), [0, 1, 2], 'got float64 of shape (3, 28, 28, 1)'),
        (np.zeros((3, 28, 28, 1), np.uint8), [0, 1], 'must be uint8 of shape (2, 28, 28, 1), one for each label, got'),
    ],
)
def test_arrays_that_no_model_can_learn_from_are_refused(tmp_path, images, labels, message):
    with tfds.core.registered.skip_registration():

        class Wrong(ArrayBuilder):
            """A dataset that is wrong."""

            MAX_PIXEL = 15

            def _load_arrays(self, dl_manager):
                return {'train': (images, labels), 'test': (images, labels)}

    own = source.Source('wrong', Wrong, str(tmp_path), '', train='train', validation='', test='test')
    with pytest.raises(UserError, match=re.escape(message)):
        own.data.prepare()
    assert not list(tmp_path.glob('wrong/*/1.0.0'))


@pytest.mark.parametrize('compress', [bytes, gzip.compress])
@pytest.mark.parametrize('names', [DOTS, tuple(name.replace('t10k', 'test') for name in DASHES)])
def test_idx_files_with_dots_in_their_names_are_read(tmp_path, names, compress):
    arrays = make_arrays()
    assert_equal(prepare('mnist', tmp_path / 'data', write_idx(tmp_path / 'raw', arrays, names, compress)), arrays)


@pytest.mark.parametrize('compress', [bytes, gzip.compress])
def test_emnist_files_are_read_and_their_transposed_images_are_set_upright(tmp_path, compress):
    images, labels, *test = make_arrays()
    raw = write_idx(tmp_path / 'raw', [images, labels, *test], EMNIST, compress)
    upright = [images.swapaxes(1, 2), labels, test[0].swapaxes(1, 2), test[1]]
    prepared = prepare('mnist', tmp_path / 'data', raw)
    assert_equal(prepared, upright)
    assert prepared.description.framing == Framing(24, False)
    # The same contents under MNIST's names are not transposed.
    same = write_idx(tmp_path / 'same', [images, labels, *test])
    prepared = prepare('mnist', tmp_path / 'data', same)
    assert_equal(prepared, [images, labels, *test])
    assert prepared.description.framing == Framing(20, True)


def test_emnist_letters_are_refused_because_of_their_classes(tmp_path):
    arrays = make_arrays()
    arrays[1] = (np.arange(70) % 26 + 1).astype(np.uint8)
    names = [name.replace('digits', 'letters') for name in EMNIST]
    with pytest.raises(UserError) as error:
        prepare('mnist', tmp_path / 'data', write_idx(tmp_path / 'raw', arrays, names))
    assert str(error.value) == (
        f"raw file '{tmp_path}/raw/emnist-letters-train-labels-idx1-ubyte' must have labels from 0 to 9, the 10 "
        "classes of this dataset, got 10 at index 9 and labels from 1 to 26 in all; of EMNIST, only 'digits' and "
        "'mnist' have these classes"
    )


def test_a_directory_with_several_datasets_is_refused(tmp_path):
    for part in ('digits', 'letters'):
        write_idx(tmp_path / 'raw', make_arrays(), [name.replace('digits', part) for name in EMNIST])
    with pytest.raises(
        UserError, match=r'must contain the files of one dataset, got emnist-digits-..., emnist-letters-'
    ):
        prepare('mnist', tmp_path / 'data', tmp_path / 'raw')
    arrays = make_arrays(1)
    assert_equal(prepare('mnist', tmp_path / 'data', write_idx(tmp_path / 'raw', arrays)), arrays)


def test_a_missing_file_is_named_as_the_others_are(tmp_path):
    for names in (DASHES, EMNIST):
        raw = write_idx(tmp_path / names[0], make_arrays(), names)
        (raw / names[3]).unlink()
        with pytest.raises(UserError) as error:
            prepare('mnist', tmp_path / 'data', raw)
        assert f'raw file {names[3]} (or {names[3]}.gz) is missing from ' in str(error.value)


def test_empty_idx_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte' must have at least one image, got none"):
        prepare('mnist', tmp_path / 'data', write_idx(tmp_path / 'raw', make_arrays(test=0)))


def test_training_images_of_zeros_and_ones_are_refused(tmp_path):
    arrays = make_arrays(largest=1)
    raw = write_idx(tmp_path / 'raw', arrays)
    with pytest.raises(UserError) as error:
        prepare('mnist', tmp_path / 'data', raw)
    assert str(error.value) == (
        f"the raw pixels of mnist_idx must be from 0 to 255, got only 0 and 1 in the split 'train' of '{raw}'; "
        'multiply them by 255'
    )
    # Test images of another range than that of the training images are worse.
    write_idx(raw, [*make_arrays()[:2], *arrays[2:]])
    with pytest.raises(UserError, match="got only 0 and 1 in the split 'test'"):
        prepare('mnist', tmp_path / 'data', raw)
    images = arrays[0][:, :, :, None].repeat(5, axis=0)
    (tmp_path / 'train.csv').write_text(kaggle.to_csv(images, np.arange(350) % 10))
    with pytest.raises(
        UserError, match=r"got only 0 and 1 in the split 'train' of '.*train.csv'; multiply them by 255"
    ):
        prepare('kaggle_digits', tmp_path / 'data', tmp_path / 'train.csv')
    assert not list(tmp_path.rglob('*.array_record*'))


@pytest.mark.parametrize(
    ('pixels', 'max_pixel', 'expected'),
    [
        ([0, 1], 255, True),
        ([1, 1], 255, True),
        ([0, 2], 255, False),
        ([0, 0], 255, False),
        ([0, 1], 1, False),
        ([0.0, 0.5], 255, True),
        ([], 255, False),
    ],
)
def test_images_that_seem_scaled(pixels, max_pixel, expected):
    assert builder.seems_scaled(np.array(pixels), max_pixel) == expected


def test_training_on_own_files_says_so_and_an_evaluation_notices_other_files(tmp_path, data_dir, caplog):
    arrays = make_arrays()
    raw = write_idx(tmp_path / 'raw', arrays)
    fields = {'dataset__raw_dir': str(raw), 'dataset__train': 'train', 'dataset__test': 'test'}
    config = make_small(str(tmp_path / 'data'), **fields, epochs=1)
    result = train(config, tmp_path / 'run')
    assert result['count'] == 30
    write_idx(raw, make_arrays(1))
    with pytest.raises(UserError, match=r"the dataset must be the one that the run in '.*/run' was started with"):
        train(config, tmp_path / 'run')
    write_idx(tmp_path / 'moved', arrays)
    moved = make_small(str(tmp_path / 'data'), **{**fields, 'dataset__raw_dir': str(tmp_path / 'moved')}, epochs=1)
    assert train(moved, tmp_path / 'run') == result


def test_plain_files_are_preferred_to_gzipped_files(tmp_path):
    for name in ('t10k-images.idx3-ubyte.gz', 't10k-images.idx3-ubyte'):
        (tmp_path / name).touch()
        assert idx.find(tmp_path, 't10k-images-idx3-ubyte') == tmp_path / name


def test_a_directory_with_two_files_for_one_array_is_refused(tmp_path):
    for first, second in (DASHES[2], DOTS[2]), (DASHES[2], DASHES[2].replace('t10k', 'test')):
        raw = tmp_path / second
        raw.mkdir()
        (raw / first).touch()
        (raw / f'{second}.gz').touch()
        message = f'must contain the files of one dataset, got both {first} and {second}.gz in '
        with pytest.raises(UserError, match=message):
            idx.find(raw, DASHES[2])


def test_refused_files_leave_no_directory_behind(tmp_path):
    data = tmp_path / 'data'
    with pytest.raises(UserError, match='must have at least one image'):
        prepare('mnist', data, write_idx(tmp_path / 'raw', [array[:0] for array in make_arrays()]))
    assert [path.name for path in (data / 'mnist_idx').iterdir()] == ['prepare.lock']
