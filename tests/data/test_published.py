"""Datasets that are downloaded from their publishers: small files in the same formats, and a server that has them."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import jax
import numpy as np
import pytest
import scipy.io
from conftest import ROOT
from raw_data import idx_bytes, prepare, refusal

from mnist_jax.config import load_config
from mnist_jax.data import characters, color_images, published
from mnist_jax.data.downloads import check_reachable
from mnist_jax.data.source import source_of
from mnist_jax.errors import UserError
from mnist_jax.training.plan import make_model

RANDOM = np.random.default_rng(0)
PARAMETERS = {  # trainable or not, added up by hand
    'emnist': 473_359,
    'kmnist': 468_586,
    'kuzushiji49': 473_617,
    'cifar10': 552_362,
    'cifar100': 839_044,
    'svhn_cropped': 552_362,
}


def images(count, *shape):
    return RANDOM.integers(0, 256, (count, *shape), np.uint8)


def emnist_files(variety, first=0):
    """Returns EMNIST's files with 6 training and 4 test images, and the images as they must be read."""
    files, expected = {}, {}
    for split, count in (('train', 6), ('test', 4)):
        stored = images(count, 28, 28)
        labels = np.arange(count, dtype=np.uint8) + first
        files[f'emnist-{variety}-{split}-images-idx3-ubyte.gz'] = gzip.compress(idx_bytes(stored))
        files[f'emnist-{variety}-{split}-labels-idx1-ubyte.gz'] = gzip.compress(idx_bytes(labels))
        expected[split] = stored.transpose(0, 2, 1)
    return files, expected


def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, contents in files.items():
            archive.writestr(f'gzip/{name}', contents)


def write_tar(path, files):
    with tarfile.open(path, 'w:gz') as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(f'cifar/{name}')
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))


def write_files(directory, files):
    directory.mkdir(parents=True)
    for name, contents in files.items():
        (directory / name).write_bytes(contents)
    return directory


def cifar10_files(per_file=2):
    """Returns CIFAR-10's files, and the images and labels of the training split."""
    files, pixels, labels = {'batches.meta.txt': b'airplane\nautomobile\nbird\n\n'}, [], []
    for name in [*(f'data_batch_{number}.bin' for number in range(1, 6)), 'test_batch.bin']:
        stored, numbers = images(per_file, 32, 32, 3), RANDOM.integers(0, 3, per_file).astype(np.uint8)
        # One byte for the label, then 1,024 bytes each of red, green and blue.
        files[name] = b''.join(
            bytes([number]) + b''.join(image[..., channel].tobytes() for channel in range(3))
            for image, number in zip(stored, numbers, strict=True)
        )
        pixels.append(stored)
        labels.append(numbers)
    return files, np.concatenate(pixels[:5]), np.concatenate(labels[:5])


def npz_bytes(array):
    file = io.BytesIO()
    np.savez_compressed(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ('variety', 'first', 'classes'),
    [
        ('byclass', 0, 62), ('bymerge', 0, 47), ('balanced', 0, 47), ('letters', 1, 26), ('digits', 0, 10),
        ('mnist', 0, 10),
    ],
)  # fmt: skip
def test_emnist_is_transposed_and_has_its_classes(tmp_path, variety, first, classes):
    files, expected = emnist_files(variety, first)
    write_zip(tmp_path / 'gzip.zip', {**files, **emnist_files('other')[0]})
    source = prepare('emnist', tmp_path / 'prepared', tmp_path / 'gzip.zip', variety=variety)
    assert len(source.class_names) == classes
    assert source.class_names[:2] == (('A', 'B') if variety == 'letters' else ('0', '1'))
    for split in ('train', 'test'):
        assert np.array_equal(source.split(split).image[..., 0], expected[split])
        assert source.split(split).label.tolist() == list(range(len(expected[split])))
    extracted = prepare('emnist', tmp_path / 'data', write_files(tmp_path / 'files', files), variety=variety)
    assert extracted.data.digests == source.data.digests


