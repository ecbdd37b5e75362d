"""Locks of directories that several hosts share, and systems without the locks of POSIX."""

import fcntl
import logging
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from mnist_jax.errors import UserError
from mnist_jax.workdir import directory_lock
from mnist_jax.workdir.directory_lock import DirectoryLock

OTHER_HOST = 'process 7 on elsewhere, since 2025-01-01 00:00:00\nmachine 00000000-0000-0000-0000-000000000000\n'


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / 'run'
    path.mkdir()
    return path


def write_lock(directory, contents, age=0.0):
    """Writes the lock of another process, which last renewed it `age` seconds ago."""
    path = directory / 'lock'
    path.write_text(contents)
    modified = path.stat().st_mtime - age
    os.utime(path, (modified, modified))


def lock_of_this_host(directory):
    """Returns what a process of this host writes into a lock."""
    with DirectoryLock(directory, '--workdir'):
        return (directory / 'lock').read_text()


def test_a_directory_whose_lock_another_host_renews_is_refused(directory, monkeypatch):
    """The lock of the kernel is free, as on a network file system where each host has its own locks."""
    write_lock(directory, OTHER_HOST, age=10)
    monkeypatch.setattr(time, 'sleep', lambda seconds: write_lock(directory, OTHER_HOST))
    with pytest.raises(UserError) as error, DirectoryLock(directory, '--workdir'):
        pass
    assert str(error.value) == (
        f"--workdir '{directory}' is in use by process 7 on elsewhere, since 2025-01-01 00:00:00; wait until it ends, "
        'or use another directory'
    )
    assert (directory / 'lock').read_text() == OTHER_HOST


def test_a_directory_that_another_host_releases_meanwhile_is_free(directory, monkeypatch):
    write_lock(directory, OTHER_HOST, age=10)
    monkeypatch.setattr(time, 'sleep', lambda seconds: write_lock(directory, ''))
    with DirectoryLock(directory, '--workdir'):
        pass


def test_the_lock_of_a_host_that_crashed_is_taken_over_and_that_is_logged(directory, caplog):
    write_lock(directory, OTHER_HOST, age=directory_lock.LOCK_EXPIRY_SECONDS + 1)
    with caplog.at_level(logging.WARNING), DirectoryLock(directory, '--workdir'):
        assert f'process {os.getpid()} on ' in (directory / 'lock').read_text()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        f"--workdir '{directory}' was in use by process 7 on elsewhere, since 2025-01-01 00:00:00, which has not "
        'renewed its lock for 121 seconds; taking it over'
    )
    assert (directory / 'lock').read_text() == ''


def test_the_same_command_resumes_on_another_host_after_a_crash_without_a_second_try(directory, monkeypatch, caplog):
    monkeypatch.setattr(directory_lock, 'LOCK_EXPIRY_SECONDS', 0.1)
    monkeypatch.setattr(directory_lock, 'LOCK_POLL_SECONDS', 0.01)
    write_lock(directory, OTHER_HOST)
    with caplog.at_level(logging.WARNING), DirectoryLock(directory, '--workdir'):
        assert 'taking it over' in caplog.messages[-1]


def test_the_lock_of_a_crashed_host_is_taken_over_although_the_file_server_still_has_it(directory, monkeypatch, caplog):
    monkeypatch.setattr(directory_lock, 'LOCK_EXPIRY_SECONDS', 0.1)
    monkeypatch.setattr(directory_lock, 'LOCK_POLL_SECONDS', 0.01)
    write_lock(directory, OTHER_HOST)
    with open(directory / 'lock') as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        with caplog.at_level(logging.WARNING), DirectoryLock(directory, '--workdir'):
            assert 'taking it over' in caplog.messages[-1]


def test_the_age_of_a_lock_does_not_depend_on_the_clock_of_this_host(directory, monkeypatch):
    write_lock(directory, OTHER_HOST, age=10)
    now = time.time()
    monkeypatch.setattr(time, 'time', lambda: now + 86400)
    monkeypatch.setattr(time, 'sleep', lambda seconds: write_lock(directory, OTHER_HOST))
    with pytest.raises(UserError, match='is in use by process 7 on elsewhere'), DirectoryLock(directory, 'it'):
        pass


@pytest.mark.parametrize('contents', ['', 'process 7 on elsewhere, since 2025-01-01 00:00:00'])
def test_the_lock_of_an_older_version_is_stale_if_it_is_free(directory, contents):
    write_lock(directory, contents)
    with DirectoryLock(directory, '--workdir'):
        pass


def test_the_lock_of_a_killed_process_of_this_host_is_stale_at_once(directory, caplog):
    write_lock(directory, lock_of_this_host(directory).replace(str(os.getpid()), '7'))
    with DirectoryLock(directory, '--workdir'):
        pass
    assert caplog.text == ''


def test_a_lock_is_renewed_while_it_is_held(directory, monkeypatch):
    monkeypatch.setattr(directory_lock, 'LOCK_RENEWAL_SECONDS', 0.01)
    with DirectoryLock(directory, '--workdir'):
        os.utime(directory / 'lock', (0, 0))
        deadline = time.monotonic() + 60
        while not (directory / 'lock').stat().st_mtime:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_run_whose_lock_another_host_took_over_ends_and_leaves_that_lock(directory):
    """As after a suspension, or if both hosts took the lock at the same moment."""
    with DirectoryLock(directory, '--workdir') as lock:
        lock.renew()
        write_lock(directory, OTHER_HOST)
        with pytest.raises(UserError, match=r'is in use by process 7 on elsewhere, .*; this process did not renew'):
            lock.renew()
    assert (directory / 'lock').read_text() == OTHER_HOST


WITHOUT_FCNTL = """
import sys
sys.modules['fcntl'] = None
from pathlib import Path
from mnist_jax import files
from mnist_jax.errors import UserError
from mnist_jax.workdir import directory_lock
from mnist_jax.workdir.directory_lock import DirectoryLock

directory_lock.LOCK_RENEWAL_SECONDS = directory_lock.LOCK_POLL_SECONDS = 0.05
directory = Path(sys.argv[1])
with files.locked(directory / 'prepare.lock'), DirectoryLock(directory, '--workdir'):
    try:
        DirectoryLock(directory, '--workdir').__enter__()
    except UserError as error:
        print(error)
with DirectoryLock(directory, '--workdir'):
    print('free')
"""


def test_without_fcntl_the_contents_of_the_lock_keep_a_second_run_out(directory):
    command = [sys.executable, '-c', WITHOUT_FCNTL, str(directory)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    refused, free = process.stdout.splitlines()
    assert refused.startswith(f"--workdir '{directory}' is in use by process ") and free == 'free'
    assert 'does not support locks' in process.stderr


AS_ON_WINDOWS = """
import signal, sys
sys.modules['fcntl'] = sys.modules['filelock'] = None  # filelock, which is optional, needs fcntl here
for name in ('SIGHUP', 'SIGPIPE', 'SIGKILL'):
    delattr(signal, name)
import mnist_jax.main
sys.platform = 'win32'
mnist_jax.main.main()
"""


def test_windows_is_refused_in_one_line():
    command = [sys.executable, '-c', AS_ON_WINDOWS, '--mode=summary', '--config=configs/mlp.py']
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == ''
    assert process.stderr.startswith('error: mnist_jax runs on Linux and macOS, not on Windows')
    assert process.stderr.count('\n') == 1
