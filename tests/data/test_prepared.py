"""Tests that prepared data is complete and in order, and that damaged data is refused."""

import functools
import gzip
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from mnist_jax.data import content_digests, downloads, idx, idx_builders, source
from mnist_jax.data.records import RecordFiles
from mnist_jax.errors import UserError

PACKAGED = idx_builders.MnistIdx.DIRECTORIES[0]


def mnist(data_dir, raw_dir='', train='train', validation='', test='test'):
    return source.SOURCES['mnist'](
        data_dir=str(data_dir), raw_dir=str(raw_dir), train=train, validation=validation, test=test
    )


class TinyIdx(idx_builders.IdxBuilder):
    """Like MNIST, but with any contents."""


def tiny(data_dir, raw_dir):
    make = functools.partial(source.Source, 'tiny', TinyIdx)
    return make(data_dir=str(data_dir), raw_dir=str(raw_dir), train='train', validation='', test='test')


def write_raw(directory, train=7, test=3, labels=None, shape=(28, 28)):
    """Writes IDX files with random images, and with `labels` or, by default, random labels."""
    generator = np.random.default_rng(0)
    directory.mkdir(exist_ok=True)
    for (images_name, labels_name), count in zip(idx_builders.FILES.values(), (train, test), strict=True):
        images = generator.integers(0, 256, (count, *shape)).astype(np.uint8)
        random_labels = generator.integers(0, 10, count)
        array = np.array(random_labels if labels is None else labels, np.uint8)
        header = np.array([count, *shape], '>u4').tobytes()
        (directory / images_name).write_bytes(idx.MAGIC[3] + header + images.tobytes())
        (directory / labels_name).write_bytes(idx.MAGIC[1] + np.array([len(array)], '>u4').tobytes() + array.tobytes())


@pytest.mark.parametrize(('name', 'raw'), [('train', 'train'), ('test', 't10k')])
def test_prepared_data_equals_the_raw_files_in_order(data_dir, name, raw):
    split = mnist(data_dir).split(name)
    images = gzip.decompress((PACKAGED / f'{raw}-images-idx3-ubyte.gz').read_bytes())[16:]
    labels = gzip.decompress((PACKAGED / f'{raw}-labels-idx1-ubyte.gz').read_bytes())[8:]
    assert split.image.tobytes() == images and split.image.dtype == np.uint8
    assert split.label.astype(np.uint8).tobytes() == labels and split.label.dtype == np.int32


def test_a_process_reads_a_split_once_unless_its_files_change(tmp_path):
    write_raw(tmp_path / 'raw')
    tiny(tmp_path / 'data', tmp_path / 'raw').data.prepare()
    first, second = (tiny(tmp_path / 'data', tmp_path / 'raw').data.load('--split', 'train') for _ in range(2))
    assert np.shares_memory(second.image, first.image) and np.shares_memory(second.label, first.label)
    assert not first.image.flags.writeable and not first.label.flags.writeable
    (path,) = (tmp_path / 'data').rglob('*-train.array_record*')
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match='is damaged'):
        tiny(tmp_path / 'data', tmp_path / 'raw').data.load('--split', 'train')


def test_split_slices_are_those_of_tfds(data_dir):
    sliced = mnist(data_dir, train='train[:90%]', validation='train[90%:]', test='test[10:20]+train[:1%]')
    whole = mnist(data_dir)
    np.testing.assert_array_equal(sliced.split('train').image, whole.split('train').image[:54000])
    np.testing.assert_array_equal(sliced.split('validation').label, whole.split('train').label[54000:])
    mixed = np.concatenate([whole.split('test').label[10:20], whole.split('train').label[:600]])
    np.testing.assert_array_equal(sliced.split('test').label, mixed)
    assert 'validation' not in whole.split_names


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('trian', r"must be one of the splits test, train of mnist, or a slice .*, got 'trian'"),
        ('train[:90', r"must be one of the splits .*, got 'train\[:90'"),
        ('train[5:2:1]', r"must be one of the splits .*, got 'train\[5:2:1\]'"),
        ('', r"must be a split in TFDS's slicing notation, such as 'train\[:90%\]', got ''"),
        ('train[:x%]', r"must be one of the splits .*, got 'train\[:x%\]'"),
        ('train[:0]', r"must have at least one example, got 'train\[:0\]', which is empty"),
    ],
)
def test_an_invalid_split_is_refused(data_dir, spec, message):
    with pytest.raises(UserError, match=rf'dataset\.train {message}'):
        mnist(data_dir, train=spec).split('train')


