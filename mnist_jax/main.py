"""The command line: flags, start-up, and the choice of the mode."""

import contextlib
import errno
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mnist_jax import config as configs
from mnist_jax import interruption, launch, monitor
from mnist_jax.errors import Interrupted, UserError, choose, first_line

FLAGS = flags.FLAGS
USAGE = """\
Train, evaluate and compare small-image classifiers.

  python -m mnist_jax.main --config=configs/cnn.py                       train, or go on with what is there
  python -m mnist_jax.main --config=configs/cnn.py --config.epochs=3     any field of configs/default.py
  python -m mnist_jax.main --processes=2 --config=configs/cnn.py         in two processes, with the same result
  python -m mnist_jax.main --mode=eval --workdir=runs/cnn                evaluate what a run has learned
  python -m mnist_jax.main --mode=predict --workdir=runs/cnn --input=digit.png
                                                                         the classes of your own images
  python -m mnist_jax.main --mode=export --workdir=runs/cnn              a file that JAX alone runs, and ONNX
  python -m mnist_jax.main --mode=serve --workdir=runs/cnn               a page to draw on
  python -m mnist_jax.main --mode=compare --run='runs/*'                 finished runs side by side
  python -m mnist_jax.main --mode=explore --config=configs/cnn.py        look at a data set
  python -m mnist_jax.main --mode=summary --config=configs/cnn.py        the layer table
  python -m mnist_jax.main --mode=reproduce --seeds=3                    all published experiments"""
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, "The experiment's config file; --config.FIELD=VALUE overrides"
)
flags.DEFINE_string(
    'mode',
    'train',
    'train (or resume), eval, predict (your own images), serve (a page to draw on), export (to StableHLO and ONNX), '
    'compare (runs), explore (a data set), reproduce (all published experiments), or summary (the layer table)',
)
flags.DEFINE_string('workdir', None, "Where the run lives; 'runs/<config name>' if not given")
flags.DEFINE_string(
    'step',
    None,
    "eval, predict, serve, export: which checkpoint: best, latest or a step; the run's result if not given",
)
flags.DEFINE_string('split', None, "eval: which split, as 'holdout' or 'test[:10%]'; the config's test if not given")
flags.DEFINE_multi_string(
    'input',
    [],
    "predict: an image, a directory of images, an IDX file, Kaggle's test.csv, or a pattern; may be repeated",
)
flags.DEFINE_string('output', None, 'predict: write a .csv or .jsonl file; a table on the terminal if not given')
flags.DEFINE_string('host', '127.0.0.1', 'serve: the address to listen on; other machines reach 0.0.0.0')
flags.DEFINE_integer('port', 8000, 'serve: the port to listen on; 0 for any that is free')
flags.DEFINE_bool('onnx', False, 'export: write ONNX too')
flags.DEFINE_multi_string('run', [], "compare: a workdir, or a pattern such as 'runs/cnn-*'; may be repeated")
flags.DEFINE_integer('processes', None, 'train, eval: start so many processes on this machine, each with its devices')
flags.DEFINE_string('coordinator', None, 'train, eval on several hosts: host:port of process 0, for all to meet there')
flags.DEFINE_integer('num_processes', None, 'train, eval on several hosts: how many processes there are in all')
flags.DEFINE_integer('process_id', None, 'train, eval on several hosts: which of them this is, from 0')
flags.DEFINE_integer('seeds', 3, 'reproduce: how many seeds')
flags.DEFINE_list('experiments', [], 'reproduce: the names of some configs, comma-separated; all if not given')


def _train() -> None:
    from mnist_jax.crossvalidate import cross_validate
    from mnist_jax.train import train

    config = _config()
    configs.check(config)  # What is wrong in all processes is told before they meet.
    run = cross_validate if config.folds and not config.fold else train
    with _connected():
        run(config, _workdir(Path(FLAGS['config'].config_filename).stem))


def _eval() -> None:
    from mnist_jax.evaluate import evaluate_workdir

    workdir = _run_directory()
    with _connected():
        evaluate_workdir(workdir, FLAGS.step, FLAGS.split)


