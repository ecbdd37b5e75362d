"""Datasets whose image shape and classes depend on their raw files: image folders, IDX, CSV, NumPy, Parquet, TFDS."""

import gzip
import hashlib
import json
import os
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_data import (
    TinyDigits,
    encode,
    idx_bytes,
    make_source,
    prepare,
    refusal,
    write_folder,
    write_parquet,
    write_tfds,
)

from mnist_jax import factory, files
from mnist_jax.config import load_module
from mnist_jax.data import arrays, content_digests, csv_tables, image_files, image_folder, tfds_folder
from mnist_jax.data.arrays import make_contents, natural_order, number_classes, to_images, to_labels
from mnist_jax.data.builder import Description, OpenBuilder
from mnist_jax.data.framing import Framing
from mnist_jax.data.source import source_of
from mnist_jax.errors import UserError

GRAY = np.arange(10 * 6 * 5, dtype=np.uint8).reshape(10, 6, 5)
COLOR = (np.arange(10 * 6 * 6 * 3, dtype=np.uint32) * 7 % 251).astype(np.uint8).reshape(10, 6, 6, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 1])


def test_all_formats_of_the_same_images_have_the_same_digests(tmp_path):
    images = np.arange(12 * 6 * 6, dtype=np.uint32).reshape(12, 6, 6).astype(np.uint8)
    labels = np.array([2, 0, 1, 0, 1, 2, 2, 1, 0, 0, 1, 2])
    parts = {'train': slice(0, 8), 'test': slice(8, 12)}
    for split, part in parts.items():
        write_folder(tmp_path / 'folder' / split, images[part], labels[part])
        mnist_name = {'train': 'train', 'test': 't10k'}[split]
        (tmp_path / 'idx').mkdir(exist_ok=True)
        (tmp_path / 'idx' / f'{mnist_name}-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx_bytes(images[part])))
        (tmp_path / 'idx' / f'{mnist_name}-labels-idx1-ubyte').write_bytes(idx_bytes(labels[part].astype(np.uint8)))
        (tmp_path / 'csv').mkdir(exist_ok=True)
        table = np.column_stack([labels[part], images[part].reshape(len(images[part]), -1)])
        np.savetxt(tmp_path / 'csv' / f'digits_{split}.csv', table, '%d', ',')
        write_parquet(tmp_path / 'parquet' / 'data' / f'{split}-00000-of-00001.parquet', images[part], labels[part])
        (tmp_path / 'npy').mkdir(exist_ok=True)
        np.save(tmp_path / 'npy' / f'{split}_images.npy', images[part])
        np.save(tmp_path / 'npy' / f'{split}_labels.npy', labels[part])
    np.savez(
        tmp_path / 'mnist.npz',
        **{f'x_{split}': images[part] for split, part in parts.items()},
        **{f'y_{split}': labels[part, None].astype(np.uint8) for split, part in parts.items()},
    )
    of_splits = ({split: array[part] for split, part in parts.items()} for array in (images[..., None], labels))
    write_tfds(tmp_path / 'tfds', *of_splits)
    raw = {'image_folder': 'folder', 'idx': 'idx', 'csv': 'csv', 'parquet': 'parquet', 'npz': 'npy', 'tfds': 'tfds'}
    sources = [prepare(name, tmp_path / 'prepared', tmp_path / path) for name, path in raw.items()]
    sources.append(prepare('npz', tmp_path / 'prepared', tmp_path / 'mnist.npz'))
    for source in sources:
        assert (source.image_shape, list(source.class_names)) == ((6, 6, 1), ['0', '1', '2']), source.name
        assert np.array_equal(source.split('train').image[..., 0], images[:8])
        assert np.array_equal(source.split('test').label, labels[8:])
        assert source.data.digests == sources[0].data.digests


def test_data_is_prepared_once_for_its_contents_and_options(tmp_path):
    raw_dir = write_folder(tmp_path / 'raw', COLOR, LABELS)
    first = prepare('image_folder', tmp_path, raw_dir)
    again = prepare('image_folder', tmp_path, raw_dir)
    assert again.data._path == first.data._path and again.data.description == first.data.description
    sized = prepare('image_folder', tmp_path, raw_dir, image_size=(4, 8), channels='gray')
    assert sized.data._path != first.data._path and sized.image_shape == (4, 8, 1)
    write_folder(raw_dir, COLOR[:1], [1], names='zzz{}')
    changed = prepare('image_folder', tmp_path, raw_dir)
    assert changed.data._path != first.data._path
    assert changed.split('train').size + changed.split('test').size == len(COLOR) + 1


def test_a_folder_without_splits_is_split_by_a_seed_with_the_same_share_of_each_class(tmp_path):
    labels = np.repeat(['cat', 'dog 2', 'dog 10'], 10)
    raw_dir = write_folder(
        tmp_path / 'raw', np.arange(30 * 16, dtype=np.uint32).astype(np.uint8).reshape(30, 4, 4), labels
    )
    sources = [prepare('image_folder', tmp_path, raw_dir, test_fraction=0.3, split_seed=seed) for seed in (0, 0, 1)]
    assert sources[0].class_names == ('cat', 'dog 2', 'dog 10')
    np.savez(
        tmp_path / 'control.npz', images=np.zeros((9, 6, 6), np.uint8), labels=np.repeat(['cat', 'a\x01b'], [4, 5])
    )
    message = refusal('npz', tmp_path, tmp_path / 'control.npz')
    assert "must have names of classes without control characters, got 'a\\x01b'" in message
    assert np.bincount(sources[0].split('test').label).tolist() == [3, 3, 3]
    digests = [source.data.digests['test'] for source in sources]
    assert digests[0] == digests[1] != digests[2]


def test_the_images_of_a_folder_are_ordered_by_name_then_class(tmp_path):
    for name, label, value in (('b', 'x', 1), ('a', 'y', 2), ('b', 'y', 3), ('a', 'x', 4)):
        write_folder(tmp_path / 'raw' / 'train', np.full((1, 2, 2), value, np.uint8), [label], names=name)
        write_folder(tmp_path / 'raw' / 'test', np.full((1, 2, 2), value, np.uint8), [label], names=name)
    source = prepare('image_folder', tmp_path, tmp_path / 'raw')
    assert source.split('train').image[:, 0, 0, 0].tolist() == [4, 2, 1, 3]
    assert source.split('train').label.tolist() == [0, 1, 0, 1]


def test_gray_images_become_colored_if_others_are(tmp_path):
    raw_dir = write_folder(tmp_path / 'raw', [*COLOR[:5], *COLOR[5:, :, :, 0]], LABELS)
    assert prepare('image_folder', tmp_path, raw_dir).image_shape == (6, 6, 3)
    assert prepare('image_folder', tmp_path, raw_dir, channels='gray').image_shape == (6, 6, 1)


def test_unreadable_files_are_listed_or_left_out(tmp_path, caplog):
    raw_dir = write_folder(tmp_path / 'raw', GRAY, LABELS)
    (raw_dir / '1' / 'broken.png').write_bytes(b'\x89PNG\r\n')
    (raw_dir / '2' / 'notes.txt').write_text('not an image')
    (raw_dir / '2' / '.DS_Store').write_bytes(b'ignored')
    message = refusal('image_folder', tmp_path, raw_dir)
    assert 'got 2 that are not' in message and 'broken.png' in message and 'notes.txt' in message
    source = prepare('image_folder', tmp_path, raw_dir, skip_unreadable=True)
    assert source.split('train').size + source.split('test').size == len(GRAY)
    assert 'broken.png' in caplog.text


def test_a_slash_in_the_name_of_a_class_is_an_underscore_in_that_of_its_directory(tmp_path):
    write_folder(tmp_path / 'raw', GRAY[:2], ['T-shirt_top', 'dress'])
    paths, labels = image_folder.labeled_files(tmp_path / 'raw', ['dress', 'T-shirt/top'])
    assert [path.parent.name for path in paths] == ['T-shirt_top', 'dress'] and labels.tolist() == [1, 0]
    (tmp_path / 'raw' / 'coat').mkdir()
    with pytest.raises(UserError, match=r"named after the classes T-shirt_top, dress, got 'coat'"):
        image_folder.labeled_files(tmp_path / 'raw', ['dress', 'T-shirt/top'])


def test_a_split_without_readable_images_is_refused(tmp_path):
    write_folder(tmp_path / 'raw' / 'train', GRAY, LABELS)
    (tmp_path / 'raw' / 'test' / '0').mkdir(parents=True)
    (tmp_path / 'raw' / 'test' / '0' / 'broken.png').write_bytes(b'\x89PNG\r\n')
    message = refusal('image_folder', tmp_path, tmp_path / 'raw', skip_unreadable=True)
    assert message.startswith("the split 'test' of") and message.endswith('readable image, got 1 that cannot be read')


def test_reading_images_in_threads_keeps_the_filters_of_warnings(tmp_path, monkeypatch):
    # The second thread starts to read before the first one ends, and ends after it.
    threads, second_reads, first_ended = [], threading.Event(), threading.Event()
    read_pixels, open_image = image_files.read_pixels, Image.open

    def open_in_turn(*arguments, **options):
        threads.append(threading.current_thread())
        if threads[0] is threading.current_thread():
            assert second_reads.wait(20)
        else:
            second_reads.set()
            assert first_ended.wait(20)
        return open_image(*arguments, **options)

    def read_in_turn(*arguments):
        pixels = read_pixels(*arguments)
        if threads[0] is threading.current_thread():
            first_ended.set()
        return pixels

    write_folder(tmp_path / 'raw', GRAY, LABELS)
    monkeypatch.setattr(image_files, 'read_pixels', read_in_turn)
    monkeypatch.setattr(Image, 'open', open_in_turn)
    before = list(warnings.filters)
    prepare('image_folder', tmp_path, tmp_path / 'raw')
    assert warnings.filters == before


def test_images_outside_the_directories_of_classes_are_a_warning(tmp_path, caplog):
    raw_dir = tmp_path / 'raw'
    write_folder(raw_dir / 'train', GRAY, LABELS)
    for directory in (raw_dir / 'train', raw_dir / 'test'):
        directory.mkdir(exist_ok=True)
        (directory / 'loose.png').write_bytes((raw_dir / 'train' / '0' / '000.png').read_bytes())
    source = prepare('image_folder', tmp_path, raw_dir)
    assert source.split('train').size + source.split('test').size == len(GRAY)
    assert f'{raw_dir / "test"} is not used as the test split: it has no images in directories of cl' in caplog.text
    assert f'Ignoring 1 images of {raw_dir / "train"} that are in no directory of a class' in caplog.text


def test_names_of_classes_must_be_utf8(tmp_path):
    raw_dir = write_folder(tmp_path / 'raw', GRAY, LABELS)
    os.rename(raw_dir / '0', os.fsencode(raw_dir) + b'/caf\xe9')
    assert r"must be UTF-8, got 'caf\udce9'" in refusal('image_folder', tmp_path, raw_dir)


def test_an_error_in_a_dataset_of_your_own_is_not_called_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, 'read_pixels', lambda *_: {}['a column'])
    raw_dir = write_folder(tmp_path / 'raw', GRAY, LABELS)
    with pytest.raises(KeyError, match='a column'):
        prepare('image_folder', tmp_path, raw_dir)


