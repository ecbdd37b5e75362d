"""Downloads of raw files, through TFDS's download manager."""

import hashlib
import os
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.errors import UserError, first_line

CONNECT_SECONDS = 8.0  # timeout of the request that precedes a download


def download(manager: tfds.download.DownloadManager, urls: Mapping[str, str], hint: str) -> dict[str, Path]:
    """Downloads files.

    Args:
      manager: The download manager, which keeps what it has downloaded.
      urls: The addresses of the files, by any names.
      hint: The end of error messages: how else to get the files.

    Returns:
      The paths of the files by the same names.

    Raises:
      UserError: the first address does not answer, or a download fails.
    """
    first = next(iter(urls.values()))
    host = urllib.parse.urlsplit(first).netloc
    check_reachable(first, CONNECT_SECONDS, hint)
    logging.info('Downloading %s from %s', ', '.join(urls), host)
    try:
        paths = manager.download(dict(urls))
    except Exception as error:  # The download manager raises whatever its backend raises.
        raise UserError(f'the download from {host} failed ({first_line(error)}); {hint}') from None
    return {name: Path(path) for name, path in paths.items()}


def download_verified(directory: Path, url: str, digests: Mapping[str, str], hint: str) -> None:
    """Downloads the files that are missing from a directory, and checks the digests of all of them.

    Args:
      directory: Where the files are kept, under their own names.
      url: The address of the directory that they are downloaded from.
      digests: 'sha256:' or 'md5:' and the digest of each file in hexadecimal, by name.
      hint: See `download`.

    Raises:
      UserError: see `download`; or a file does not have its digest.
    """
    missing = {name: f'{url}/{name}' for name in digests if not (directory / name).is_file()}
    if missing:
        manager = tfds.download.DownloadManager(download_dir=directory / 'incomplete')
        try:
            for name, path in download(manager, missing, hint).items():
                os.replace(path, directory / name)
        finally:
            shutil.rmtree(directory / 'incomplete', ignore_errors=True)
    for name, expected in digests.items():
        algorithm = expected.partition(':')[0]
        with open(directory / name, 'rb') as file:
            digest = f'{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}'
        if digest != expected:
            raise UserError(
                f'the downloaded file {str(directory / name)!r} must have the digest {expected}, got {digest}; delete '
                'it and run again'
            )


def check_reachable(url: str, timeout: float, hint: str) -> None:
    """Raises a UserError that ends with `hint` unless `url` answers within `timeout` seconds.

    Without this check, TFDS would retry the download for minutes.
    """
    failure = [f'no answer within {timeout:g} s']

    def send_request() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=timeout):
                failure.clear()
        except urllib.error.HTTPError as error:
            failure[0] = str(error.reason)
            if error.code in (403, 405, 501):  # It answers, but not to HEAD.
                failure.clear()
        except (OSError, ValueError) as error:
            failure[0] = str(getattr(error, 'reason', error))

    # In a thread, because resolving the host name has no timeout.
    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(timeout)
    if failure:
        host = urllib.parse.urlsplit(url).netloc
        raise UserError(f'the dataset cannot be downloaded from {host} ({failure[0]}); {hint}')