def _predict() -> None:
    from mnist_jax.predict import predict

    if not FLAGS.input:
        raise UserError("--mode=predict needs --input, an image, a directory, an IDX file or Kaggle's test.csv")
    predict(_run_directory(), FLAGS.input, Path(FLAGS.output) if FLAGS.output else None, FLAGS.step)


def _export() -> None:
    from mnist_jax.export import export

    export(_run_directory(), FLAGS.step, FLAGS.onnx)


def _serve() -> None:
    from mnist_jax.serve import serve

    serve(_run_directory(), FLAGS.host, FLAGS.port, FLAGS.step)


def _run_directory() -> Path:
    if FLAGS.workdir is None or _CONFIG.value is not None:
        raise UserError(
            f'--mode={FLAGS.mode} needs --workdir, the directory of a run, and no --config: the run has its own'
        )
    return Path(FLAGS.workdir)


def _summary() -> None:
    from mnist_jax.experiment import layer_table

    print(layer_table(_config()))


def _compare() -> None:
    from mnist_jax.compare import compare

    if not FLAGS.run:
        raise UserError("--mode=compare needs --run, a workdir or a pattern such as 'runs/cnn-*', once or more")
    print(compare(FLAGS.run))


def _explore() -> None:
    from mnist_jax.explore import explore

    config = _config()
    explore(config, _workdir(f'explore-{config.dataset.name}'))


def _reproduce() -> None:
    from mnist_jax.reproduce import reproduce

    reproduce(FLAGS.experiments, FLAGS.seeds, _workdir('reproduce'))


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    from mnist_jax import processes

    processes.connect(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    yield
    processes.leave()  # Not after a failure: the others may be gone.


def _config() -> configs.ConfigDict:
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/cnn.py')
    return _CONFIG.value


def _workdir(name: str) -> Path:
    return Path(FLAGS.workdir or f'runs/{name}')


# The errors of paths that the user gave.
WRONG_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
_PROCESSES = ('processes', 'coordinator', 'num_processes', 'process_id')
# Each mode and the flags that it uses beside --config and --workdir.
MODES = {
    'train': (_train, _PROCESSES),
    'eval': (_eval, ('step', 'split', *_PROCESSES)),
    'predict': (_predict, ('input', 'output', 'step')),
    'export': (_export, ('step', 'onnx')),
    'serve': (_serve, ('step', 'host', 'port')),
    'summary': (_summary, ()),
    'compare': (_compare, ('run',)),
    'explore': (_explore, ()),
    'reproduce': (_reproduce, ('seeds', 'experiments')),
}


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags as absl does, but tell what is wrong in one line."""
    if {'--help', '-help', '-h'} & set(argv[1:]):
        print(f'{USAGE}\n\n{FLAGS.main_module_help()}')
        sys.exit(0)
    overridden = configs.check_arguments(argv)
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
    monitor.configure_logging()
    run, used = choose('--mode', FLAGS.mode, MODES)
    _check_flags(used)
    if FLAGS.processes is None:
        run()
    else:
        sys.exit(_launch())


def _launch() -> int:
    others = [name for name in _PROCESSES[1:] if FLAGS[name].present]
    if others:
        raise UserError(f'--processes and --{others[0]} exclude each other: the first starts all processes itself')
    if not 1 <= FLAGS.processes <= launch.MOST:
        raise UserError(f'--processes={FLAGS.processes} is wrong: 1 to {launch.MOST} are wanted')
    arguments, left = [], iter(sys.argv[1:])
    for argument in left:
        if argument in ('--processes', '-processes'):
            next(left)
        elif not argument.startswith(('--processes=', '-processes=')):
            arguments.append(argument)
    return launch.launch(arguments, FLAGS.processes)


def run_program() -> None:
    """Run `main`; what the user got wrong is a line on standard error and exit status 2."""
    launch.prepare()
    _open_streams()
    with interruption.listening(own=True):
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
    from mnist_jax import processes

    if processes.lost_others(error):
        print(
            f'error: the other processes of this run are gone ({first_line(error)[:200]}); the same command goes on '
            'from the last checkpoint',
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)


if __name__ == '__main__':
    run_program()