def test_images_of_other_sizes_are_fitted():
    image = np.zeros((2, 6, 1), np.uint8)
    image[:, 4:] = 255
    cropped, padded, resized = (image_files.fit_pixels(image, (2, 4), fit) for fit in ('crop', 'pad', 'resize'))
    assert cropped[..., 0].tolist() == [[0, 0, 0, 255]] * 2  # columns 1 to 4
    assert sorted((padded[..., 0] > 0).sum(1)) == [0, 2]  # scaled to 1 x 4 pixels, on black
    assert resized[..., 0].tolist() == [[0, 0, resized[0, 2, 0], 255]] * 2 and 0 < resized[0, 2, 0] < 255
    assert image_files.fit_pixels(image, (2, 6), 'crop') is image
    thin = image_files.fit_pixels(np.full((150, 2, 3), 255, np.uint8), (28, 28), 'pad')
    assert (thin[:, 14] == 255).all() and thin.sum() == 28 * 3 * 255  # one column remains


def test_images_are_read_as_they_are_shown(tmp_path):
    picture = Image.fromarray(COLOR[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned by 90 degrees.
    picture.save(tmp_path / 'turned.png', exif=exif)
    assert np.array_equal(image_files.read_pixels(tmp_path / 'turned.png'), np.rot90(COLOR[0], -1))
    transparent = np.zeros((2, 2, 4), np.uint8)
    transparent[0, 0] = (200, 0, 0, 255)
    Image.fromarray(transparent).save(tmp_path / 'transparent.png')
    pixels = image_files.read_pixels(tmp_path / 'transparent.png')
    assert pixels[0, 0].tolist() == [200, 0, 0] and (pixels[1] == 255).all()
    deep = np.array([[0, 65535], [257, 32896]], np.uint16)
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    assert image_files.read_pixels(tmp_path / 'deep.png')[..., 0].tolist() == [[0, 255], [1, 128]]
    Image.fromarray(deep).save(tmp_path / 'deep.png', transparency=257)
    assert image_files.read_pixels(tmp_path / 'deep.png')[..., 0].tolist() == [[0, 255], [255, 128]]
    Image.fromarray(np.array([[514, 771]], np.uint16)).save(tmp_path / 'dark.tiff')  # scaled like any other image
    assert image_files.read_pixels(tmp_path / 'dark.tiff')[..., 0].tolist() == [[2, 3]]
    for pixels in (np.array([[70000]], np.int32), np.array([[np.inf]], np.float32)):
        Image.fromarray(pixels).save(tmp_path / 'deeper.tiff')
        with pytest.raises(UserError, match=r"deeper.tiff' must have at most 16 bits per pixel, got 32 \(mode '[IF]'"):
            image_files.read_pixels(tmp_path / 'deeper.tiff')
    with pytest.raises(UserError, match=r"deeper.tiff' cannot be read: cannot convert float infinity"):
        image_files.read(tmp_path / 'deeper.tiff')
    Image.fromarray(COLOR[0]).quantize(8).save(tmp_path / 'palette.gif')
    assert image_files.read_pixels(tmp_path / 'palette.gif').shape == (6, 6, 3)
    Image.fromarray(GRAY[0]).convert('P').save(tmp_path / 'gray.gif')
    assert np.array_equal(image_files.read_pixels(tmp_path / 'gray.gif')[..., 0], GRAY[0])


@pytest.mark.parametrize(
    ('labels', 'names', 'numbers'),
    [
        ([0, 2, 1], ['0', '1', '2'], [0, 2, 1]),
        ([1, 3, 3], ['1', '2', '3'], [0, 2, 2]),  # EMNIST's letters start with 1.
        ([5, 9, 7], ['5', '7', '9'], [0, 2, 1]),
        ([-1, 1, 1], ['-1', '1'], [0, 1, 1]),
        ([0, 1000, 0], ['0', '1000'], [0, 1, 0]),  # There are at most 1,000 classes.
        (['b', 'a 10', 'a 9'], ['a 9', 'a 10', 'b'], [2, 1, 0]),
    ],
)
def test_classes_are_numbered(labels, names, numbers):
    class_names, numbered = number_classes({'train': to_labels('labels', np.array(labels))})
    assert class_names == names and numbered['train'].tolist() == numbers


def test_files_name_the_splits_of_their_arrays(tmp_path):
    (tmp_path / 'raw').mkdir()
    np.savez(tmp_path / 'raw' / 'train.npz', x=GRAY, y=LABELS)
    np.savez(tmp_path / 'raw' / 'test.npz', x=GRAY[:4], y=LABELS[:4])
    (tmp_path / 'one').mkdir()
    np.savez(tmp_path / 'one' / 'image_data.npz', x=GRAY, y=LABELS)
    assert prepare('npz', tmp_path, tmp_path / 'one').split('train').size < len(GRAY)
    source = prepare('npz', tmp_path, tmp_path / 'raw')
    assert np.array_equal(source.split('train').image[..., 0], GRAY)
    assert np.array_equal(source.split('test').image[..., 0], GRAY[:4])


def test_names_are_sorted_by_their_numbers_and_no_two_alike():
    names = ['b', 'a10', '1', 'a9', '01', '9' * 5000, 'a09', '1' + '0' * 5000, '2']
    expected = ['01', '1', '2', '9' * 5000, '1' + '0' * 5000, 'a09', 'a9', 'a10', 'b']
    for order in (names, names[::-1]):
        assert sorted(order, key=natural_order) == expected


def test_a_table_may_have_large_images(tmp_path, monkeypatch):
    header = ','.join(['label', *(f'pixel{number}' for number in range(200 * 200))])
    rows = '\n'.join(','.join([str(label), *[str(200 + label)] * 200 * 200]) for label in (0, 1))
    (tmp_path / 'large.csv').write_text(f'{header}\n{rows}\n')
    images, labels = csv_tables.read_open(tmp_path / 'large.csv')
    assert images.shape == (2, 200, 200, 1) and labels.tolist() == [0, 1] and images[1].min() == images[1].max() == 201
    monkeypatch.setattr(csv_tables, 'MAX_SPLIT_BYTES', 60_000)
    with pytest.raises(UserError, match=r"large.csv' must have at most 60,000 pixels, got more"):
        csv_tables.read_open(tmp_path / 'large.csv')
    monkeypatch.setattr(csv_tables, 'MAX_OPEN_LINE', 1000)
    with pytest.raises(UserError, match=r"large.csv', line 1 must have fewer than 1,000 characters"):
        csv_tables.read_open(tmp_path / 'large.csv')


def test_labels_may_be_one_hot_or_floats():
    assert to_labels('labels', np.eye(4)[[2, 0, 3]]).tolist() == [2, 0, 3]
    assert to_labels('labels', np.array([[1.0], [0.0]])).tolist() == [1, 0]
    with pytest.raises(UserError, match='fractions'):
        to_labels('labels', np.array([0.5, 1]))


def test_up_to_a_thousand_classes_are_read_fast(tmp_path, monkeypatch):
    count = 400
    labels = np.repeat(np.arange(count), 2)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 5, 5), np.uint8)
    np.savez(tmp_path / 'many.npz', x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    source = prepare('npz', tmp_path, tmp_path / 'many.npz')
    monkeypatch.setattr('mnist_jax.data.records.RecordFiles.decode', lambda *_: pytest.fail('decoded by TFDS'))
    split = source.split('train')
    assert np.array_equal(split.label, labels) and np.array_equal(split.image[..., 0], images)
    streamed = make_source('npz', tmp_path, tmp_path / 'many.npz', in_memory=False).split('train')
    some = streamed.take(np.array([799, 3, 256, 255, 0]))
    assert some.label.tolist() == labels[[799, 3, 256, 255, 0]].tolist()
    assert streamed.sha256 == split.sha256 == source.data.digests['train']


def test_labels_of_many_classes_have_different_digests(tmp_path):
    images = np.zeros((600, 2, 2), np.uint8)
    images[0] = 255
    digests = []
    for shift in (0, 256):
        labels = np.arange(600)
        labels[7] += shift
        np.savez(tmp_path / f'{shift}.npz', x_train=images, y_train=labels, x_test=images, y_test=np.arange(600))
        digests.append(prepare('npz', tmp_path, tmp_path / f'{shift}.npz').data.digests['train'])
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ('text', 'shape'),
    [
        ('label,1x1,1x2,2x1,2x2\n1,10,20,30,40\n0,1,2,3,4\n', (2, 2, 1)),
        ('1,10,20,30,40\n0,1,2,3,4\n', (2, 2, 1)),  # no header
        ('pixel3,pixel1,class,pixel2,pixel4\n30,10,1,20,40\n3,1,0,2,4\n', (2, 2, 1)),
        (',pixel0,pixel1,pixel2,pixel3,target\n0,10,20,30,40,1\n1,1,2,3,4,0\n', (2, 2, 1)),
        ('r,g,b,label\n10,20,30,1\n1,2,3,0\n', (1, 1, 3)),
    ],
)
def test_csv_files_as_they_are_handed_out(tmp_path, text, shape):
    path = tmp_path / 'images.csv'
    path.write_text(text)
    images, labels = csv_tables.read_open(path)
    size = int(np.prod(shape))
    assert images.shape == (2, *shape) and labels.tolist() == [1, 0]
    assert images.reshape(2, -1).tolist() == [[10, 20, 30, 40][:size], [1, 2, 3, 4][:size]]