def test_records_with_an_ambiguous_layout_are_decoded_by_tfds(tmp_path):
    # All labels are equal, so the layout of the records does not show which byte is the label.
    write_raw(tmp_path / 'raw', labels=None)
    for name, count in (('train', 7), ('t10k', 3)):
        path = tmp_path / 'raw' / f'{name}-labels-idx1-ubyte'
        path.write_bytes(path.read_bytes()[:8] + b'\x04' * count)
    dataset = tiny(tmp_path / 'data', tmp_path / 'raw')
    dataset.data.prepare()
    np.testing.assert_array_equal(dataset.split('train').label, [4] * 7)
    raw = (tmp_path / 'raw' / 'train-images-idx3-ubyte').read_bytes()[16:]
    assert dataset.split('train').image.tobytes() == raw


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'labels': [1, 2, 10]},
            'must have labels from 0 to 9, the 10 classes of this dataset, got 10 at index 2 and labels from 1 to 10',
        ),
        ({'labels': [1, 2]}, 'must have 3 labels, one per image, got 2'),
        ({'shape': (27, 28)}, 'must have images of shape (28, 28), got (27, 28)'),
    ],
)
def test_invalid_raw_files_are_refused_and_nothing_is_prepared(tmp_path, options, message):
    write_raw(tmp_path / 'raw', train=3, test=3, **options)
    with pytest.raises(UserError) as error:
        tiny(tmp_path / 'data', tmp_path / 'raw').data.prepare()
    assert message in str(error.value)
    assert not list((tmp_path / 'data').rglob('*.array_record*'))


def test_original_files_with_a_wrong_digest_are_refused(tmp_path, monkeypatch):
    write_raw(tmp_path / 'raw')
    monkeypatch.setattr(idx_builders.MnistIdx, 'DIRECTORIES', (tmp_path / 'raw',))
    with pytest.raises(UserError, match='must have the SHA-256'):
        mnist(tmp_path).data.prepare()


def test_a_data_directory_that_is_not_writable_is_an_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'config.dataset.data_dir must be a directory, but .* is a file'):
        mnist(tmp_path / 'file').data.prepare()


@pytest.mark.parametrize('file', ['dataset_info.json', 'metadata.json'])
@pytest.mark.parametrize('damage', ['truncate', 'remove'])
def test_a_damaged_description_is_detected(data_dir, tmp_path, file, damage):
    shutil.copytree(Path(data_dir) / 'mnist_idx', tmp_path / 'mnist_idx')
    path = next(tmp_path.rglob(file))
    path.write_text(path.read_text()[:9]) if damage == 'truncate' else path.unlink()
    with pytest.raises(
        UserError, match=r'the prepared dataset mnist is damaged \(its metadata\): .*; delete .*mnist_idx'
    ):
        mnist(tmp_path).split('test')


def damage_test_split(data_dir, directory, damage):
    """Copies the prepared MNIST to `directory` and damages its test split."""
    shutil.copytree(Path(data_dir) / 'mnist_idx', directory / 'mnist_idx')
    path = next(directory.rglob('*test.array_record*'))
    contents = bytearray(path.read_bytes())
    if damage == 'truncate':
        path.write_bytes(contents[: len(contents) // 2])
    elif damage == 'flip':
        contents[len(contents) // 3] ^= 1
        path.write_bytes(contents)
    else:
        path.unlink()


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'remove'])
def test_damaged_prepared_data_is_detected(data_dir, tmp_path, damage):
    damage_test_split(data_dir, tmp_path, damage)
    with pytest.raises(
        UserError, match=r"the prepared dataset mnist is damaged \(split 'test'\): .*; delete .*mnist_idx"
    ):
        mnist(tmp_path).split('test')


def test_a_stream_has_the_same_examples_as_a_split_in_memory(data_dir):
    spec = 'test[10:20]+train[:600]+train[:0]+test[-5:]'
    split = mnist(data_dir).data.load('--split', spec)
    stream = mnist(data_dir).data.stream('--split', spec)
    indices = np.random.default_rng(0).permutation(615)
    assert stream.size == split.size == 615
    for subset in (indices, indices[:0], slice(5, 300)):
        taken, expected = stream.take(subset), split.take(subset)
        np.testing.assert_array_equal(taken.image, expected.image)
        np.testing.assert_array_equal(taken.label, expected.label)
        assert (taken.image.dtype, taken.label.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(stream.label, split.label)
    assert stream.sha256 == split.sha256
    part = stream.subset(np.array([612, 3, 11]))
    np.testing.assert_array_equal(part.take(np.array([1, 0])).image, split.image[[3, 612]])
    assert part.size == 3 and part.sha256 == split.take(np.array([612, 3, 11])).sha256


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'remove'])
def test_damage_is_detected_when_a_stream_is_read(data_dir, tmp_path, damage):
    damage_test_split(data_dir, tmp_path, damage)
    with pytest.raises(
        UserError, match=r"the prepared dataset mnist is damaged \(split 'test'\): .*; delete .*mnist_idx"
    ):
        stream = mnist(tmp_path).data.stream('dataset.test', 'test')
        for start in range(0, 10_000, 1000):
            stream.take(np.arange(start, start + 1000))


