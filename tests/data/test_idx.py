"""IDX files, right and wrong."""

import gzip
import hashlib

import numpy as np
import pytest
from conftest import memory

from mnist_jax.data import idx
from mnist_jax.errors import UserError

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = bytes.fromhex('00000803 00000002 00000003 00000004') + PIXELS.tobytes()


@pytest.mark.parametrize('contents', [GOOD, gzip.compress(GOOD, mtime=0)])
def test_plain_and_gzipped_files_are_read(tmp_path, contents):
    path = tmp_path / 'images'
    path.write_bytes(contents)
    found = idx.read(path, dimensions=3, sha256=hashlib.sha256(GOOD).hexdigest())
    np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize(
    ('contents', 'told'),
    [
        (b'', 'is not an IDX file of unsigned bytes with 3 dimension(s): it begins with nothing'),
        (b'\x89PNG\r\n', 'is not an IDX file of unsigned bytes with 3 dimension(s): it begins with 89504e47'),
        (bytes.fromhex('00000801 00000001 05'), 'it begins with 00000801 and not with 00000803'),
        (GOOD[:9], 'is truncated: it ends within its header'),
        (GOOD[:-1], 'is truncated: 39 bytes, and its header (2, 3, 4) asks for 40'),
        (GOOD + b'x', 'is too long, and its header (2, 3, 4) asks for 40'),
        (gzip.compress(GOOD, mtime=0)[:-9], 'is truncated or damaged'),
        (b'\x1f\x8bnot really', 'is truncated or damaged'),
        (GOOD[:-1] + b'\xff', 'has the wrong checksum: sha256'),
    ],
)
def test_wrong_files_are_told(tmp_path, contents, told):
    path = tmp_path / 'images'
    path.write_bytes(contents)
    with pytest.raises(UserError) as error:
        idx.read(path, dimensions=3, sha256=hashlib.sha256(GOOD).hexdigest())
    assert told in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ('contents', 'told'),
    [
        (bytes.fromhex('00000803 ffffffff ffffffff ffffffff'), r'is too large: its header \(4294967295, 4294967295, 4'),
        (bytes.fromhex('00000803 00100000 0000001c 0000001c'), 'is truncated: 16 bytes'),
        # A file of 200 kB that unpacks to 200 MB.
        (gzip.compress(GOOD + bytes(200_000_000), mtime=0), r'is too long, and its header \(2, 3, 4\) asks for 40'),
    ],
)
def test_what_a_file_says_of_its_size_takes_no_memory(tmp_path, contents, told):
    path = tmp_path / 'images'
    path.write_bytes(contents)
    with pytest.raises(UserError, match=told), memory(10_000_000):
        idx.read(path, dimensions=3)


def test_files_are_found_plain_and_gzipped(tmp_path):
    (tmp_path / 'b.gz').touch()
    assert idx.find(tmp_path, 'b') == tmp_path / 'b.gz'
    (tmp_path / 'b').touch()
    assert idx.find(tmp_path, 'b') == tmp_path / 'b'
    with pytest.raises(UserError, match=r'raw file a \(or a.gz\) is missing'):
        idx.find(tmp_path, 'a')
