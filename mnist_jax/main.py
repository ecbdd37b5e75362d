"""The command line: start-up, the choice of the mode, and how the program ends."""

import contextlib
import errno
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags

from mnist_jax import commands
from mnist_jax.commands import FLAGS, MODES, PROCESSES, USAGE
from mnist_jax.config import check_arguments
from mnist_jax.distributed.local_launch import MAX_PROCESSES, launch_processes, prepare
from mnist_jax.distributed.signals import stop_on_signals
from mnist_jax.errors import Interrupted, UserError, first_line
from mnist_jax.factory import choose
from mnist_jax.workdir.metrics_log import configure_logging

# The errors of paths that the user gave.
WRONG_PATH = (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags as absl does, but tell what is wrong in one line."""
    if {'--help', '-help', '-h'} & set(argv[1:]):
        print(f'{USAGE}\n\n{FLAGS.module_help(commands)}')
        sys.exit(0)
    overridden = check_arguments(argv)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        wrong = [name for name in overridden if f'--config.{name}' in str(error)]
        kind = f'; its type is {type(overridden[wrong[0]]).__name__}' if wrong else ''
        raise UserError(f'{error}{kind}') from None


def _check_flags(used: Sequence[str]) -> None:
    """Raise a UserError for a flag that is empty, or that the chosen mode does not use."""
    for name in ('workdir', *itertools.chain.from_iterable(own for _, own in MODES.values())):
        if FLAGS[name].present and FLAGS[name].value in ('', [''], []):
            raise UserError(f'--{name}= is empty; give a value, or leave it out')
        if FLAGS[name].present and name not in ('workdir', *used):
            raise UserError(f'--{name} is not for --mode={FLAGS.mode}; --help says which mode it is for')


def main(argv: list[str]) -> None:
    """Run the chosen mode."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]!r} is not a flag; flags begin with --')
    configure_logging()
    run, used = choose('--mode', FLAGS.mode, MODES)
    _check_flags(used)
    if FLAGS.processes is None:
        run()
    else:
        sys.exit(_launch())


def _launch() -> int:
    others = [name for name in PROCESSES[1:] if FLAGS[name].present]
    if others:
        raise UserError(f'--processes and --{others[0]} exclude each other: the first starts all processes itself')
    if not 1 <= FLAGS.processes <= MAX_PROCESSES:
        raise UserError(f'--processes={FLAGS.processes} is wrong: 1 to {MAX_PROCESSES} are wanted')
    arguments, left = [], iter(sys.argv[1:])
    for argument in left:
        if argument in ('--processes', '-processes'):
            next(left)
        elif not argument.startswith(('--processes=', '-processes=')):
            arguments.append(argument)
    return launch_processes(arguments, FLAGS.processes)


def run_program() -> None:
    """Run `main`; what the user got wrong is a line on standard error and exit status 2."""
    prepare()
    _open_streams()
    with stop_on_signals(own=True):
        status = _status()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        # At once: threads of libraries may wait for ever for what failed, as may other processes for this one.
        os._exit(status)


def _open_streams() -> None:
    """Give this process standard streams where it was started without, so that no other file takes their place."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, 'r' if number == 0 else 'w'))


def _status() -> int:
    """Run `main`, tell what went wrong, and return the exit status."""
    try:
        app.run(main, flags_parser=_parse)
    except SystemExit as ended:
        return ended.code or 0
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.status
    except BrokenPipeError:  # Whoever read the output, such as head, has enough.
        return 128 + signal.SIGPIPE
    except (UserError, FloatingPointError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2 if isinstance(error, UserError) or getattr(error, 'errno', None) in WRONG_PATH else 1
    except Exception as error:
        _tell_failure(error)
        return 1
    return 0


def _tell_failure(error: Exception) -> None:
    from mnist_jax.distributed import processes

    if processes.lost_peers(error):
        print(
            f'error: the other processes of this run are gone ({first_line(error)[:200]}); the same command goes on '
            'from the last checkpoint',
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)


if __name__ == '__main__':
    run_program()
