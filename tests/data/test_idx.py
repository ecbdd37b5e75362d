"""Tests that IDX files are read, and that damaged ones are refused."""

import gzip
import hashlib

import numpy as np
import pytest
from conftest import memory_limit

from mnist_jax.data import idx
from mnist_jax.errors import UserError

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
VALID = bytes.fromhex('00000803 00000002 00000003 00000004') + PIXELS.tobytes()


@pytest.mark.parametrize('contents', [VALID, gzip.compress(VALID, mtime=0)])
def test_plain_and_gzipped_files_are_read(tmp_path, contents):
    path = tmp_path / 'images'
    path.write_bytes(contents)
    array = idx.read(path, dimensions=3, sha256=hashlib.sha256(VALID).hexdigest())
    np.testing.assert_array_equal(array, PIXELS)


@pytest.mark.parametrize(
    ('contents', 'message'),
    [
        (
            b'',
            'must be an IDX file of unsigned bytes with 3 dimension(s): it must start with 00000803, got an empty file',
        ),
        (
            b'\x89PNG\r\n',
            'must be an IDX file of unsigned bytes with 3 dimension(s): it must start with 00000803, got 89504e47',
        ),
        (bytes.fromhex('00000801 00000001 05'), 'it must start with 00000803, got 00000801'),
        (VALID[:9], 'is truncated: it ends inside its header'),
        (VALID[:-1], 'must have 40 bytes, uncompressed, for the shape (2, 3, 4) in its header, got only 39'),
        (VALID + b'x', 'must have 40 bytes, uncompressed, for the shape (2, 3, 4) in its header, got more'),
        (gzip.compress(VALID, mtime=0)[:-9], 'is truncated or damaged'),
        (b'\x1f\x8bnot really', 'is truncated or damaged'),
        (VALID[:-1] + b'\xff', 'must have the SHA-256 '),
    ],
)
def test_invalid_files_are_refused(tmp_path, contents, message):
    path = tmp_path / 'images'
    path.write_bytes(contents)
    with pytest.raises(UserError) as error:
        idx.read(path, dimensions=3, sha256=hashlib.sha256(VALID).hexdigest())
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ('contents', 'message'),
    [
        (
            bytes.fromhex('00000803 ffffffff ffffffff ffffffff'),
            r'must have at most 1,073,741,824 elements, got the shape \(4294967295, 4294967295, 4294967295\)',
        ),
        (bytes.fromhex('00000803 00100000 0000001c 0000001c'), 'got only 16'),
        # A file of 200 kB that unpacks to 200 MB.
        (
            gzip.compress(VALID + bytes(200_000_000), mtime=0),
            r'must have 40 bytes, uncompressed, for the shape \(2, 3, 4\) in its header, got more',
        ),
    ],
)
def test_a_wrong_size_in_the_header_does_not_allocate_memory(tmp_path, contents, message):
    path = tmp_path / 'images'
    path.write_bytes(contents)
    with pytest.raises(UserError, match=message), memory_limit(10_000_000):
        idx.read(path, dimensions=3)


def test_a_prefix_may_contain_what_separates_the_parts_of_a_name(tmp_path):
    (tmp_path / 'my-idx-train-images.idx3-ubyte').touch()
    prefix = idx.find_prefix(tmp_path)
    assert prefix == 'my-idx-'
    assert idx.find(tmp_path, 'train-images-idx3-ubyte', prefix).name == 'my-idx-train-images.idx3-ubyte'


def test_plain_files_are_preferred_to_gzipped_files(tmp_path):
    (tmp_path / 'b.gz').touch()
    assert idx.find(tmp_path, 'b') == tmp_path / 'b.gz'
    (tmp_path / 'b').touch()
    assert idx.find(tmp_path, 'b') == tmp_path / 'b'
    with pytest.raises(UserError, match=r'raw file a \(or a.gz\) is missing'):
        idx.find(tmp_path, 'a')