def test_parquet_columns_called_image_and_label_are_preferred(tmp_path):
    rows = {
        'class': ['even', 'odd'] * 5,
        'img': [b'?'] * 10,
        'image': list(map(encode, GRAY)),
        'label': LABELS.tolist(),
    }
    (tmp_path / 'raw').mkdir()
    path = tmp_path / 'raw' / 'train.parquet'
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    assert prepare('parquet', tmp_path, tmp_path / 'raw').class_names == ('0', '1', '2')
    pyarrow.parquet.write_table(pyarrow.table(rows).slice(0, 0), path.with_name('test.parquet'))
    assert "the split 'test' of" in refusal('parquet', tmp_path, tmp_path / 'raw')
    pyarrow.parquet.write_table(pyarrow.table({**rows, 'image': [{'bytes': None, 'path': 'x\0'}] * 10}), path)
    path.with_name('test.parquet').unlink()
    assert 'must not contain a NUL character' in refusal('parquet', tmp_path, tmp_path / 'raw')
    pyarrow.parquet.write_table(pyarrow.table({**rows, 'image': [{'bytes': None, 'path': '.images/a.png'}] * 10}), path)
    assert 'must not be that of a hidden file' in refusal('parquet', tmp_path, tmp_path / 'raw')


def test_pixels_of_12_bits_in_images_of_16_bits_cause_a_warning(tmp_path, caplog):
    for label in range(2):
        (tmp_path / 'raw' / str(label)).mkdir(parents=True)
        for number in range(3):
            pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
            Image.fromarray(pixels).save(tmp_path / 'raw' / str(label) / f'{number}.png')
    prepare('image_folder', tmp_path, tmp_path / 'raw')
    assert 'has no pixel above 16 of 255' in caplog.text


