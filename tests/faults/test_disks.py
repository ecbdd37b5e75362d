"""Disks that are full, read-only or gone, on a small file system of the test's own (Linux's user namespaces)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import results
from harness import Program, epochs_done, undisturbed, until

FULL = 'No space left on device'


class Disk:
    """A file system of 8 MB that only processes see which enter its namespace."""

    def __init__(self, place: Path):
        self._place = place
        place.mkdir()
        mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && echo mounted && exec sleep 3600'
        command = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, str(place)]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.mounted = self._holder.stdout.readline() == 'mounted\n'
        self.enter = ('nsenter', f'--target={self._holder.pid}', '--user', '--mount', '--preserve-credentials')
        self.seen = Path(f'/proc/{self._holder.pid}/root{place}')  # from here

    def fill(self) -> None:
        """Until nothing can be written."""
        with open(self.seen / 'ballast', 'wb', buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.strerror == FULL

    def within(self, *command: str) -> None:
        """Run a command there."""
        subprocess.run([*self.enter, *command], check=True)

    def close(self) -> None:
        """Give it back."""
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path):
    if not shutil.which('unshare') or not shutil.which('nsenter'):
        pytest.skip('there is no unshare or nsenter (util-linux) on this machine')
    found = Disk(tmp_path / 'disk')
    try:
        if not found.mounted:
            pytest.skip('this machine gives no user namespace to mount a file system in')
        yield found
    finally:
        found.close()


@pytest.fixture
def program(tmp_path, data_dir, disk):
    found = Program(tmp_path, data_dir, enter=disk.enter)
    found.workdir = tmp_path / 'disk' / 'run'
    return found


def check_results(disk, data_dir):
    """The run is that to which nothing happened."""
    assert results(disk.seen / 'run') == undisturbed(data_dir)[0]


def test_a_disk_that_is_full_for_a_while(data_dir, disk, program):
    with program.started() as process:
        until(lambda: epochs_done(disk.seen / 'run') == 1, process)
        disk.fill()
        until(lambda: f'cannot be written: {FULL}' in program.said, process)
        os.unlink(disk.seen / 'ballast')
        assert process.wait(60) == 0, program.said
    assert 'Traceback' not in program.said
    check_results(disk, data_dir)


@pytest.mark.whole
def test_a_disk_that_stays_full(data_dir, disk, program):
    with program.started() as process:
        until(lambda: epochs_done(disk.seen / 'run') == 2, process)
        disk.fill()
        assert process.wait(60) == 1, program.said
    assert 'the last checkpoint, of step 50, is not written' in program.error()
    assert 'accuracy   0.' in program.said  # The result, which cannot be written either.
    assert f'metrics.csv cannot be written: {FULL}' in program.said
    os.unlink(disk.seen / 'ballast')
    assert program.run() == 0
    assert 'Going on from the checkpoint of ' in program.said
    check_results(disk, data_dir)


@pytest.mark.whole
def test_a_disk_that_is_full_at_the_begin(data_dir, disk, program):
    disk.fill()
    assert program.run() == 1
    assert FULL in program.error()
    assert not list((disk.seen / 'run').glob('checkpoints/*'))
    os.unlink(disk.seen / 'ballast')
    assert program.run() == 0, program.said
    check_results(disk, data_dir)


@pytest.mark.whole
@pytest.mark.parametrize('stays', [False, True])
def test_a_disk_that_becomes_read_only(data_dir, disk, program, stays):
    run = str(program.workdir)
    with program.started() as process:
        until(lambda: epochs_done(disk.seen / 'run') == 1, process)
        disk.within('mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', run)
        until(lambda: 'cannot be written: Read-only file system' in program.said, process)
        if not stays:
            disk.within('umount', run)
        assert process.wait(60) == int(stays), program.said
    if stays:
        assert 'the last checkpoint, of step 50, is not written' in program.error()
        disk.within('umount', run)
        assert program.run() == 0, program.said
    check_results(disk, data_dir)


@pytest.mark.whole
def test_a_workdir_that_vanishes(data_dir, disk, program):
    with program.started() as process:
        until(lambda: epochs_done(disk.seen / 'run') == 1, process)
        shutil.rmtree(disk.seen / 'run')
        assert process.wait(60) == 0, program.said
    assert 'config.json had vanished, and was written anew' in program.said
    check_results(disk, data_dir)
    (disk.seen / 'run' / 'eval.json').unlink()
    assert program.run('--mode=eval') == 0, program.said
    check_results(disk, data_dir)
