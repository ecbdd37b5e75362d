"""The flags of the command line, and one function per --mode."""

import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags, logging
from ml_collections import config_flags

from mnist_jax.config import ConfigDict, check_arguments, load_config
from mnist_jax.config_checks import check_config
from mnist_jax.distributed.local_launch import MAX_PROCESSES, launch_processes
from mnist_jax.errors import UserError
from mnist_jax.factory import choose
from mnist_jax.workdir.metrics_log import configure_logging

FLAGS = flags.FLAGS
USAGE = """\
Train, evaluate and compare small-image classifiers.

  mnist-jax --config=configs/cnn.py                        train a run, or resume it
  mnist-jax --config=configs/cnn.py --config.epochs=3      override any field of configs/default.py
  mnist-jax --processes=2 --config=configs/cnn.py          train in two processes, with the same result
  mnist-jax --mode=eval --workdir=runs/cnn                 evaluate a run
  mnist-jax --mode=report --workdir=runs/cnn               write a page with learning curves, errors and calibration
  mnist-jax --mode=predict --workdir=runs/cnn --input=digit.png
                                                           classify your own images
  mnist-jax --mode=export --workdir=runs/cnn               export the model to StableHLO, and with --onnx to ONNX
  mnist-jax --mode=serve --workdir=runs/cnn                serve a page to draw digits on
  mnist-jax --mode=compare --run='runs/*'                  compare finished runs
  mnist-jax --mode=explore --config=configs/cnn.py         look at a dataset
  mnist-jax --mode=summary --config=configs/cnn.py         print the layer table
  mnist-jax --mode=reproduce --seeds=3                     reproduce all published experiments

`mnist-jax` is the same as `python -m mnist_jax.main`."""
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, "The experiment's config file; --config.FIELD=VALUE overrides a field"
)
flags.DEFINE_string(
    'mode',
    'train',
    'train (or resume), eval, report, predict, export, serve, compare, explore, summary or reproduce',
)
flags.DEFINE_string('workdir', None, "The directory of the run; 'runs/<config name>' by default")
flags.DEFINE_string(
    'step',
    None,
    'eval, predict, serve, export: the checkpoint to use (best, latest or a step number); by default, the one that the '
    'run ended with',
)
flags.DEFINE_bool('report', True, 'train: write the report of the finished run')
flags.DEFINE_string(
    'split', None, "eval: which split to evaluate, e.g. 'holdout' or 'test[:10%]'; the test split by default"
)
flags.DEFINE_multi_string(
    'input',
    [],
    "predict: an image, a directory of images, an IDX file, Kaggle's test.csv, or a pattern; may be repeated",
)
flags.DEFINE_string('output', None, 'predict: the .csv or .jsonl file to write; by default, prints a table')
flags.DEFINE_string(
    'host', '127.0.0.1', 'serve: the address to listen on; 0.0.0.0 makes it reachable from other machines'
)
flags.DEFINE_integer('port', 8000, 'serve: the port to listen on; 0 for any free port')
flags.DEFINE_bool('onnx', False, 'export: write ONNX as well')
flags.DEFINE_multi_string('run', [], "compare, report: a workdir, or a pattern such as 'runs/cnn-*'; may be repeated")
flags.DEFINE_integer('processes', None, 'train, eval: start this many processes on this machine')
flags.DEFINE_string('coordinator', None, 'train, eval on several hosts: host:port of process 0 (the coordinator)')
flags.DEFINE_integer('num_processes', None, 'train, eval on several hosts: the total number of processes')
flags.DEFINE_integer('process_id', None, 'train, eval on several hosts: the index of this process, from 0')
flags.DEFINE_integer('seeds', 3, 'reproduce: the number of seeds')
flags.DEFINE_list('experiments', [], 'reproduce: a comma-separated list of config names; all by default')


class _ConfigParser(flags.ArgumentParser):
    """Loads config files with `load_config`, which finds the configs of this project from any directory."""

    def parse(self, path: str) -> ConfigDict:
        return load_config(path)


FLAGS['config'].parser = _ConfigParser()


def parse(argv: list[str]) -> Callable[[], int | None]:
    """Parses the command line, and returns the function to call, which returns an exit status or None.

    Raises:
      UserError: a flag is unknown, invalid, empty, or not used by the chosen mode.
    """
    logging.use_absl_handler()
    if {'--help', '-help', '-h'} & set(argv[1:]):
        print(f'{USAGE}\n\n{FLAGS.module_help(sys.modules[__name__])}')
        sys.exit(0)
    overridden = check_arguments(argv)
    try:
        positional = FLAGS(argv)[1:]
    except flags.Error as error:
        wrong = re.match(r'flag --([\w.]+)=(.*?): ', str(error), re.DOTALL)
        if wrong is None:
            raise UserError(str(error)) from None
        field = wrong[1].removeprefix('config.')
        kind = type(overridden[field]).__name__ if field in overridden else FLAGS[field].flag_type()
        raise UserError(f'--{wrong[1]} must be of type {kind}, got {wrong[2]!r}') from None
    if positional:
        raise UserError(f'arguments must be flags, which start with --, got {positional[0]!r}')
    configure_logging()
    mode = choose('--mode', FLAGS.mode, MODES)
    for name in ('workdir', *itertools.chain.from_iterable(other.flags for other in MODES.values())):
        if FLAGS[name].present and FLAGS[name].value in ('', [''], []):
            raise UserError(f'--{name} must not be empty; give a value, or omit the flag')
        if FLAGS[name].present and name not in ('workdir', *mode.flags):
            raise UserError(f'--{name} is not used by --mode={FLAGS.mode}; --help says which mode uses it')
    is_child = FLAGS.processes == 0 and FLAGS['process_id'].present  # see `_launch`
    return mode.run if FLAGS.processes is None or is_child else _launch