def test_hugging_face_names_the_classes(tmp_path):
    features = {'label': {'names': ['zebra', 'ant', 'cat'], '_type': 'ClassLabel'}}
    metadata = {'huggingface': json.dumps({'info': {'features': features}})}
    write_parquet(tmp_path / 'raw' / 'train.parquet', GRAY, LABELS, column='img', nested=False, metadata=metadata)
    (tmp_path / 'raw' / '._train.parquet').write_bytes(bytes(20))  # macOS writes such files.
    source = prepare('parquet', tmp_path, tmp_path / 'raw')
    assert source.class_names == ('zebra', 'ant', 'cat')
    assert sorted(np.concatenate([source.split(name).label for name in ('train', 'test')])) == sorted(LABELS)


def test_the_directory_of_a_parquet_file_can_name_its_split(tmp_path):
    for path, part in (
        ('default/train/0000', slice(6)),
        ('default/train/test-0000', slice(6, 8)),
        ('default/train/test-1', [8, 9]),
    ):
        write_parquet(tmp_path / 'train' / f'{path}.parquet', GRAY[part], LABELS[part])
    source = prepare('parquet', tmp_path, tmp_path / 'train')
    assert np.array_equal(source.split('train').image[..., 0], GRAY[:6])
    assert np.array_equal(source.split('test').image[..., 0], GRAY[6:])


def test_parquet_files_in_linked_directories_are_read_and_hidden_ones_ignored(tmp_path):
    write_parquet(tmp_path / 'raw' / 'train' / '0.parquet', GRAY, LABELS)
    write_parquet(tmp_path / 'raw' / '.cache' / 'train.parquet', GRAY, LABELS)
    write_parquet(tmp_path / 'elsewhere' / '0.parquet', GRAY[:4], LABELS[:4])
    (tmp_path / 'raw' / 'test').symlink_to(tmp_path / 'elsewhere')
    source = prepare('parquet', tmp_path, tmp_path / 'raw')
    assert np.array_equal(source.split('train').image[..., 0], GRAY)
    assert np.array_equal(source.split('test').image[..., 0], GRAY[:4])


def test_a_split_in_two_directories_of_parquet_files_is_refused(tmp_path):
    write_parquet(tmp_path / 'raw' / 'data' / 'train-0.parquet', GRAY, LABELS)
    write_parquet(tmp_path / 'raw' / 'default' / 'train' / '0.parquet', GRAY, LABELS)
    assert "must contain the files of the split 'train' in one directory" in refusal(
        'parquet', tmp_path, tmp_path / 'raw'
    )


def test_of_a_plain_and_a_compressed_csv_the_plain_one_is_read(tmp_path):
    rows = ''.join(f'{label},{index},0,0,0\n' for index, label in enumerate([0, 1, 0, 1]))
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'data_train.CSV').write_text(rows)
    (tmp_path / 'raw' / 'data_train.csv.gz').write_bytes(gzip.compress(b'0,9,9,9,9\n1,9,9,9,9\n'))
    (tmp_path / 'raw' / 'data_test.csv.gz').write_bytes(gzip.compress(b'0,8,8,8,8\n'))
    source = prepare('csv', tmp_path, tmp_path / 'raw')
    assert source.split('train').image[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert source.split('test').image.ravel().tolist() == [8, 8, 8, 8]


def test_a_table_may_have_as_many_lines_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_tables, 'MAX_LINES', 3)
    (tmp_path / 'table.csv').write_text('0,1,1,1,1\n' * 3)
    assert len(csv_tables.read_open(tmp_path / 'table.csv')[0]) == 3
    (tmp_path / 'table.csv').write_text('0,1,1,1,1\n' * 4)
    with pytest.raises(UserError, match='must have at most 3 lines, got more'):
        csv_tables.read_open(tmp_path / 'table.csv')


