"""Prepared data: complete, in order, sliced, locked, and refused where it is damaged."""

import functools
import gzip
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mnist_jax.data import idx, idx_builders, source
from mnist_jax.errors import UserError

EMBEDDED = idx_builders.MnistIdx.DIRECTORIES[0]


def mnist(data_dir, raw_dir='', train='train', validation='', test='test'):
    return source.SOURCES['mnist'](
        data_dir=str(data_dir), raw_dir=str(raw_dir), train=train, validation=validation, test=test
    )


class TinyIdx(idx_builders.IdxBuilder):
    """Like MNIST, but of any contents."""


def tiny(data_dir, raw_dir):
    make = functools.partial(source.Source, 'tiny', TinyIdx)
    return make(data_dir=str(data_dir), raw_dir=str(raw_dir), train='train', validation='', test='test')


def write_raw(directory, train=7, test=3, labels=None, shape=(28, 28)):
    generator = np.random.default_rng(0)
    directory.mkdir(exist_ok=True)
    for (images_name, labels_name), count in zip(idx_builders.FILES.values(), (train, test), strict=True):
        images = generator.integers(0, 256, (count, *shape)).astype(np.uint8)
        found = generator.integers(0, 10, count).astype(np.uint8) if labels is None else np.array(labels, np.uint8)
        header = np.array([count, *shape], '>u4').tobytes()
        (directory / images_name).write_bytes(idx.MAGIC[3] + header + images.tobytes())
        (directory / labels_name).write_bytes(idx.MAGIC[1] + np.array([len(found)], '>u4').tobytes() + found.tobytes())


@pytest.mark.parametrize(('name', 'raw'), [('train', 'train'), ('test', 't10k')])
def test_the_prepared_data_is_the_files_in_their_order(data_dir, name, raw):
    split = mnist(data_dir).split(name)
    images = gzip.decompress((EMBEDDED / f'{raw}-images-idx3-ubyte.gz').read_bytes())[16:]
    labels = gzip.decompress((EMBEDDED / f'{raw}-labels-idx1-ubyte.gz').read_bytes())[8:]
    assert split.image.tobytes() == images and split.image.dtype == np.uint8
    assert split.label.astype(np.uint8).tobytes() == labels and split.label.dtype == np.int32


def test_slices_are_those_of_tfds(data_dir):
    found = mnist(data_dir, train='train[:90%]', validation='train[90%:]', test='test[10:20]+train[:1%]')
    whole = mnist(data_dir)
    np.testing.assert_array_equal(found.split('train').image, whole.split('train').image[:54000])
    np.testing.assert_array_equal(found.split('validation').label, whole.split('train').label[54000:])
    mixed = np.concatenate([whole.split('test').label[10:20], whole.split('train').label[:600]])
    np.testing.assert_array_equal(found.split('test').label, mixed)
    assert whole.split('validation') is None


@pytest.mark.parametrize('spec', ['trian', 'train[:90', 'train[5:2:1]', '', 'train[:x%]', 'train[:0]'])
def test_a_wrong_split_is_told(data_dir, spec):
    with pytest.raises(UserError, match=r'dataset\.train'):
        mnist(data_dir, train=spec).split('train')


def test_records_of_another_layout_are_decoded_by_tfds(tmp_path):
    # All labels alike: the label's byte cannot be told from the bytes around it.
    write_raw(tmp_path / 'raw', labels=None)
    for name, count in (('train', 7), ('t10k', 3)):
        path = tmp_path / 'raw' / f'{name}-labels-idx1-ubyte'
        path.write_bytes(path.read_bytes()[:8] + b'\x04' * count)
    found = tiny(tmp_path / 'data', tmp_path / 'raw')
    found.data.prepare()
    np.testing.assert_array_equal(found.split('train').label, [4] * 7)
    raw = (tmp_path / 'raw' / 'train-images-idx3-ubyte').read_bytes()[16:]
    assert found.split('train').image.tobytes() == raw


@pytest.mark.parametrize(
    ('wrong', 'told'),
    [
        ({'labels': [1, 2, 10]}, 'has the label 10 at 2; 0 to 9 would be right'),
        ({'labels': [1, 2]}, 'has 2 labels for 3 images'),
        ({'shape': (27, 28)}, 'has images of (27, 28), not (28, 28, 1)'),
    ],
)
def test_raw_files_that_do_not_fit_are_told_and_leave_nothing(tmp_path, wrong, told):
    write_raw(tmp_path / 'raw', train=3, test=3, **wrong)
    with pytest.raises(UserError) as error:
        tiny(tmp_path / 'data', tmp_path / 'raw').data.prepare()
    assert told in str(error.value)
    assert not list((tmp_path / 'data').rglob('*.array_record*'))


def test_a_missing_raw_directory_is_told(tmp_path):
    with pytest.raises(UserError, match=r'dataset.raw_dir .*nowhere. is no directory'):
        mnist(tmp_path, raw_dir=tmp_path / 'nowhere').data.prepare()