def test_streamed_data_must_have_the_digest_stored_with_it(tmp_path):
    paths = []
    for name, labels in (('a', None), ('b', [1] * 3)):
        write_raw(tmp_path / name, train=3, test=3, labels=labels)
        tiny(tmp_path / f'data_{name}', tmp_path / name).data.prepare()
        paths += (tmp_path / f'data_{name}').rglob('*-train.array_record*')
    tiny(tmp_path / 'data_a', tmp_path / 'a').data.stream('--split', 'train')
    shutil.copyfile(paths[1], paths[0])  # a valid file with other contents
    with pytest.raises(UserError, match=r"damaged \(split 'train'\): its contents do not match the SHA-256"):
        tiny(tmp_path / 'data_a', tmp_path / 'a').data.stream('--split', 'train')


def test_unchanged_streamed_data_is_checked_once(tmp_path, monkeypatch):
    write_raw(tmp_path / 'raw')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(content_digests, 'SETTLED_SECONDS', -60.0)
    reads = []
    read = RecordFiles.read
    monkeypatch.setattr(RecordFiles, 'read', lambda self, indices: reads.append(len(indices)) or read(self, indices))
    for _ in range(2):
        dataset = tiny(tmp_path / 'data', tmp_path / 'raw').data
        dataset.prepare()
        dataset.stream('--split', 'train[:3]+train[4:]')
    assert reads == [7]


PREPARE = """
import sys
from mnist_jax.data.source import SOURCES

SOURCES['mnist'](data_dir=sys.argv[1], raw_dir='', train='train', validation='', test='test').data.prepare()
"""

PREPARE_AND_DIE = """
import os, signal, sys
from mnist_jax.data.idx_builders import MnistIdx
from mnist_jax.data.source import Source


class KilledIdx(MnistIdx, skip_registration=True):
    name = 'mnist_idx'

    def _generate_examples(self, images, labels):
        for index, example in super()._generate_examples(images, labels):
            if index == 1000:
                os.kill(os.getpid(), signal.SIGKILL)
            yield index, example


Source('mnist', KilledIdx, sys.argv[1], '', 'train', '', 'test').data.prepare()
"""


def test_two_processes_prepare_the_data_together_after_another_was_killed(tmp_path):
    def start(program):
        return subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], cwd=ROOT)

    assert start(PREPARE_AND_DIE).wait() == -signal.SIGKILL
    assert list(tmp_path.glob('mnist_idx/incomplete.*')) and not (tmp_path / 'mnist_idx' / '1.0.0').exists()
    both = [start(PREPARE), start(PREPARE)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(mnist(tmp_path).split('train').label) == 60_000
    assert not list(tmp_path.glob('mnist_idx/incomplete.*'))


def test_a_host_that_does_not_answer_is_an_error_before_the_download_starts(tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}'
        monkeypatch.setattr(idx_builders.FashionMnistIdx, 'URL', url)
        monkeypatch.setattr(idx_builders.FashionMnistIdx, 'DIRECTORIES', ())
        monkeypatch.setattr(downloads, 'CONNECT_SECONDS', 0.5)
        fashion = source.SOURCES['fashion_mnist'](
            data_dir=str(tmp_path), raw_dir='', train='train', validation='', test='test'
        )
        # The download itself, which TFDS retries for minutes, would fail with another message.
        with pytest.raises(UserError, match=r'cannot be downloaded from 127.0.0.1:.*--config.dataset.raw_dir'):
            fashion.data.prepare()


def test_downloaded_files_are_checked_and_prepared(tmp_path, monkeypatch):
    write_raw(tmp_path / 'raw')
    for path in (tmp_path / 'raw').iterdir():
        path.with_name(f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    serve = [sys.executable, '-u', '-m', 'http.server', '0', '--bind', '127.0.0.1', '--directory', tmp_path / 'raw']
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            port = server.stdout.readline().split(' port ')[1].split()[0]
            monkeypatch.setattr(TinyIdx, 'URL', f'http://127.0.0.1:{port}')
            monkeypatch.setattr(downloads, 'CONNECT_SECONDS', 60.0)
            downloaded = source.Source('tiny', TinyIdx, str(tmp_path / 'data'), '', 'train', '', 'test')
            downloaded.data.prepare()
        finally:
            server.terminate()
    assert len(downloaded.split('train').label) == 7