def test_images_that_would_fill_the_memory_are_refused_while_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, 'MAX_SPLIT_BYTES', 2 * GRAY[0].size)
    write_folder(tmp_path / 'images', GRAY, LABELS)
    write_parquet(tmp_path / 'table.parquet', GRAY, LABELS)
    for name, raw_dir in (('image_folder', 'images'), ('parquet', 'table.parquet')):
        message = refusal(name, tmp_path, tmp_path / raw_dir)
        assert "at most 60 bytes of pixels, got more in the first 3 images of 'train', whose size is (6, 5)" in message


def test_raw_files_that_change_while_they_are_read_are_refused(tmp_path):
    raw = tmp_path / 'raw.txt'
    raw.write_text('1')

    with tfds.core.registered.skip_registration():

        class Changing(OpenBuilder):
            """A file that another program changes after it was read."""

            @classmethod
            def read(cls, raw_dir, split_seed):
                raw_dir.write_text('2')
                return make_contents(raw_dir, {'train': GRAY[..., None]}, {'train': LABELS}, 0.2, split_seed)

    make_changing = source_of('changing', Changing)
    data = make_changing(
        data_dir=str(tmp_path / 'data'), raw_dir=str(raw), train='train', validation='', test='test'
    ).data
    with pytest.raises(UserError, match='must not change while they are read; run again'):
        data.prepare()
    assert not list((tmp_path / 'data').rglob('*.array_record*'))


def test_the_digest_of_code_is_that_of_the_whole_class_and_does_not_depend_on_addresses(tmp_path):
    digests = []
    for number, body in enumerate(["NAMES = ['a', 'b']", "NAMES = ['b', 'a']", 'STEPS = (len,)', 'STEPS = (len,)']):
        (tmp_path / f'part{number}.py').write_text(f'class Part:\n    {body}\n')
        part = load_module(tmp_path / f'part{number}.py', f'part{number}').Part
        digests.append(factory.code_sha256([part]))
    assert digests[0] != digests[1] != digests[2] == digests[3]


def test_the_digest_of_a_class_without_source_is_that_of_its_constants():
    classes = [
        type('Typed', (), {'NAMES': names, 'STEPS': (len,), 'read': eval('lambda: 1')}) for names in ('ab', 'ba', 'ab')
    ]
    first, second, third = (factory.code_sha256([part]) for part in classes)
    assert first == third != second
    assert factory.code_sha256([type('Empty', (), {})]) == ''


def test_the_paths_in_a_parquet_file_must_lie_below_raw_dir(tmp_path):
    write_folder(tmp_path / 'raw', GRAY, LABELS)
    write_folder(tmp_path / 'outside', GRAY, LABELS)
    table = tmp_path / 'raw' / 'table.parquet'

    def write(directory):
        cells = [{'bytes': None, 'path': f'{directory}{label}/{index:03}.png'} for index, label in enumerate(LABELS)]
        pyarrow.parquet.write_table(pyarrow.table({'image': cells, 'label': LABELS}), table)

    write('')
    assert prepare('parquet', tmp_path / 'data', tmp_path / 'raw').image_shape == (6, 5, 1)
    assert "must lie below config.dataset.raw_dir, a directory, got '0/000.png'" in refusal('parquet', tmp_path, table)
    write('../outside/')
    assert "got '../outside/0/000.png'" in refusal('parquet', tmp_path, tmp_path / 'raw')


def test_tfds_keeps_the_names_and_the_order_of_the_classes(tmp_path):
    write_tfds(
        tmp_path / 'raw',
        {'train': COLOR, 'test': COLOR[:4]},
        {'train': LABELS, 'test': LABELS[:4]},
        names=('c', 'a', 'b'),
    )
    source = prepare('tfds', tmp_path, tmp_path / 'raw')
    assert source.class_names == ('c', 'a', 'b') and source.image_shape == (6, 6, 3)
    assert np.array_equal(source.split('train').image, COLOR) and np.array_equal(source.split('train').label, LABELS)


def test_additional_splits_of_tfds_may_be_too_large_or_have_no_labels(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tfds_folder, 'MAX_SPLIT_BYTES', COLOR.size)
    images = {'train': COLOR, 'test': COLOR[:5], 'extra': np.concatenate([COLOR, COLOR]), 'unlabelled': COLOR[:3]}
    labels = {'train': LABELS, 'test': LABELS[:5], 'extra': np.tile(LABELS, 2), 'unlabelled': [-1] * 3}
    write_tfds(tmp_path / 'raw', images, labels)
    assert prepare('tfds', tmp_path / 'data', tmp_path / 'raw').data.digests.keys() == {'train', 'test'}
    assert f'the split extra of {tmp_path / "raw"}: it has more than 1,080 bytes of pixels' in caplog.text
    assert 'the split unlabelled' in caplog.text and 'it has examples without a label' in caplog.text


def test_the_transposed_images_of_tfds_emnist_are_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(TinyDigits, 'name', 'emnist')
    write_tfds(tmp_path / 'raw', {'train': COLOR}, {'train': LABELS})
    prepare('tfds', tmp_path, tmp_path / 'raw')
    assert 'emnist are transposed, and own images are not; --config.dataset.name=emnist' in caplog.text


def test_a_description_survives_json():
    for framing in (None, Framing(20, True)):
        description = Description((6, 5, 3), ('a', 'b'), 16, framing, 'crop')
        assert Description.from_json(json.loads(json.dumps(description.to_json()))) == description
    with pytest.raises(ValueError, match='description of a dataset'):
        Description.from_json({'image_shape': [1, 2, 3]})


def folder_errors(raw):
    write_folder(raw / 'empty', GRAY[:3], LABELS[:3])
    (raw / 'empty' / '3').mkdir()
    write_folder(raw / 'sizes', [*GRAY[:3], GRAY[3].T], LABELS[:4])
    write_folder(raw / 'one', GRAY, [0] * 10)
    (raw / 'files').mkdir()
    Image.fromarray(GRAY[0]).save(raw / 'files' / 'a.png')
    write_folder(raw / 'no-train' / 'test', GRAY, LABELS)
    write_folder(raw / 'few', GRAY[:3], LABELS[:3])
    write_folder(raw / 'class-train' / 'Train', GRAY, LABELS)
    write_folder(raw / 'class-train', GRAY, ['bus'] * 10)
    write_folder(raw / 'pipe', GRAY, LABELS)
    os.mkfifo(raw / 'pipe' / '0' / 'pipe.png')
    os.mkfifo(raw / 'fifo')
    return {
        'empty': ({}, 'must have at least one image, got none in 3'),
        'sizes': ({}, 'config.dataset.image_size must be set'),
        'one': ({}, 'must have from 2 to 1,000 classes, got 1'),
        'files': ({}, 'must have one directory per class, got none'),
        'files/a.png': ({}, 'must be a directory with one directory per class'),
        'no-train': ({}, "must have a directory 'train'"),
        'missing': ({}, 'must exist'),
        'class-train': ({}, "or only those of classes, got 'Train' and 'bus'"),
        'pipe': ({}, 'must be a regular file'),
        'fifo': ({}, 'must be a directory or a regular file'),
        'few': ({'test_fraction': 0.1}, 'config.dataset.test_fraction must select at least one image'),
    }


