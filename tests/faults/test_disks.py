"""Disks that are full, read-only or gone, simulated by a small file system in a Linux user namespace."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import results
from harness import TIMEOUT_SECONDS, Program, resume, uninterrupted, wait_until_paused

FULL = 'No space left on device'


class Disk:
    """A file system of 8 MB that only processes in its mount namespace see."""

    def __init__(self, mount_point: Path):
        mount_point.mkdir()
        mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && echo mounted && exec sleep 3600'
        command = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, str(mount_point)]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.mounted = self._holder.stdout.readline() == 'mounted\n'
        self.enter = ('nsenter', f'--target={self._holder.pid}', '--user', '--mount', '--preserve-credentials')
        self.root = Path(f'/proc/{self._holder.pid}/root{mount_point}')  # the path from outside the namespace

    def fill(self) -> None:
        """Writes until the disk is full."""
        with open(self.root / 'ballast', 'wb', buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.strerror == FULL

    def run(self, *command: str) -> None:
        """Runs a command in the namespace."""
        subprocess.run([*self.enter, *command], check=True)

    def close(self) -> None:
        """Ends the namespace, and with it the file system."""
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path):
    if not shutil.which('unshare') or not shutil.which('nsenter'):
        pytest.skip('unshare and nsenter (util-linux) are not installed')
    disk = Disk(tmp_path / 'disk')
    try:
        if not disk.mounted:
            pytest.skip('this machine does not allow mounting a file system in a user namespace')
        yield disk
    finally:
        disk.close()


@pytest.fixture
def program(tmp_path, data_dir, disk):
    program = Program(tmp_path, data_dir, wrapper=disk.enter)
    program.workdir = tmp_path / 'disk' / 'run'
    return program


def check_results(disk, data_dir):
    """Checks that the run has the results of a run without faults."""
    assert results(disk.root / 'run') == uninterrupted(data_dir)[0]


def test_run_survives_a_disk_that_is_temporarily_full(data_dir, disk, program):
    with program.started(pause_after=(15, 35)) as process:
        wait_until_paused(process)
        disk.fill()
        resume(process)
        wait_until_paused(process)
        assert f'cannot be written: {FULL}' in program.output
        os.unlink(disk.root / 'ballast')
        resume(process)
        assert process.wait(TIMEOUT_SECONDS) == 0, program.output
    assert 'Traceback' not in program.output
    check_results(disk, data_dir)


@pytest.mark.slow_faults
def test_run_on_a_disk_that_stays_full_prints_its_result_and_can_be_resumed(data_dir, disk, program):
    with program.started(pause_after=(25,)) as process:
        wait_until_paused(process)
        disk.fill()
        resume(process)
        assert process.wait(TIMEOUT_SECONDS) == 1, program.output
    assert 'the last checkpoint, at step 50, could not be written' in program.error()
    assert 'accuracy   0.' in program.output  # The result is printed, because eval.json cannot be written either.
    assert f'metrics.csv cannot be written: {FULL}' in program.output
    os.unlink(disk.root / 'ballast')
    assert program.run() == 0
    assert 'Resuming from the checkpoint of ' in program.output
    check_results(disk, data_dir)


@pytest.mark.slow_faults
def test_run_on_a_full_disk_is_refused(data_dir, disk, program):
    disk.fill()
    assert program.run() == 1
    assert FULL in program.error()
    assert not list((disk.root / 'run').glob('checkpoints/*'))
    os.unlink(disk.root / 'ballast')
    assert program.run() == 0, program.output
    check_results(disk, data_dir)


@pytest.mark.slow_faults
@pytest.mark.parametrize('permanent', [False, True])
def test_run_survives_a_disk_that_becomes_read_only(data_dir, disk, program, permanent):
    run = str(program.workdir)
    with program.started(pause_after=(15, 35)) as process:
        wait_until_paused(process)
        disk.run('mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', run)
        resume(process)
        wait_until_paused(process)
        assert 'cannot be written: Read-only file system' in program.output
        if not permanent:
            disk.run('umount', run)
        resume(process)
        assert process.wait(TIMEOUT_SECONDS) == int(permanent), program.output
    if permanent:
        assert 'the last checkpoint, at step 50, could not be written' in program.error()
        disk.run('umount', run)
        assert program.run() == 0, program.output
    check_results(disk, data_dir)


@pytest.mark.slow_faults
def test_run_survives_the_deletion_of_its_workdir(data_dir, disk, program):
    with program.started(pause_after=(15,)) as process:
        wait_until_paused(process)
        shutil.rmtree(disk.root / 'run')
        resume(process)
        assert process.wait(TIMEOUT_SECONDS) == 0, program.output
    assert 'config.json was missing and has been rewritten' in program.output
    assert (disk.root / 'run' / 'provenance.json').exists()
    check_results(disk, data_dir)
    (disk.root / 'run' / 'eval.json').unlink()
    assert program.run('--mode=eval') == 0, program.output
    check_results(disk, data_dir)
