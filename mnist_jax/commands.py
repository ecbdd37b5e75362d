"""The flags of the command line, and one function per --mode."""

import contextlib
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags, logging

from mnist_jax.config import ConfigDict, load_config, override_fields
from mnist_jax.config_checks import check_config
from mnist_jax.distributed.local_launch import MAX_PROCESSES, launch_processes
from mnist_jax.errors import UserError
from mnist_jax.factory import Section, choose
from mnist_jax.files import check_directory, user_path
from mnist_jax.workdir.metrics_log import configure_logging
from mnist_jax.workdir.provenance import program

if TYPE_CHECKING:
    from mnist_jax.studies.study import Study

FLAGS = flags.FLAGS
USAGE = """\
Train, evaluate and compare small-image classifiers.

  mnist-jax --config=configs/cnn.py                        train a run, or resume it
  mnist-jax --config=configs/cnn.py --config.epochs=3      override any field of configs/default.py
  mnist-jax --config=configs/cnn.py --config.optimizer.name=adam --config.optimizer.beta_1=0.95
                                                           select another part and set its fields
  mnist-jax --flagfile=flags.txt                           read flags from a file, one per line
  mnist-jax --processes=2 --config=configs/cnn.py          train in two processes, with the same result
  mnist-jax --mode=eval --workdir=runs/cnn                 evaluate a run
  mnist-jax --mode=report --workdir=runs/cnn               write a page with learning curves, errors and calibration
  mnist-jax --mode=predict --workdir=runs/cnn --input=digit.png
                                                           classify your own images
  mnist-jax --mode=predict --input=digit.png               the same with the model that comes with mnist_jax
  mnist-jax --mode=export --workdir=runs/cnn               export the model to StableHLO, and with --onnx to ONNX
  mnist-jax --mode=serve --workdir=runs/cnn                serve a page to draw on or to open images with
  mnist-jax --mode=eval --run='runs/cnn-*' --workdir=runs/ensemble
                                                           average the predictions of several runs
  mnist-jax --mode=compare --run='runs/*'                  compare finished runs
  mnist-jax --mode=stress --workdir=runs/cnn               measure the accuracy on corrupted images and under attack
  mnist-jax --mode=explore --config=configs/cnn.py         look at a dataset
  mnist-jax --mode=check --config=configs/cnn.py           check that a config can learn, and how long an epoch takes
  mnist-jax --mode=find_lr --config=configs/cnn.py         search for the learning rate
  mnist-jax --mode=sweep --config=configs/cnn.py --config.dataset.validation_fraction=0.1 --seeds=3 \
      --vary='optimizer.learning_rate=1e-4,1e-3,1e-2'      compare runs that differ in some fields
  mnist-jax --mode=summary --config=configs/cnn.py         print the layer table
  mnist-jax --mode=reproduce                               reproduce all published experiments

`mnist-jax` is the same as `python -m mnist_jax.main`."""
_OVERRIDES: dict[str, str | bool] = {}  # the fields that the command line sets; see `config.override_fields`
_OVERRIDE = re.compile(r'--?(no)?config\.([^=]*)(?:=(.*))?', re.DOTALL)
flags.DEFINE_string('config', None, "The experiment's config file; --config.FIELD=VALUE overrides a field")
flags.DEFINE_string(
    'mode',
    'train',
    'train (or resume), eval, report, predict, export, serve, compare, sweep, stress, explore, check, find_lr, summary '
    'or reproduce',
)
flags.DEFINE_string(
    'workdir',
    None,
    'train: the directory of the run, by default runs/<config name>; eval, report, export, stress: that of a run; with '
    '--run: where to write, by default runs/ensemble or runs/comparison; predict, serve: that of a run, by default '
    'the model that comes with mnist_jax; other modes: where to write, by default in runs/',
)
flags.DEFINE_string(
    'step',
    None,
    'eval, predict, serve, export: the checkpoint to use (best, latest or a step number); by default, the one that the '
    'run ended with',
)
flags.DEFINE_bool('report', True, 'train: write the report of the finished run')
flags.DEFINE_bool(
    'reschedule',
    False,
    'train: resume with another number of epochs even if the schedule depends on it, so that the learning rate jumps',
)
flags.DEFINE_string(
    'split', None, "eval: which split to evaluate, e.g. 'holdout' or 'test[:10%]'; the test split by default"
)
flags.DEFINE_multi_string(
    'input',
    [],
    "predict: an image, a directory of images, an IDX file, Kaggle's test.csv, or a pattern; may be repeated. "
    'eval: a directory of images, in directories named after the classes',
)
flags.DEFINE_string('output', None, 'predict: the .csv or .jsonl file to write; by default, prints a table')
flags.DEFINE_bool(
    'strict', False, 'predict: end with an error at the first file or image that would otherwise be skipped'
)
flags.DEFINE_string(
    'host', '127.0.0.1', 'serve: the address to listen on; 0.0.0.0 makes it reachable from other machines'
)
flags.DEFINE_integer('port', 8000, 'serve: the port to listen on; 0 for any free port')
flags.DEFINE_bool('onnx', False, 'export: write ONNX as well')
flags.DEFINE_multi_string(
    'run',
    [],
    "compare, report, stress: a workdir, or a pattern such as 'runs/cnn-*'; may be repeated. eval: the runs of an "
    'ensemble, which --workdir then holds',
)
flags.DEFINE_string('combine', 'probabilities', 'eval with --run: what is averaged, probabilities or logits')
flags.DEFINE_integer('shift', 0, 'eval with --run: average over shifts of the image by up to this many pixels')
flags.DEFINE_bool('flip', False, 'eval with --run: average over the image and its mirror image')
flags.DEFINE_integer('processes', None, 'train, eval: start this many processes on this machine')
flags.DEFINE_string('coordinator', None, 'train, eval on several hosts: host:port of process 0 (the coordinator)')
flags.DEFINE_integer('num_processes', None, 'train, eval on several hosts: the total number of processes')
flags.DEFINE_integer('process_id', None, 'train, eval on several hosts: the index of this process, from 0')
flags.DEFINE_integer('seeds', None, 'reproduce, sweep: the number of seeds; by default that of each experiment, and 1')
flags.DEFINE_string('sweep', None, 'sweep: a Python file with a function get_study(), which returns the study')
flags.DEFINE_multi_string(
    'vary',
    [],
    "sweep: a config field and its values, such as 'model.hidden=(64,),(128,)' or "
    "'optimizer.learning_rate=log_uniform(1e-4, 1e-2)'; may be repeated",
)
flags.DEFINE_string('search', 'grid', 'sweep: how points are chosen: grid, random, quasi_random or optuna')
flags.DEFINE_integer('trials', None, 'sweep: the number of points, each with all seeds; a grid tries all points')
flags.DEFINE_integer(
    'reduction', 0, 'sweep: train only the best 1/N of the points further in each round of successive halving; 0: all'
)
flags.DEFINE_integer(
    'workers',
    None,
    'sweep, train with config.population: the number of processes on this machine; by default one per core',
)
flags.DEFINE_list('experiments', [], 'reproduce: a comma-separated list of configs; all published by default')