def npz_errors(raw):
    raw.mkdir()
    x, y = GRAY, LABELS
    np.savez(raw / 'no-labels.npz', x_train=x)
    np.savez(raw / 'no-images.npz', y_train=y)
    np.savez(raw / 'other.npz', a=x, b=y)
    np.savez(raw / 'lengths.npz', x_train=x, y_train=y[:9])
    np.savez(raw / 'scaled.npz', x_train=x / 255, y_train=y)
    np.savez(raw / 'large.npz', x_train=x.astype(int) + 100, y_train=y)
    np.savez(raw / 'shape.npz', x_train=COLOR.transpose(0, 3, 1, 2), y_train=y)
    np.savez(raw / 'texts.npz', x_train=x.astype(str), y_train=y)
    np.savez(raw / 'twice.npz', x_train=x, train_images=x, y_train=y)
    np.savez(raw / 'shapes.npz', x_train=x, y_train=y, x_test=x[:, :5], y_test=y)
    np.savez(raw / 'fractions.npz', x_train=x, y_train=y + 0.5)
    np.savez(raw / 'test-only.npz', x_test=x, y_test=y)
    np.savez(raw / 'bytes.npz', x_train=x, y_train=np.array([b'\xff', b'\xfe'] * 5))
    np.savez(raw / 'huge.npz', x_train=x, y_train=np.array([1, 2**64 - 1] * 5, np.uint64))
    np.savez(raw / 'none.npz', x_train=x[:0], y_train=y[:0])
    with zipfile.ZipFile(raw / 'members.npz', 'w') as archive:
        archive.writestr('x_train.txt', 'images')
    (raw / 'damaged.npz').write_bytes((raw / 'twice.npz').read_bytes()[:200])
    np.save(raw / 'header.npy', x)
    header = (raw / 'header.npy').read_bytes()
    (raw / 'header.npy').write_bytes(header.replace(b'}', b'(', 1))
    np.savez(raw / 'no-pixels.npz', x_train=np.zeros((0, 64), np.uint8), y_train=y[:0])
    (raw / 'parts').mkdir()
    for part in ('part-1', 'part-2'):
        np.savez(raw / 'parts' / f'{part}.npz', x_train=x, y_train=y)
    (raw / 'text.npz').write_text('x_train')
    (raw / 'nothing').mkdir()
    np.save(raw / 'objects.npy', np.array([{}]), allow_pickle=True)
    return {
        'no-labels.npz': ({}, 'labels to match'),
        'no-images.npz': ({}, 'images to match'),
        'other.npz': ({}, 'arrays such as x_train'),
        'lengths.npz': ({}, 'one label per image, got 10 images and 9 labels'),
        'scaled.npz': ({}, 'multiply them by 255'),
        'large.npz': ({}, 'must be integers from 0 to 255'),
        'shape.npz': ({}, 'move the channels to the last axis'),
        'texts.npz': ({}, 'must hold numbers'),
        'twice.npz': ({}, 'one array of images per split'),
        'shapes.npz': ({}, 'images of one shape'),
        'fractions.npz': ({}, 'integers or texts'),
        'test-only.npz': ({}, 'arrays such as x_train'),
        'bytes.npz': ({}, 'must be texts in UTF-8'),
        'huge.npz': ({}, 'integers up to 1,000,000,000'),
        'none.npz': ({}, 'must have at least one image'),
        'damaged.npz': ({}, 'must be a .npy or .npz file'),
        'members.npz': ({}, "its member 'x_train.txt' is not an array"),
        'header.npy': ({}, 'must be a .npy or .npz file'),
        'no-pixels.npz': ({}, 'must have at least one image'),
        'parts': ({}, "must have different names, got 'x_train' twice"),
        'text.npz': ({}, 'must be a .npy or .npz file'),
        'objects.npy': ({}, 'must be a .npy or .npz file'),
        'nothing': ({}, 'must contain .npy or .npz files'),
    }


def csv_errors(raw):
    texts = {
        'text-labels.csv': ('label,p0,p1,p2,p3\ncat,1,2,3,4\n', 'line 2, column label must be an integer'),
        'no-label.csv': ('a,b,c,d,e\n0,1,2,3,4\n', 'one column is called'),
        'two-labels.csv': ('label,class,p0,p1,p2,p3\n0,0,1,2,3,4\n', 'got 2 such columns'),
        'not-square.csv': ('label,p0,p1,p2,p3,p4\n0,1,2,3,4,5\n', 'square images, gray or colored'),
        'only-label.csv': ('label\n0\n', 'square images'),
        'repeated.csv': ('label,p0,p1,p1,p3\n0,1,2,3,4\n', "got 'p1' twice"),
        'gap.csv': ('label,p0,p1,p3,p4\n0,1,2,3,4\n', "numbered without gaps, got 'p3' after 'p1'"),
        'pixel.csv': ('label,p0,p1,p2,p3\n0,1,2,3,256\n', 'line 2, column p3 must be an integer from 0 to 255'),
        'short.csv': ('label,p0,p1,p2,p3\n0,1,2,3,4\n1,2\n', 'line 3 must have 5 columns'),
        'header.csv': ('label,p0,p1,p2,p3\n', 'one line per image after its header, got none'),
        'empty.csv': ('', 'one column is called'),
        'pandas.csv': (','.join(map(str, range(17))) + '\n' + ','.join('1' * 17) + '\n', 'got 0 such columns'),
    }
    raw.mkdir()
    for name, (text, _) in texts.items():
        (raw / name).write_text(text)
    (raw / 'names').mkdir()
    for name in ('a_train.csv', 'b.csv'):
        (raw / 'names' / name).write_text('0,1\n1,2\n')
    (raw / 'cut.csv.gz').write_bytes(gzip.compress(b'label,p0\n0,1\n' * 99)[:-20])
    (raw / 'nothing').mkdir()
    for split, size in (('train', 4), ('test', 9)):
        (raw / 'sizes').mkdir(exist_ok=True)
        row = ','.join(['0'] * (size + 1))
        (raw / 'sizes' / f'{split}.csv').write_text(f'{row}\n{row.replace("0", "1", 1)}\n')
    return {name: ({}, message) for name, (_, message) in texts.items()} | {
        'cut.csv.gz': ({}, 'truncated or damaged'),
        'names': ({}, "or none of them, got 'b.csv'"),
        'nothing': ({}, 'must contain CSV files'),
        'sizes': ({}, 'images of one shape'),
    }


