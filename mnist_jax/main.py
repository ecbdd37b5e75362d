"""The command line: parses the flags, runs the function of the chosen mode, and sets the exit status.

Exit status: 0 on success; 2 if the user's input is wrong, with one line on standard error; 3 if --mode=predict skipped
files or images; 128 + N after signal N; 1 for anything else. What this program foresees, such as a full disk or a loss
of NaN, is one line as well; an unexpected exception keeps its traceback.
"""

import contextlib
import errno
import faulthandler
import io
import os
import signal
import sys
import traceback

from mnist_jax import commands
from mnist_jax.distributed import peers
from mnist_jax.distributed.local_launch import prepare_child
from mnist_jax.distributed.signals import stop_on_signals
from mnist_jax.errors import Interrupted, NonFiniteError, PeerError, UserError, WriteError, first_line, print_error

# Errors that a path given by the user can cause.
PATH_ERRORS = (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
# Errors of the disk on which the run or the data is.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
WINDOWS_ERROR = (
    'error: mnist_jax runs on Linux and macOS, not on Windows, where its dependency array_record is not available; '
    'install it in the Windows Subsystem for Linux (WSL 2)'
)


def main() -> None:
    """Runs the command line of this process, and ends the process."""
    if sys.platform == 'win32':
        print(WINDOWS_ERROR, file=sys.stderr)
        sys.exit(2)
    prepare_child()
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # A name that its encoding lacks must not end a run.
        sys.stdout.reconfigure(errors='backslashreplace')
    faulthandler.enable()
    with stop_on_signals(owns_process=True):
        try:
            # Everything that reads sys.argv sees the flags of a --flagfile in its place.
            sys.argv[1:] = commands.expand_flagfiles(sys.argv[1:])
            command = commands.parse(sys.argv)
            status = command() or 0
        except BaseException as error:
            status = _report(peers.leave(error) or error)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            pass
        except OSError as error:
            print_error(f'error: standard output cannot be written: {error.strerror}')
            status = status or 1
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        # Not sys.exit: library threads and peer processes may otherwise block forever.
        os._exit(status)


def _report(error: BaseException) -> int:
    """Prints what went wrong, and returns the exit status."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print_error(error.code)  # as Python does
        return 1
    if isinstance(error, Interrupted):
        print_error(error)
        return error.status
    if isinstance(error, BrokenPipeError):  # The reader of the output, such as `head`, has closed it.
        return 128 + signal.SIGPIPE
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, UserError | NonFiniteError | PeerError | WriteError) or code in (*PATH_ERRORS, *DISK_ERRORS):
        print_error(f'error: {" ".join(str(error).split())}')
        return 2 if isinstance(error, UserError) or code in PATH_ERRORS else 1
    if not isinstance(error, Exception):  # KeyboardInterrupt, which the signal handlers leave to Python
        traceback.print_exception(error)
        return 1
    from mnist_jax.distributed import processes  # Importing JAX takes a second; do not delay the errors above.

    if processes.lost_peers(error):
        print_error(
            f'error: the other processes of this run are gone ({first_line(error)[:200]}); run the same command again '
            'to resume from the last checkpoint'
        )
    else:
        traceback.print_exception(error)
    return 1


def _open_missing_streams() -> None:
    """Opens /dev/null for each missing standard stream, so that no other file gets its descriptor."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, 'r' if number == 0 else 'w'))


if __name__ == '__main__':
    main()
