"""The flags of the command line, and the modes that they choose."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mnist_jax.config import ConfigDict, check_config
from mnist_jax.errors import UserError

FLAGS = flags.FLAGS
USAGE = """\
Train, evaluate and compare small-image classifiers.

  python -m mnist_jax.main --config=configs/cnn.py                       train, or go on with what is there
  python -m mnist_jax.main --config=configs/cnn.py --config.epochs=3     any field of configs/default.py
  python -m mnist_jax.main --processes=2 --config=configs/cnn.py         in two processes, with the same result
  python -m mnist_jax.main --mode=eval --workdir=runs/cnn                evaluate what a run has learned
  python -m mnist_jax.main --mode=report --workdir=runs/cnn              a page on how it learned and where it errs
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
    'what to do: train (or resume), eval, report, predict, export, serve, compare, explore, summary or reproduce',
)
flags.DEFINE_string('workdir', None, "Where the run lives; 'runs/<config name>' if not given")
flags.DEFINE_string(
    'step',
    None,
    "eval, predict, serve, export: which checkpoint: best, latest or a step; the run's result if not given",
)
flags.DEFINE_bool('report', True, 'train: write the report of the finished run')
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
flags.DEFINE_multi_string('run', [], "compare, report: a workdir, or a pattern such as 'runs/cnn-*'; may be repeated")
flags.DEFINE_integer('processes', None, 'train, eval: start so many processes on this machine, each with its devices')
flags.DEFINE_string('coordinator', None, 'train, eval on several hosts: host:port of process 0, for all to meet there')
flags.DEFINE_integer('num_processes', None, 'train, eval on several hosts: how many processes there are in all')
flags.DEFINE_integer('process_id', None, 'train, eval on several hosts: which of them this is, from 0')
flags.DEFINE_integer('seeds', 3, 'reproduce: how many seeds')
flags.DEFINE_list('experiments', [], 'reproduce: the names of some configs, comma-separated; all if not given')


def _train() -> None:
    from mnist_jax.studies.cross_validation import cross_validate
    from mnist_jax.train import train

    config = _config()
    check_config(config)  # What is wrong in all processes is told before they meet.
    workdir = _workdir(Path(FLAGS['config'].config_filename).stem)
    with _connected():
        if config.folds and not config.fold:
            cross_validate(config, workdir)
        else:
            train(config, workdir, report=FLAGS.report)


def _eval() -> None:
    from mnist_jax.evaluate import evaluate_workdir

    workdir = _run_directory()
    with _connected():
        evaluate_workdir(workdir, FLAGS.step, FLAGS.split)


def _report() -> None:
    from mnist_jax.inference.restored import RestoredModel
    from mnist_jax.report.comparison import compare_runs
    from mnist_jax.report.run import write_report

    if FLAGS.run:
        print(compare_runs(FLAGS.run, _workdir('comparison')))
    else:
        print(write_report(RestoredModel.load(_run_directory())))


def _predict() -> None:
    from mnist_jax.inference.predict import predict

    if not FLAGS.input:
        raise UserError("--mode=predict needs --input, an image, a directory, an IDX file or Kaggle's test.csv")
    predict(_run_directory(), FLAGS.input, Path(FLAGS.output) if FLAGS.output else None, FLAGS.step)


def _export() -> None:
    from mnist_jax.inference.export import export

    export(_run_directory(), FLAGS.step, FLAGS.onnx)


def _serve() -> None:
    from mnist_jax.inference.server import serve

    serve(_run_directory(), FLAGS.host, FLAGS.port, FLAGS.step)


def _run_directory() -> Path:
    if FLAGS.workdir is None or _CONFIG.value is not None:
        raise UserError(
            f'--mode={FLAGS.mode} needs --workdir, the directory of a run, and no --config: the run has its own'
        )
    return Path(FLAGS.workdir)


def _summary() -> None:
    from mnist_jax.training.experiment import model_summary

    print(model_summary(_config()))


def _compare() -> None:
    from mnist_jax.workdir.comparison import comparison_table

    if not FLAGS.run:
        raise UserError("--mode=compare needs --run, a workdir or a pattern such as 'runs/cnn-*', once or more")
    print(comparison_table(FLAGS.run))


def _explore() -> None:
    from mnist_jax.report.explore import explore

    config = _config()
    explore(config, _workdir(f'explore-{config.dataset.name}'))


def _reproduce() -> None:
    from mnist_jax.studies.reproduction import reproduce

    reproduce(FLAGS.experiments, FLAGS.seeds, _workdir('reproduce'))


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    from mnist_jax.distributed import processes

    processes.connect(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    yield
    processes.disconnect()  # Not after a failure: the others may be gone.


def _config() -> ConfigDict:
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/cnn.py')
    return _CONFIG.value


def _workdir(name: str) -> Path:
    return Path(FLAGS.workdir or f'runs/{name}')


PROCESSES = ('processes', 'coordinator', 'num_processes', 'process_id')
# Each mode and the flags that it uses beside --config and --workdir.
MODES = {
    'train': (_train, ('report', *PROCESSES)),
    'eval': (_eval, ('step', 'split', *PROCESSES)),
    'report': (_report, ('run',)),
    'predict': (_predict, ('input', 'output', 'step')),
    'export': (_export, ('step', 'onnx')),
    'serve': (_serve, ('step', 'host', 'port')),
    'summary': (_summary, ()),
    'compare': (_compare, ('run',)),
    'explore': (_explore, ()),
    'reproduce': (_reproduce, ('seeds', 'experiments')),
}