def idx_errors(raw):
    def write(name, images, labels, split='train'):
        (raw / name).mkdir(parents=True, exist_ok=True)
        (raw / name / f'{split}-images-idx3-ubyte').write_bytes(images)
        if labels is not None:
            (raw / name / f'{split}-labels-idx1-ubyte').write_bytes(labels)

    images, labels = idx_bytes(GRAY), idx_bytes(LABELS.astype(np.uint8))
    write('cut', images[:-1], labels)
    write('no-labels', images, None)
    write('lengths', images, idx_bytes(LABELS[:9].astype(np.uint8)))
    write('swapped', labels, images)
    write('shapes', images, labels)
    write('shapes', idx_bytes(GRAY[:, :5]), labels, 't10k')
    write('test-only', images, labels, 't10k')
    write('file', images, labels)
    (raw / 'nothing').mkdir()
    return {
        'cut': ({}, 'uncompressed'),
        'no-labels': ({}, 'is missing'),
        'lengths': ({}, 'got 10 images and 9 labels'),
        'swapped': ({}, 'must be an IDX file'),
        'shapes': ({}, 'images of one shape'),
        'test-only': ({}, 'is missing'),
        'nothing': ({}, 'is missing'),
        'file/train-images-idx3-ubyte': ({}, 'must be a directory of IDX files'),
    }


def parquet_errors(raw):

    write_parquet(raw / 'column.parquet', GRAY, LABELS, column='picture')
    write_parquet(raw / 'sizes.parquet', [*GRAY[:9], GRAY[9].T], LABELS)
    pyarrow.parquet.write_table(pyarrow.table({'image': [1, 2], 'label': [0, 1]}), raw / 'numbers.parquet')
    pyarrow.parquet.write_table(pyarrow.table({'image': [b'no image'], 'label': [0]}), raw / 'bytes.parquet')
    pyarrow.parquet.write_table(pyarrow.table({'image': [None, None], 'label': [0, 1]}), raw / 'null.parquet')
    for name, labels in {'lists': [[1, 2], [1]], 'missing': [1, None]}.items():
        cells = [encode(image) for image in GRAY[:2]]
        pyarrow.parquet.write_table(pyarrow.table({'image': cells, 'label': labels}), raw / f'{name}.parquet')
    (raw / 'cut.parquet').write_bytes((raw / 'sizes.parquet').read_bytes()[:-50])
    for split, classes in (('train', ['a', 'b', 'c']), ('test', ['a', 'c', 'b'])):
        features = {'label': {'names': classes}}
        metadata = {'huggingface': json.dumps({'info': {'features': features}})}
        write_parquet(raw / 'names' / f'{split}.parquet', GRAY, LABELS, metadata=metadata)
    (raw / 'nothing').mkdir()
    return {
        'column.parquet': ({}, 'config.dataset.image_column must be a column of'),
        'sizes.parquet': ({}, 'config.dataset.image_size must be set'),
        'numbers.parquet': ({}, 'must be the bytes of an image file, got int'),
        'bytes.parquet': ({}, 'the image in row 0'),
        'null.parquet': ({}, 'must be the bytes of an image file, got NoneType'),
        'cut.parquet': ({}, 'must be a Parquet file'),
        'lists.parquet': ({}, 'must have integers or texts, got [1, 2]'),
        'missing.parquet': ({}, 'must have integers or texts, got None'),
        'names': ({}, "must name the same classes, got a, c, b and, in 'train.parquet', a, b, c"),
        'nothing': ({}, 'must contain .parquet files'),
    }


def tfds_errors(raw):
    write_tfds(raw / 'good', {'train': COLOR}, {'train': LABELS})
    write_tfds(raw / 'riegeli', {'train': COLOR}, {'train': LABELS})
    for info in (raw / 'riegeli').rglob('dataset_info.json'):
        info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    (raw / 'nothing').mkdir()
    write_tfds(raw / 'damaged', {'train': COLOR}, {'train': LABELS})
    for path in (raw / 'damaged').rglob('*.array_record*'):
        path.write_bytes(path.read_bytes()[:100])
    return {
        'nothing': ({}, 'must be the directory of a prepared TFDS dataset'),
        'good': ({'image': 'picture'}, 'config.dataset.image must be one of the features'),
        'riegeli': ({}, 'must be prepared as array_record, got tfrecord; convert it with: tfds convert_format'),
        'damaged': ({}, 'cannot be read'),
    }


@pytest.mark.parametrize(
    ('name', 'write'),
    [
        ('image_folder', folder_errors),
        ('npz', npz_errors),
        ('csv', csv_errors),
        ('idx', idx_errors),
        ('parquet', parquet_errors),
        ('tfds', tfds_errors),
    ],
)
def test_wrong_raw_data_is_refused_in_one_line(tmp_path, name, write):
    for path, (options, expected) in write(tmp_path / 'raw').items():
        message = refusal(name, tmp_path, tmp_path / 'raw' / path, **options)
        assert expected in message and '\n' not in message, f'{path}: {message}'


def test_links_to_directories_are_followed_except_to_one_above(tmp_path):
    write_folder(tmp_path / 'elsewhere', GRAY, LABELS)
    raw = tmp_path / 'raw'
    raw.mkdir()
    for label in range(3):
        (raw / str(label)).symlink_to(tmp_path / 'elsewhere' / str(label))
    nested = tmp_path / 'elsewhere' / '0' / 'nested'
    (tmp_path / 'more').mkdir()
    Image.fromarray(COLOR[0, :, :5, 0]).save(tmp_path / 'more' / 'z.png')
    nested.symlink_to(tmp_path / 'more')
    (tmp_path / 'more' / 'loop').symlink_to(tmp_path / 'elsewhere' / '0')
    source = prepare('image_folder', tmp_path / 'prepared', raw)
    assert source.count('train') + source.count('test') == 11
    before = source.data.digests
    Image.fromarray(COLOR[1, :, :5, 0]).save(tmp_path / 'more' / 'z.png')
    assert prepare('image_folder', tmp_path / 'prepared', raw).data.digests != before


def test_a_raw_dir_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"config.dataset.raw_dir must be a directory of images: .* got ''"):
        prepare('image_folder', tmp_path, '')


