"""Two hosts with a cable between them: network namespaces, each with its own host name and /etc/hosts."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, environment, results
from harness import TIMEOUT_SECONDS, Program, epochs_done, uninterrupted

NAMES = ('first', 'second')
PORT = 12345
END_SECONDS = 60  # seconds within which both processes must end after a fault
MAKE_HOST = """
set -e
ip link set lo up
mount --bind "$1" /etc/hosts
hostname "$2"
shift 2
echo ready
exec sleep 86400
"""
CAN_MAKE_HOSTS = (
    all(map(shutil.which, ('ip', 'unshare', 'nsenter')))
    and subprocess.run(['unshare', '--net', '--mount', '--uts', 'ip', 'link'], capture_output=True).returncode == 0
)
pytestmark = pytest.mark.skipif(not CAN_MAKE_HOSTS, reason='network namespaces need root and the command ip')


def run(*command):
    subprocess.run(command, check=True)


class Hosts:
    """Two hosts: processes that hold the namespaces, and the ends of the cable."""

    def __init__(self, holders, directory, data_dir):
        self._holders, self._directory = holders, directory
        self._environment = environment(data_dir)

    def command(self, number, *command):
        """Returns a command that runs another one on a host."""
        namespaces = ('--net', '--mount', '--uts', f'--wd={ROOT}')
        return ['nsenter', f'--target={self._holders[number].pid}', *namespaces, *command]

    @contextlib.contextmanager
    def started(self, *arguments, only=((), ())):
        """Starts a process of the run on each host; `only` has additional flags for each; kills them at the end."""
        with contextlib.ExitStack() as stack:
            processes = []
            for number in range(2):
                flags = (f'--coordinator=10.77.0.1:{PORT}', '--num_processes=2', f'--process_id={number}')
                program = (sys.executable, '-m', 'mnist_jax.main', *arguments, *flags, *only[number])
                output = stack.enter_context(open(self._directory / f'output{number}', 'w'))
                options = {'env': self._environment, 'stdout': output, 'stderr': output}
                process = stack.enter_context(subprocess.Popen(self.command(number, *program), **options))
                stack.callback(process.kill)
                processes.append(process)
            yield processes

    def output(self, number):
        return (self._directory / f'output{number}').read_text()

    def error(self, number):
        """Returns the last line of a process, which must be its only error; it may follow a progress bar."""
        output = self.output(number).replace('\r', '\n')
        assert output.count('error: ') == 1 and 'Traceback' not in output and 'Fatal' not in output, output
        line = output.splitlines()[-1]
        assert line.startswith('error: '), output
        return line

    def cut_cable(self):
        run(*self.command(1, 'ip', 'link', 'set', 'cable1', 'down'))


@pytest.fixture
def make_hosts(tmp_path, data_dir):
    """A function that makes two hosts whose names resolve to these addresses."""
    with contextlib.ExitStack() as stack:

        def make(*addresses):
            holders = []
            for name, address in zip(NAMES, addresses, strict=True):
                (tmp_path / f'hosts-{name}').write_text(f'127.0.0.1 localhost\n{address} {name}\n')
                inside = ('bash', '-c', MAKE_HOST, 'host', str(tmp_path / f'hosts-{name}'), name)
                command = ['unshare', '--net', '--mount', '--uts', *inside]
                holder = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                stack.callback(holder.kill)
                assert holder.stdout.readline() == 'ready\n'
                holders.append(holder)
            pids = [str(holder.pid) for holder in holders]
            hosts = Hosts(holders, tmp_path, data_dir)
            peer = ('peer', 'name', 'cable1', 'netns', pids[1])
            run(*hosts.command(0, 'ip', 'link', 'add', 'cable0', 'type', 'veth', *peer))
            for number in range(2):
                run(*hosts.command(number, 'ip', 'address', 'add', f'10.77.0.{number + 1}/24', 'dev', f'cable{number}'))
                run(*hosts.command(number, 'ip', 'link', 'set', f'cable{number}', 'up'))
            return hosts

        yield make


def wait(processes, seconds=TIMEOUT_SECONDS):
    """Returns the exit statuses of the processes, which must end within some seconds."""
    deadline = time.monotonic() + seconds
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]


def test_hosts_whose_names_resolve_to_loopback_addresses_are_told_what_to_change(make_hosts, tmp_path, data_dir):
    """As Debian and Ubuntu write /etc/hosts; nothing is trained."""
    program = Program(tmp_path, data_dir)
    hosts = make_hosts('10.77.0.1', '127.0.1.1')
    with hosts.started(*program.arguments) as processes:
        assert wait(processes) == [1, 2]
    message = (
        "the name of each host must resolve to an address that the other hosts can reach, but 'second' is 127.0.1.1, "
        "which only this host can reach; put the line '10.77.0.2 second' into /etc/hosts, before or instead of other "
        'lines with second'
    )
    assert hosts.error(1) == f'error: {message}'
    assert hosts.error(0) == f'error: process 1 of 2 (on second) failed: {message}'
    assert not program.workdir.exists()


@pytest.mark.slow_faults
def test_a_host_whose_name_is_unknown_is_told_what_to_add(make_hosts, tmp_path, data_dir):
    hosts = make_hosts('10.77.0.1', '#')
    with hosts.started(*Program(tmp_path, data_dir).arguments) as processes:
        assert wait(processes) == [1, 2]
    assert "'second' is an unknown name; put the line '10.77.0.2 second' into /etc/hosts" in hosts.error(1)


@pytest.mark.slow_faults
@pytest.mark.parametrize('number', [0, 1])
def test_a_user_error_on_one_host_ends_the_other_with_one_line(make_hosts, tmp_path, data_dir, number):
    hosts = make_hosts('10.77.0.1', '10.77.0.2')
    wrong = ('--config.dataset.test=test[:100000]',)
    only = [wrong if number == i else () for i in (0, 1)]
    with hosts.started(*Program(tmp_path, data_dir).arguments, only=only) as processes:
        assert wait(processes) == [2 if number == i else 1 for i in (0, 1)]
    message = hosts.error(number).removeprefix('error: ')
    assert message.startswith('config.dataset.test must be one of the splits')
    name = 'process 1 of 2 (on second)' if number else 'process 0 of 2'
    assert hosts.error(1 - number) == f'error: {name} failed: {message}'


@pytest.mark.slow_faults
def test_two_hosts_give_the_bits_of_one_process(make_hosts, tmp_path, data_dir):
    program = Program(tmp_path, data_dir)
    hosts = make_hosts('10.77.0.1', '10.77.0.2')
    with hosts.started(*program.arguments) as processes:
        assert wait(processes) == [0, 0], hosts.output(0) + hosts.output(1)
    assert results(program.workdir) == uninterrupted(data_dir)[0]


def cut_cable(hosts, processes):
    hosts.cut_cable()


def suspend_first(hosts, processes):
    processes[0].send_signal(signal.SIGSTOP)


def suspend_second(hosts, processes):
    processes[1].send_signal(signal.SIGSTOP)


def kill_first(hosts, processes):
    processes[0].kill()


def kill_second(hosts, processes):
    processes[1].kill()


SILENT = 'has not answered for 30 seconds; run the same command again to resume from the last checkpoint'
GONE = 'is gone; run the same command again to resume from the last checkpoint'


@pytest.mark.slow_faults
@pytest.mark.parametrize(
    ('inject', 'errors'),
    [
        (cut_cable, {0: f'process 1 of 2 (on second) {SILENT}', 1: f'process 0 of 2 {SILENT}'}),
        (suspend_first, {1: f'process 0 of 2 {SILENT}'}),
        (suspend_second, {0: f'process 1 of 2 (on second) {SILENT}'}),
        (kill_first, {1: f'process 0 of 2 {GONE}'}),
        (kill_second, {0: f'process 1 of 2 (on second) {GONE}'}),
    ],
)
def test_a_lost_host_ends_the_others_with_one_line_and_one_process_resumes(
    make_hosts, tmp_path, data_dir, inject, errors
):
    program = Program(tmp_path, data_dir)
    hosts = make_hosts('10.77.0.1', '10.77.0.2')
    # More epochs than can be trained before the fault; the schedule of this config does not depend on their number.
    with hosts.started(*program.arguments, '--config.epochs=1000') as processes:
        while not epochs_done(program.workdir):
            assert [process.poll() for process in processes] == [None, None], hosts.output(0) + hosts.output(1)
            time.sleep(0.1)
        inject(hosts, processes)
        assert wait([processes[number] for number in errors], END_SECONDS) == [1] * len(errors)
        for number, message in errors.items():
            assert hosts.error(number) == f'error: {message}'
        suspended = [number for number in range(2) if number not in errors and processes[number].poll() is None]
        for number in suspended:
            processes[number].send_signal(signal.SIGCONT)
            assert processes[number].wait(END_SECONDS) == 1
            assert hosts.error(number).startswith('error: process ')
    epochs = epochs_done(program.workdir)
    (tmp_path / 'uninterrupted').mkdir()
    other = Program(tmp_path / 'uninterrupted', data_dir)
    for run in (program, other):
        assert run.run(f'--config.epochs={epochs + 1}') == 0, run.output
    assert program.results() == other.results()