def test_kmnist(tmp_path):
    stored = {'train': images(5, 28, 28), 't10k': images(3, 28, 28)}
    files = {}
    for name, array in stored.items():
        files[f'{name}-images-idx3-ubyte.gz'] = gzip.compress(idx_bytes(array))
        files[f'{name}-labels-idx1-ubyte.gz'] = gzip.compress(idx_bytes(np.arange(len(array), dtype=np.uint8)))
    source = prepare('kmnist', tmp_path / 'prepared', write_files(tmp_path / 'raw', files))
    assert np.array_equal(source.split('train').image[..., 0], stored['train'])
    assert np.array_equal(source.split('test').image[..., 0], stored['t10k'])
    assert source.class_names == ('o', 'ki', 'su', 'tsu', 'na', 'ha', 'ma', 'ya', 're', 'wo')


def test_files_of_the_same_name_in_two_directories_are_refused(tmp_path):
    for name in ('kmnist', 'mnist'):
        write_files(tmp_path / 'raw' / name, dict.fromkeys(characters.KmnistIdx.FILES, b''))
    message = refusal('kmnist', tmp_path, tmp_path / 'raw')
    kmnist, mnist = (str(tmp_path / 'raw' / name) for name in ('kmnist', 'mnist'))
    assert f't10k-images-idx3-ubyte in one directory, got both {kmnist!r} and {mnist!r}' in message


def test_kuzushiji49(tmp_path):
    stored = {'train': images(50, 28, 28), 'test': images(3, 28, 28)}
    labels = {'train': np.arange(50, dtype=np.uint8) % 49, 'test': np.array([48, 7, 0], np.uint8)}
    files = {f'k49-{split}-imgs.npz': npz_bytes(array) for split, array in stored.items()}
    files |= {f'k49-{split}-labels.npz': npz_bytes(array) for split, array in labels.items()}
    source = prepare('kuzushiji49', tmp_path / 'prepared', write_files(tmp_path / 'raw', files))
    assert np.array_equal(source.split('train').image[..., 0], stored['train'])
    assert [source.class_names[label] for label in source.split('test').label] == ['mark', 'ku', 'a']
    assert len(source.class_names) == 49


def test_cifar10_is_read_from_its_archive_or_its_files(tmp_path):
    files, pixels, labels = cifar10_files()
    write_tar(tmp_path / 'cifar-10-binary.tar.gz', files)
    (tmp_path / 'cifar-10-python.tar.gz').touch()  # The Python version next to it is not read.
    source = prepare('cifar10', tmp_path / 'prepared', tmp_path)
    assert source.image_shape == (32, 32, 3)
    assert source.class_names == ('airplane', 'automobile', 'bird')
    assert np.array_equal(source.split('train').image, pixels)
    assert np.array_equal(source.split('train').label, labels)
    extracted = prepare('cifar10', tmp_path / 'prepared', write_files(tmp_path / 'raw' / 'cifar', files).parent)
    assert extracted.data.digests == source.data.digests


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    pixels = images(3, 32, 32, 3)
    rows = [bytes([1 - index % 2, index]) + pixels[index].transpose(2, 0, 1).tobytes() for index in range(3)]
    files = {
        'train.bin': b''.join(rows), 'test.bin': rows[0],
        'fine_label_names.txt': b'apple\nbear\nbee\n', 'coarse_label_names.txt': b'animals\nfruit\n',
    }  # fmt: skip
    raw = write_files(tmp_path / 'raw', files)
    fine, coarse = (prepare('cifar100', tmp_path / 'prepared', raw, labels=labels) for labels in ('fine', 'coarse'))
    assert np.array_equal(fine.split('train').image, pixels)
    assert fine.split('train').label.tolist() == [0, 1, 2]
    assert coarse.split('train').label.tolist() == [1, 0, 1]
    assert coarse.class_names == ('animals', 'fruit')


def test_svhn_has_ten_for_zero(tmp_path):
    pixels = {'train': images(4, 32, 32, 3), 'test': images(2, 32, 32, 3)}
    for split, array in pixels.items():
        labels = np.array([[10], [1], [9], [10]], np.uint8)[: len(array)]
        scipy.io.savemat(tmp_path / f'{split}_32x32.mat', {'X': array.transpose(1, 2, 3, 0), 'y': labels})
    source = prepare('svhn_cropped', tmp_path / 'prepared', tmp_path)
    assert np.array_equal(source.split('train').image, pixels['train'])
    assert source.split('train').label.tolist() == [0, 1, 9, 0]
    assert source.split('test').label.tolist() == [0, 1]


def write_wrong_size(directory):
    files, _, _ = cifar10_files()
    write_files(directory, {**files, 'test_batch.bin': files['test_batch.bin'][:-1]})