def expand_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Replaces each --flagfile by the flags in the file, as absl reads it.

    A file has one flag per line. Blank lines and lines that start with # or // are skipped, and a line may be another
    --flagfile. If a flag is set several times, the last value counts, so --flagfile is best the first argument.

    Raises:
      UserError: a file cannot be read, or a value is quoted.
    """
    try:
        expanded = FLAGS.read_flags_from_files(arguments)
    except (flags.Error, UnicodeDecodeError) as error:
        reason = str(error).removeprefix('ERROR:: Unable to open flagfile: ')
        raise UserError(f'--flagfile must be a text file with one flag per line ({reason})') from None
    for argument in expanded:
        name, _, value = argument.partition('=')
        if argument.startswith('-') and re.fullmatch(r'"[^"]*"|\'[^\']*\'', value):
            raise UserError(
                f'{name} must not be in quotes, got {value}; no shell removes the quotes in a --flagfile, or quotes in '
                'quotes'
            )
    return expanded


def parse(argv: list[str]) -> Callable[[], int | None]:
    """Parses the command line, and returns the function to call, which returns an exit status or None.

    Args:
      argv: The name of the program and its arguments, from `expand_flagfiles`.

    Raises:
      UserError: a flag is unknown, invalid, empty, or not used by the chosen mode.
    """
    logging.use_absl_handler()
    if {'--help', '-help', '-h'} & set(argv[1:]):
        print(f'{USAGE}\n\n{FLAGS.module_help(sys.modules[__name__])}')
        sys.exit(0)
    arguments, overrides = _split_overrides(argv[1:])
    try:
        positional = FLAGS([argv[0], *arguments])[1:]
    except (flags.Error, ValueError) as error:  # absl raises a ValueError for --noreport=1.
        wrong = re.match(r'flag --(\w+)=(.*?): ', str(error), re.DOTALL)
        if wrong is None:
            raise UserError(str(error)) from None
        raise UserError(f'--{wrong[1]} must be of type {FLAGS[wrong[1]].flag_type()}, got {wrong[2]!r}') from None
    if positional:
        raise UserError(f'arguments must be flags, which start with --, got {positional[0]!r}')
    configure_logging()
    mode = choose('--mode', FLAGS.mode, MODES)
    for flag in map(FLAGS.__getitem__, FLAGS):  # also those of absl, which have no effect
        if not flag.present:
            continue
        if flag.value in ('', []) or (isinstance(flag.value, list) and '' in flag.value):
            raise UserError(f'--{flag.name} must not be empty; give a value, or omit the flag')
        if flag.name not in (*mode.flags, 'mode', 'flagfile'):
            reason = 'it uses the configs of the runs' if flag.name == 'config' else '--help says which mode uses it'
            raise UserError(f'--{flag.name} is not used by --mode={FLAGS.mode}; {reason}')
    _read_overrides(overrides)
    is_child = FLAGS.processes == 0 and FLAGS['process_id'].present  # see `_launch`
    return mode.run if FLAGS.processes is None or is_child else _launch


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | bool]]]:
    """Separates the flags that set config fields from the others.

    Returns:
      The other arguments; and the field and the value of each --config.FIELD=VALUE and --config.FIELD VALUE, with the
      value True for --config.FIELD alone and False for --noconfig.FIELD.
    """
    others: list[str] = []
    overrides: list[tuple[str, str | bool]] = []
    remaining = deque(arguments)
    while remaining:
        argument = remaining.popleft()
        if argument == '--':
            return [*others, argument, *remaining], overrides
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        no, field, text = match.groups()
        if no and text is not None:
            raise UserError(f'--noconfig.{field} must not have a value, got {text!r}')
        if text is None and not no and remaining and not re.match(r'--?[A-Za-z]|--$', remaining[0]):
            text = remaining.popleft()
        overrides.append((field, (not no) if text is None else text))
    return others, overrides


def _read_overrides(overrides: Sequence[tuple[str, str | bool]]) -> None:
    """Keeps the last value of each field for `_config`, and logs those that it replaces."""
    if overrides and FLAGS.config is None:
        raise UserError(f'--config.{overrides[0][0]} overrides a config field and needs --config=FILE')
    for field, text in overrides:
        if field in _OVERRIDES and _OVERRIDES[field] != text:
            logging.info('config    %s=%s replaces the earlier %s', field, text, _OVERRIDES[field])
        _OVERRIDES[field] = text


def _refuse_flags(names: Sequence[str], other: str) -> None:
    """Raises a UserError if one of the flags `names`, which must not be combined with `other`, is set."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f'--{name} must not be combined with {other}')