def test_wrong_options_are_refused(tmp_path):
    raw_dir = write_folder(tmp_path / 'raw', GRAY, LABELS)
    for options, message in (
        ({'image_size': (4,)}, r'config.dataset.image_size must be \(\), or height and width'),
        ({'image_size': (0, 4)}, 'config.dataset.image_size'),
        ({'fit': 'stretch'}, 'config.dataset.fit must be one of'),
        ({'channels': 'rgb'}, 'config.dataset.channels must be one of'),
        ({'test_fraction': 1.0}, 'config.dataset.test_fraction'),
        ({'transpose': 'yes'}, 'config.dataset.transpose is not a field'),
    ):
        with pytest.raises(UserError, match=message):
            prepare('image_folder', tmp_path, raw_dir, **options)


def test_killed_while_preparing_leaves_nothing(tmp_path, monkeypatch):
    raw_dir = write_folder(tmp_path / 'raw', GRAY, LABELS)
    monkeypatch.setattr(image_files, 'read_pixels', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare('image_folder', tmp_path / 'prepared', raw_dir)
    monkeypatch.undo()
    assert not any(path.name.endswith('.json') for path in (tmp_path / 'prepared').rglob('*'))
    assert prepare('image_folder', tmp_path / 'prepared', raw_dir).image_shape == (6, 5, 1)


def test_a_missing_training_class_is_a_warning(tmp_path, caplog):
    np.savez(tmp_path / 'a.npz', x_train=GRAY, y_train=np.where(LABELS == 1, 0, LABELS), x_test=GRAY, y_test=LABELS)
    assert prepare('npz', tmp_path, tmp_path / 'a.npz').class_names == ('0', '1', '2')
    assert 'no training images of the classes 1' in caplog.text


def test_flat_images_are_square():
    assert to_images('images', np.zeros((2, 9))).shape == (2, 3, 3, 1)
    with pytest.raises(UserError, match='must have the shape'):
        to_images('images', np.zeros((2, 8)))
    with pytest.raises(UserError, match="must have a split 'train'"):
        make_contents('raw', {'test': GRAY}, {'test': LABELS}, 0.2, 0)


def test_many_files_are_read_once_and_again_if_one_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(content_digests, 'MANY_FILES', 5)
    monkeypatch.setattr(content_digests, 'SETTLED_SECONDS', -1.0)
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    raw_dir = write_folder(tmp_path / 'raw', GRAY, LABELS)
    expected = content_digests.raw_sha256(raw_dir)
    (cached,) = tmp_path.glob('raw-*')
    assert cached.read_text() == expected
    monkeypatch.setattr(content_digests.hashlib, 'file_digest', lambda *_: pytest.fail('read again'))
    assert content_digests.raw_sha256(raw_dir) == expected
    monkeypatch.undo()
    monkeypatch.setattr(content_digests, 'MANY_FILES', 5)
    monkeypatch.setattr(content_digests, 'SETTLED_SECONDS', -1.0)
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    cached.write_text('damaged')
    assert content_digests.raw_sha256(raw_dir) == expected and cached.read_text() == expected
    changed = raw_dir / '0' / '000.png'
    changed.write_bytes(encode(GRAY[1]))
    assert content_digests.raw_sha256(raw_dir) != expected
    monkeypatch.setattr(content_digests, 'SETTLED_SECONDS', 1000.0)
    write_folder(raw_dir, GRAY[:1], [0], names='new')
    count = len(list(tmp_path.glob('raw-*')))
    content_digests.raw_sha256(raw_dir)  # It changed a moment ago, so its digest is not kept.
    assert len(list(tmp_path.glob('raw-*'))) == count


def test_the_digest_of_raw_files_is_that_of_earlier_versions(tmp_path):
    for name in ('b', 'a/c', 'a.x', 'a/b/d'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    digest = hashlib.sha256()
    for path in sorted(filter(Path.is_file, tmp_path.rglob('*'))):
        contents = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(os.fsencode(f'{path.relative_to(tmp_path)}\0{contents}\0'))
    assert content_digests.raw_sha256(tmp_path) == digest.hexdigest()
    for name in ('.DS_Store', 'Thumbs.db', 'a/.hidden', '.git/d'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert content_digests.raw_sha256(tmp_path) == digest.hexdigest()
    top = content_digests.raw_sha256(tmp_path, recursive=False)
    (tmp_path / 'a' / 'new').write_text('new')
    assert content_digests.raw_sha256(tmp_path, recursive=False) == top
    assert content_digests.raw_sha256(tmp_path) != digest.hexdigest()
    single = hashlib.sha256(f'.\0{hashlib.sha256(b"b").hexdigest()}\0'.encode()).hexdigest()
    assert content_digests.raw_sha256(tmp_path / 'b') == single


OWN_DATASET = '''
import numpy as np
from mnist_jax.data.arrays import make_contents
from mnist_jax.data.builder import OpenBuilder
from mnist_jax.data.framing import Framing


class Own(OpenBuilder):
    """A text file with one gray level per line."""

    MAX_PIXEL = 15
    FRAMING = Framing(box_size=2, center_by_mass=False)

    @classmethod
    def read(cls, raw_dir, split_seed):
        levels = np.array(raw_dir.read_text().split(), np.uint8)
        images = np.broadcast_to(levels[:, None, None, None] + ADDED, (len(levels), 4, 4, 1))
        return make_contents(raw_dir, {'train': images}, {'train': np.arange(len(levels)) % 2}, 0.5, split_seed)
'''


def test_a_dataset_of_ones_own_is_prepared_again_if_its_code_changes(tmp_path):
    (tmp_path / 'levels.txt').write_text('1\n2\n3\n4\n')
    sources = []
    for added in (0, 0, 7):
        path = tmp_path / f'own_{added}.py'
        path.write_text(OWN_DATASET.replace('ADDED', f'np.uint8({added})'))
        with tfds.core.registered.skip_registration():  # As if each were in a process of its own.
            make_own = source_of('own', load_module(path, 'own').Own)
        fields = {'data_dir': str(tmp_path / 'data'), 'raw_dir': str(tmp_path / 'levels.txt')}
        sources.append(make_own(**fields, train='train', validation='', test='test'))
        sources[-1].data.prepare()
    levels = [
        {int(image.max()) for name in source.split_names for image in source.split(name).image} for source in sources
    ]
    assert levels == [{1, 2, 3, 4}, {1, 2, 3, 4}, {8, 9, 10, 11}]
    assert len(list((tmp_path / 'data' / 'own').glob('*/1.0.0'))) == 2
    assert sources[0].max_pixel == 15 and sources[0].data.description.framing.box_size == 2