def write_damaged_tar(directory):
    write_files(directory, {'cifar-10-binary.tar.gz': gzip.compress(b'not an archive')})


def write_truncated_tar(directory):
    directory.mkdir()
    path = directory / 'cifar-10-binary.tar.gz'
    write_tar(path, cifar10_files()[0])
    path.write_bytes(path.read_bytes()[:5000])


def write_empty_part(directory):
    write_files(directory, {**cifar10_files()[0], 'data_batch_3.bin': b''})


def write_no_names(directory):
    write_files(directory, {**cifar10_files()[0], 'batches.meta.txt': b''})


def write_large_kmnist(directory):
    files = {}
    for name in ('train', 't10k'):
        files[f'{name}-images-idx3-ubyte'] = idx_bytes(images(3, 32, 32))
        files[f'{name}-labels-idx1-ubyte'] = idx_bytes(np.arange(3, dtype=np.uint8))
    write_files(directory, files)


def write_svhn(pixels, labels=((1,), (2,), (3,))):
    def write(directory):
        directory.mkdir()
        for split in ('train', 'test'):
            contents = {'X': pixels, 'y': np.array(labels, np.uint8)}
            scipy.io.savemat(directory / f'{split}_32x32.mat', contents)

    return write


def write_letters_from_zero(directory):
    write_files(directory, emnist_files('letters')[0])


def write_labels_of_other_variety(directory):
    files, _ = emnist_files('balanced', first=60)
    write_files(directory, files)


def write_unequal_emnist(directory):
    files, _ = emnist_files('balanced')
    files['emnist-balanced-test-labels-idx1-ubyte.gz'] = gzip.compress(idx_bytes(np.zeros(3, np.uint8)))
    write_files(directory, files)