def _launch() -> int:
    """Starts this command in several processes on this machine; returns the exit status."""
    others = [name for name in PROCESS_FLAGS[1:] if FLAGS[name].present]
    if others:
        raise UserError(f'--processes starts all processes itself and must not be combined with --{others[0]}')
    if not 1 <= FLAGS.processes <= MAX_PROCESSES:
        raise UserError(f'--processes must be from 1 to {MAX_PROCESSES}, got {FLAGS.processes}')
    arguments = [argument for argument in sys.argv[1:] if argument != '--']  # Flags after it would not be flags.
    return launch_processes([*arguments, '--processes=0'], FLAGS.processes, [sys.executable, *program()[1:]])


def train() -> int:
    """Trains the run of --config in --workdir, or resumes it; returns the exit status."""
    from mnist_jax.studies.cross_validation import cross_validate
    from mnist_jax.studies.population import train_population
    from mnist_jax.train import train as train_run

    config = _config()
    check_config(config)  # Report invalid fields before the processes connect.
    workdir = _workdir(Path(FLAGS.config).stem)
    report = ('report',) if FLAGS.report else ()  # --noreport goes with everything.
    if config.population:
        _refuse_flags(('reschedule', *report, *PROCESS_FLAGS), '--config.population')
        return train_population(config, workdir, FLAGS.workers, sys.argv[1:])
    if FLAGS['workers'].present:
        raise UserError('--workers needs --config.population, the number of runs, or --mode=sweep')
    cross_validates = config.folds and not config.fold
    if cross_validates:
        _refuse_flags(report, '--config.folds; --mode=report writes that of one fold')
    with _connected():
        if cross_validates:
            cross_validate(config, workdir, FLAGS.reschedule)
        else:
            train_run(config, workdir, report=FLAGS.report, reschedule=FLAGS.reschedule)
    return 0