def test_raw_files_with_another_checksum_are_told(tmp_path):
    write_raw(tmp_path / 'raw')
    with pytest.raises(UserError, match='has the wrong checksum'):
        mnist(tmp_path, raw_dir=tmp_path / 'raw').data.prepare()


def test_a_data_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'dataset.data_dir .* is, or lies below, a file'):
        mnist(tmp_path / 'file').data.prepare()


@pytest.mark.parametrize('file', ['dataset_info.json', 'metadata.json'])
@pytest.mark.parametrize('damage', ['truncate', 'remove'])
def test_damaged_descriptions_are_told(data_dir, tmp_path, file, damage):
    shutil.copytree(Path(data_dir) / 'mnist_idx', tmp_path / 'mnist_idx')
    path = next(tmp_path.rglob(file))
    path.write_text(path.read_text()[:9]) if damage == 'truncate' else path.unlink()
    with pytest.raises(UserError, match=r'the prepared mnist is damaged, its description: .*; remove .*mnist_idx'):
        mnist(tmp_path).split('test')


def damage_test_split(data_dir, directory, damage):
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
def test_damaged_prepared_data_is_told(data_dir, tmp_path, damage):
    damage_test_split(data_dir, tmp_path, damage)
    with pytest.raises(UserError, match=r"the prepared mnist is damaged, split 'test': .*; remove .*mnist_idx"):
        mnist(tmp_path).split('test')


def test_a_stream_holds_what_memory_holds(data_dir):
    spec = 'test[10:20]+train[:600]+test[-5:]'
    whole = mnist(data_dir).data.slice('--split', spec)
    found = mnist(data_dir).data.stream('--split', spec)
    places = np.random.default_rng(0).permutation(615)
    assert found.size == whole.size == 615
    for taken, expected in ((found.take(places), whole.take(places)), (found.take(places[:0]), whole.take(places[:0]))):
        np.testing.assert_array_equal(taken.image, expected.image)
        np.testing.assert_array_equal(taken.label, expected.label)
        assert (taken.image.dtype, taken.label.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(found.label, whole.label)
    assert found.sha256 == whole.sha256
    part = found.part(np.array([612, 3, 11]))
    np.testing.assert_array_equal(part.take(np.array([1, 0])).image, whole.image[[3, 612]])
    assert part.size == 3 and part.sha256 == whole.take(np.array([612, 3, 11])).sha256


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'remove'])
def test_damage_shows_when_a_stream_is_read(data_dir, tmp_path, damage):
    damage_test_split(data_dir, tmp_path, damage)
    with pytest.raises(UserError, match=r"the prepared mnist is damaged, split 'test': .*; remove .*mnist_idx"):
        stream = mnist(tmp_path).data.stream('dataset.test', 'test')
        for start in range(0, 10_000, 1000):
            stream.take(np.arange(start, start + 1000))


PREPARE = """
import sys
from mnist_jax.data.source import SOURCES
SOURCES['mnist'](data_dir=sys.argv[1], raw_dir='', train='train', validation='', test='test').data.prepare()
"""


def test_two_at_once_and_one_killed_leave_a_good_data_set(tmp_path):
    def start():
        return subprocess.Popen([sys.executable, '-c', PREPARE, str(tmp_path)], cwd=Path(__file__).parents[2])

    killed = start()
    while not list(tmp_path.glob('mnist_idx/incomplete.*')):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(tmp_path.glob('mnist_idx/incomplete.*')) and not (tmp_path / 'mnist_idx' / '1.0.0').exists()
    both = [start(), start()]
    assert [process.wait() for process in both] == [0, 0]
    assert len(mnist(tmp_path).split('train').label) == 60_000
    assert not list(tmp_path.glob('mnist_idx/incomplete.*'))


def test_a_host_that_does_not_answer_is_told_within_seconds(tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}'
        monkeypatch.setattr(idx_builders.FashionMnistIdx, 'URL', url)
        monkeypatch.setattr(idx_builders.FashionMnistIdx, 'DIRECTORIES', ())
        monkeypatch.setattr(idx_builders, 'REACH_SECONDS', 0.5)
        fashion = source.SOURCES['fashion_mnist'](
            data_dir=str(tmp_path), raw_dir='', train='train', validation='', test='test'
        )
        began = time.monotonic()
        with pytest.raises(UserError, match=r'cannot be downloaded from 127.0.0.1:.*--config.dataset.raw_dir'):
            fashion.data.prepare()
        assert time.monotonic() - began < 5


def test_what_the_host_serves_is_downloaded_and_checked(tmp_path, monkeypatch):
    write_raw(tmp_path / 'raw')
    for path in (tmp_path / 'raw').iterdir():
        path.with_name(f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    serve = [sys.executable, '-u', '-m', 'http.server', '0', '--bind', '127.0.0.1', '--directory', tmp_path / 'raw']
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            port = server.stdout.readline().split(' port ')[1].split()[0]
            monkeypatch.setattr(TinyIdx, 'URL', f'http://127.0.0.1:{port}')
            found = source.Source('tiny', TinyIdx, str(tmp_path / 'data'), '', 'train', '', 'test')
            found.data.prepare()
        finally:
            server.terminate()
    assert len(found.split('train').label) == 7