def _launch() -> int:
    """Starts this command in several processes on this machine; returns the exit status."""
    others = [name for name in PROCESS_FLAGS[1:] if FLAGS[name].present]
    if others:
        raise UserError(f'--processes starts all processes itself and must not be combined with --{others[0]}')
    if not 1 <= FLAGS.processes <= MAX_PROCESSES:
        raise UserError(f'--processes must be from 1 to {MAX_PROCESSES}, got {FLAGS.processes}')
    arguments, script = [*sys.argv[1:], '--processes=0'], Path(sys.argv[0])
    if script.suffix == '.py' and script.name != 'main.py':  # a user's script, with its own parts
        return launch_processes(arguments, FLAGS.processes, (sys.executable, str(script)))
    return launch_processes(arguments, FLAGS.processes)


def train() -> None:
    """Trains the run of --config in --workdir, or resumes it."""
    from mnist_jax.studies.cross_validation import cross_validate
    from mnist_jax.train import train as train_run

    config = _config()
    check_config(config)  # Report invalid fields before the processes connect.
    workdir = _workdir(Path(config_flags.get_config_filename(FLAGS['config'])).stem)
    with _connected():
        if config.folds and not config.fold:
            cross_validate(config, workdir)
        else:
            train_run(config, workdir, report=FLAGS.report)


def evaluate() -> None:
    """Evaluates a checkpoint of --workdir."""
    from mnist_jax.evaluate import evaluate_workdir

    workdir = _run_directory()
    with _connected():
        evaluate_workdir(workdir, FLAGS.step, FLAGS.split)


def report() -> None:
    """Writes the report of --workdir, or a comparison of every --run."""
    from mnist_jax.inference.restored import RestoredModel
    from mnist_jax.report.comparison_page import compare_runs
    from mnist_jax.report.run_page import write_report

    if FLAGS.run:
        print(compare_runs(FLAGS.run, _workdir('comparison')))
    else:
        print(write_report(RestoredModel.load(_run_directory())))


def predict() -> None:
    """Classifies every --input."""
    from mnist_jax.inference.predict import predict as predict_inputs

    if not FLAGS.input:
        raise UserError("--mode=predict needs --input: an image, a directory, an IDX file or Kaggle's test.csv")
    predict_inputs(_run_directory(), FLAGS.input, Path(FLAGS.output) if FLAGS.output else None, FLAGS.step)


def export() -> None:
    """Exports the model of --workdir."""
    from mnist_jax.inference.export import export as export_model

    export_model(_run_directory(), FLAGS.step, FLAGS.onnx)


def serve() -> None:
    """Serves the page for drawing digits."""
    from mnist_jax.inference.server import serve as serve_page

    serve_page(_run_directory(), FLAGS.host, FLAGS.port, FLAGS.step)


def summary() -> None:
    """Prints the layer table of --config."""
    from mnist_jax.training.experiment import model_summary

    print(model_summary(_config()))


def compare() -> None:
    """Prints a comparison of every --run."""
    from mnist_jax.workdir.comparison import comparison_table

    if not FLAGS.run:
        raise UserError("--mode=compare needs --run, a workdir or a pattern such as 'runs/cnn-*', at least once")
    print(comparison_table(FLAGS.run))


def explore() -> None:
    """Writes tables and figures that describe the dataset of --config."""
    from mnist_jax.report.explore import explore as explore_data

    config = _config()
    explore_data(config, _workdir(f'explore-{config.dataset.name}'))


def reproduce() -> None:
    """Trains every published experiment, and compares the results."""
    from mnist_jax.studies.reproduction import reproduce as reproduce_experiments

    reproduce_experiments(FLAGS.experiments, FLAGS.seeds, _workdir('reproduce'))


class Mode(NamedTuple):
    """A --mode: its function, and the flags that it uses besides --config and --workdir."""

    run: Callable[[], None]
    flags: tuple[str, ...]


PROCESS_FLAGS = ('processes', 'coordinator', 'num_processes', 'process_id')
MODES = {
    'train': Mode(train, ('report', *PROCESS_FLAGS)),
    'eval': Mode(evaluate, ('step', 'split', *PROCESS_FLAGS)),
    'report': Mode(report, ('run',)),
    'predict': Mode(predict, ('input', 'output', 'step')),
    'export': Mode(export, ('step', 'onnx')),
    'serve': Mode(serve, ('step', 'host', 'port')),
    'summary': Mode(summary, ()),
    'compare': Mode(compare, ('run',)),
    'explore': Mode(explore, ()),
    'reproduce': Mode(reproduce, ('seeds', 'experiments')),
}


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Connects the processes of the run, if there are several."""
    from mnist_jax.distributed import processes

    processes.connect(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    yield
    processes.disconnect()  # Not after a failure: the other processes may be gone.


def _config() -> ConfigDict:
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/cnn.py')
    return _CONFIG.value


def _workdir(name: str) -> Path:
    return Path(FLAGS.workdir or f'runs/{name}')


def _run_directory() -> Path:
    if FLAGS.workdir is None or _CONFIG.value is not None:
        raise UserError(
            f'--mode={FLAGS.mode} needs --workdir, the directory of a run, and takes no --config: the run has its own'
        )
    return Path(FLAGS.workdir)