def evaluate() -> None:
    """Evaluates a checkpoint of --workdir."""
    from mnist_jax.evaluate import evaluate_folder, evaluate_workdir
    from mnist_jax.workdir.finished_runs import ENSEMBLE_FILE

    if FLAGS.run:
        _evaluate_ensemble()
        return
    for name in ('combine', 'shift', 'flip'):
        if FLAGS[name].present:
            raise UserError(f'--{name} needs --run, which makes an ensemble, of one run or several')
    workdir = _run_directory()
    if FLAGS.input:
        if FLAGS.split is not None or len(FLAGS.input) > 1:
            raise UserError('--mode=eval takes one --input, a directory of images by class, and no --split with it')
        _refuse_flags(PROCESS_FLAGS, '--input')
        evaluate_folder(workdir, FLAGS.input[0], FLAGS.step)
        return
    if (workdir / ENSEMBLE_FILE).is_file():
        _refuse_flags(PROCESS_FLAGS, 'the --workdir of an ensemble')
    with _connected():
        evaluate_workdir(workdir, FLAGS.step, FLAGS.split)


def _evaluate_ensemble() -> None:
    """Evaluates every --run together, and keeps the ensemble in --workdir."""
    from mnist_jax.evaluate import evaluate_ensemble
    from mnist_jax.inference.ensemble import Ensemble, Views
    from mnist_jax.workdir.checkpoints import check_holds_only
    from mnist_jax.workdir.finished_runs import find_runs

    _refuse_flags(('input', *PROCESS_FLAGS), '--run, which makes an ensemble')
    workdir = _workdir('ensemble')
    if (workdir / 'config.json').is_file():
        raise UserError(f'--workdir must be another directory than that of a run, got {str(workdir)!r}')
    check_holds_only(workdir, 'an ensemble')
    views = Views(FLAGS.shift, FLAGS.flip)
    model = Ensemble.load_runs(workdir, find_runs(FLAGS.run), FLAGS.step, FLAGS.combine, views)
    evaluate_ensemble(model, FLAGS.split)