@pytest.mark.parametrize(
    ('name', 'write', 'message'),
    [
        ('cifar10', lambda raw: write_files(raw, {'x': b''}), 'must contain cifar-10-binary.tar.gz, or its files, got'),
        ('cifar10', write_wrong_size, 'test_batch.bin of'),
        ('cifar10', write_damaged_tar, 'must be an archive like cifar-10-binary.tar.gz, got a damaged one or another'),
        ('cifar10', write_truncated_tar, 'must be an archive like cifar-10-binary.tar.gz, got a damaged one'),
        ('cifar10', write_empty_part, 'data_batch_3.bin of'),
        ('cifar10', write_no_names, 'batches.meta.txt of'),
        ('kmnist', write_large_kmnist, 'must have the shape (28, 28, 1), got (32, 32, 1)'),
        ('svhn_cropped', write_svhn(images(3, 32, 32, 3)), 'must have the shape 32 x 32 x 3 x N, got (3, 32, 32, 3)'),
        ('svhn_cropped', write_svhn(images(32, 32, 3, 3), [[0], [1], [2]]), 'must have labels from 1 to 10'),
        (
            'svhn_cropped',
            lambda raw: raw.write_bytes(b'x'),
            'must be the directory with test_32x32.mat, train_32x32.mat',
        ),
        ('emnist', write_letters_from_zero, 'must have labels from 1 to 26, got 0'),
        (
            'cifar10',
            lambda raw: write_files(raw, {'data_batch_1': b'', 'cifar-10-python.tar.gz': b''}),
            'test_batch.bin; it seems to have the Python version, not the binary one',
        ),
        (
            'emnist',
            lambda raw: write_files(raw, {'gzip.zip': b'PK'}),
            'must be an archive like gzip.zip, got a damaged one',
        ),
        (
            'emnist',
            lambda raw: write_files(raw, emnist_files('digits')[0]),
            'without emnist-balanced-test-images-idx3-',
        ),
        ('emnist', write_labels_of_other_variety, 'must be from 0 to 46, the numbers of its classes, got 60 to 65'),
        ('emnist', write_unequal_emnist, "the split 'test' of"),
        ('kmnist', lambda raw: write_files(raw, {'train-images-idx3-ubyte.gz': b''}), 'the files of the dataset, got'),
        (
            'svhn_cropped',
            lambda raw: write_files(raw, {'train_32x32.mat': b'no', 'test_32x32.mat': b'no'}),
            'must be a MATLAB file with the arrays X and y, got ',
        ),
        (
            'kuzushiji49',
            lambda raw: write_files(raw, dict.fromkeys(characters.Kuzushiji49Npz.FILES, b'no')),
            'must be a .npy or .npz file',
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, write, message):
    write(tmp_path / 'raw')
    options = {'variety': 'letters'} if write is write_letters_from_zero else {}
    error = refusal(name, tmp_path, tmp_path / 'raw', **options)
    assert message in error
    assert '\n' not in error


@pytest.fixture
def serve():
    """Returns a function that serves a directory on this machine, and returns its address and the paths requested."""
    servers = []

    def start(directory):
        requested = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                if self.command == 'GET':
                    requested.append(self.path)

        handler = functools.partial(Handler, directory=str(directory))
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}', requested

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def downloaded(url, contents):
    """Returns the constructor of CIFAR-10 with this address, and with the digest of these contents."""
    digest = f'sha256:{hashlib.sha256(contents).hexdigest()}'

    class SmallCifar(color_images.Cifar10Binary, skip_registration=True):
        URL = url
        FILES = {'cifar-10-binary.tar.gz': digest}

    return source_of('cifar10', SmallCifar)


def test_what_is_missing_is_downloaded_once(tmp_path, serve):
    files, pixels, _ = cifar10_files()
    (tmp_path / 'server').mkdir()
    archive = tmp_path / 'server' / 'cifar-10-binary.tar.gz'
    write_tar(archive, files)
    url, requested = serve(tmp_path / 'server')
    make_source = downloaded(url, archive.read_bytes())
    for _ in range(2):
        source = make_source(str(tmp_path / 'data'), '', 'train', '', 'test')
        source.data.prepare()
        assert np.array_equal(source.split('train').image, pixels)
    assert requested == ['/cifar-10-binary.tar.gz']
    kept = tmp_path / 'data' / 'downloads'
    assert [path.name for path in kept.rglob('*') if path.is_file()] == ['cifar-10-binary.tar.gz']


def test_a_download_with_another_digest_is_refused(tmp_path, serve):
    (tmp_path / 'server').mkdir()
    archive = tmp_path / 'server' / 'cifar-10-binary.tar.gz'
    write_tar(archive, cifar10_files()[0])
    url, _ = serve(tmp_path / 'server')
    source = downloaded(url, b'other contents')(str(tmp_path / 'data'), '', 'train', '', 'test')
    with pytest.raises(UserError, match=r'must have the digest sha256:.*, got sha256:.*; delete it and run again'):
        source.data.prepare()
    assert not list((tmp_path / 'data').rglob('dataset_info.json'))


def test_a_server_that_does_not_answer_to_head_is_reachable():
    class GetOnly(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), GetOnly) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        check_reachable(f'http://127.0.0.1:{server.server_port}/file', 20, 'a hint')
        GetOnly.do_HEAD = GetOnly.do_GET
        with pytest.raises(UserError, match=r'\(Not Found\); a hint'):
            check_reachable(f'http://127.0.0.1:{server.server_port}/file', 20, 'a hint')
        server.shutdown()
        thread.join()


def test_a_full_disk_is_not_a_damaged_archive(tmp_path, monkeypatch):
    write_tar(tmp_path / 'cifar-10-binary.tar.gz', cifar10_files()[0])

    def fill(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(published.shutil, 'copyfileobj', fill)
    with pytest.raises(OSError, match='No space left'):
        prepare('cifar10', tmp_path / 'data', tmp_path)


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    source = downloaded('http://127.0.0.1:9', b'')(str(tmp_path / 'data'), '', 'train', '', 'test')
    with pytest.raises(UserError) as error:
        source.data.prepare()
    assert str(error.value) == (
        'the dataset cannot be downloaded from 127.0.0.1:9 ([Errno 111] Connection refused); elsewhere, download '
        'http://127.0.0.1:9/cifar-10-binary.tar.gz, and set --config.dataset.raw_dir to the directory that holds it'
    )
    assert not list((tmp_path / 'data').rglob('incomplete'))


@pytest.mark.parametrize('name', PARAMETERS)
def test_the_configs_select_a_model_that_fits(name):
    config = load_config(str(ROOT / 'configs' / f'{name}.py'))
    shape, classes = ((32, 32, 3), 10) if name in ('cifar10', 'svhn_cropped') else ((28, 28, 1), 10)
    shape, classes = {'cifar100': ((32, 32, 3), 100), 'emnist': (shape, 47), 'kuzushiji49': (shape, 49)}.get(
        name, (shape, classes)
    )
    model = make_model(config.model, classes)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PARAMETERS[name]