def report() -> None:
    """Writes the report of --workdir, or a comparison of every --run."""
    from mnist_jax.inference.restored import RestoredModel, open_workdir
    from mnist_jax.report.comparison_page import compare_runs
    from mnist_jax.report.run_page import write_report

    if FLAGS.run:
        print(compare_runs(FLAGS.run, _workdir('comparison')))
    else:
        workdir = _run_directory()
        open_workdir(workdir)  # A report needs more than the weights that `RestoredModel.load` accepts.
        print(write_report(RestoredModel.load(workdir)))


def predict() -> int:
    """Classifies every --input; returns the exit status."""
    from mnist_jax.inference.predict import predict as predict_inputs

    if not FLAGS.input:
        raise UserError("--mode=predict needs --input: an image, a directory, an IDX file or Kaggle's test.csv")
    return predict_inputs(_run_or_packaged(), FLAGS.input, FLAGS.output, FLAGS.step, FLAGS.strict)


def export() -> None:
    """Exports the model of --workdir."""
    from mnist_jax.inference.export import export as export_model

    export_model(_run_directory(), FLAGS.step, FLAGS.onnx)


def serve() -> None:
    """Serves the page for drawing digits."""
    from mnist_jax.inference.server import serve as serve_page

    serve_page(_run_or_packaged(), FLAGS.host, FLAGS.port, FLAGS.step)


def summary() -> None:
    """Prints the layer table of --config."""
    from mnist_jax.training.plan import model_summary

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
    from mnist_jax.studies.label_audit import audit_config, audit_labels

    config = _config()
    check_config(config)
    if config.folds:
        audit_config(config)  # Report invalid fields before anything is written.
    workdir = _workdir(f'explore-{config.dataset.name}')
    explore_data(config, workdir)
    if config.folds:
        audit_labels(config, workdir)


def stress() -> None:
    """Measures --workdir, or every --run, on corrupted images."""
    from mnist_jax.studies.stress import stress as stress_runs

    if FLAGS.run:
        stress_runs(FLAGS.run, _workdir('comparison'))
    else:
        workdir = _run_directory()
        check_directory(workdir, '--workdir', 'the directory of a run')
        stress_runs([str(workdir)], workdir)


def check() -> int:
    """Trains on one batch of --config again and again; returns the exit status."""
    from mnist_jax.studies.trial_steps import check as check_config_learns

    return check_config_learns(_config())


def find_lr() -> None:
    """Searches for the learning rate of --config."""
    from mnist_jax.studies.trial_steps import find_learning_rate

    config = _config()
    find_learning_rate(config, _workdir(f'find_lr-{Path(FLAGS.config).stem}'))


def sweep() -> int:
    """Trains the trials of a study, or joins the workers that do; returns the exit status."""
    from mnist_jax.studies.study import read_study
    from mnist_jax.studies.sweep import Sweep, run_sweep

    if FLAGS.config is None and FLAGS.workdir is not None:
        for name in STUDY_FLAGS:
            if FLAGS[name].present:
                raise UserError(f'--{name} needs --config; without it, the study in --workdir is resumed as it is')
        workdir = _run_directory()
        study, config = read_study(workdir)
    else:
        workdir, study, config = _workdir(f'sweep-{Path(FLAGS.config or "").stem}'), _study(), _config()
    return run_sweep(Sweep(study, config, workdir), FLAGS.workers, sys.argv[1:])


def _study() -> 'Study':
    """Returns the study that --sweep or --vary describes."""
    from mnist_jax.studies.space import parse_domain
    from mnist_jax.studies.study import Study, load_study

    if FLAGS.sweep is not None:
        for name in STUDY_FLAGS[1:]:
            if FLAGS[name].present:
                raise UserError(f'--{name} must not be combined with --sweep, whose file describes the whole study')
        return load_study(FLAGS.sweep)
    fields: dict[str, str] = {}
    for text in FLAGS.vary:
        field, _, values = text.partition('=')
        if field in fields or not field:
            problem = f'{field!r} twice' if field else repr(text)
            raise UserError(f'each --vary must be FIELD=VALUES, with another field than the others, got {problem}')
        fields[field] = values
    search = {'name': FLAGS.search, **({} if FLAGS.trials is None else {'trials': FLAGS.trials})}
    return Study(
        vary={field: parse_domain(field, text) for field, text in fields.items()},
        search=search,
        seeds=1 if FLAGS.seeds is None else FLAGS.seeds,
        reduction=FLAGS.reduction,
    )


def reproduce() -> None:
    """Trains every published experiment, and compares the results."""
    from mnist_jax.studies.reproduction import reproduce as reproduce_experiments

    reproduce_experiments(FLAGS.experiments, FLAGS.seeds, _workdir('reproduce'))


class Mode(NamedTuple):
    """A --mode: its function, and the flags that it uses."""

    run: Callable[[], int | None]
    flags: tuple[str, ...]


STUDY_FLAGS = ('sweep', 'vary', 'search', 'trials', 'seeds', 'reduction')
PROCESS_FLAGS = ('processes', 'coordinator', 'num_processes', 'process_id')
MODES = {
    'train': Mode(train, ('config', 'workdir', 'report', 'reschedule', 'workers', *PROCESS_FLAGS)),
    'eval': Mode(evaluate, ('workdir', 'step', 'split', 'input', 'run', 'combine', 'shift', 'flip', *PROCESS_FLAGS)),
    'report': Mode(report, ('workdir', 'run')),
    'predict': Mode(predict, ('workdir', 'input', 'output', 'step', 'strict')),
    'export': Mode(export, ('workdir', 'step', 'onnx')),
    'serve': Mode(serve, ('workdir', 'step', 'host', 'port')),
    'summary': Mode(summary, ('config',)),
    'compare': Mode(compare, ('run',)),
    'stress': Mode(stress, ('workdir', 'run')),
    'explore': Mode(explore, ('config', 'workdir')),
    'check': Mode(check, ('config',)),
    'find_lr': Mode(find_lr, ('config', 'workdir')),
    'sweep': Mode(sweep, ('config', 'workdir', *STUDY_FLAGS, 'workers')),
    'reproduce': Mode(reproduce, ('workdir', 'seeds', 'experiments')),
}


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Connects the processes of the run, if there are several."""
    from mnist_jax.distributed import processes

    processes.connect(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    yield
    processes.disconnect()  # Not after a failure: the other processes may be gone.


def _config() -> ConfigDict:
    """Loads --config, and sets the fields that the command line overrides."""
    if FLAGS.config is None:
        raise UserError('--config is missing; for example --config=configs/cnn.py')
    config = load_config(FLAGS.config)
    for line in override_fields(config, _OVERRIDES, _sections):
        logging.info('%s', line)
    return config


def _sections() -> Mapping[str, Section]:
    from mnist_jax.workdir.config_sections import SECTIONS

    return SECTIONS


def _workdir(name: str) -> Path:
    return user_path(FLAGS.workdir or f'runs/{name}', '--workdir')


def _run_or_packaged() -> Path:
    """Returns --workdir, by default the directory of the model that comes with the package."""
    from mnist_jax.inference import packaged

    if FLAGS.workdir is not None:
        return _run_directory()
    if FLAGS.step is not None:
        raise UserError(f'--step needs --workdir; the model that comes with mnist_jax has no steps, got {FLAGS.step!r}')
    return packaged.PACKAGED


def _run_directory() -> Path:
    if FLAGS.workdir is None:
        raise UserError(f'--mode={FLAGS.mode} needs --workdir, the directory of a run')
    return user_path(FLAGS.workdir, '--workdir')
