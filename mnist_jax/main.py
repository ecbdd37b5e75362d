"""The command line: flags, start-up, and the choice of the mode."""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mnist_jax import config as configs
from mnist_jax import monitor
from mnist_jax.errors import UserError, choose

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, "The experiment's config file; --config.FIELD=VALUE overrides"
)
flags.DEFINE_string(
    'mode',
    'train',
    'train (or resume), eval, compare (runs), explore (a data set), reproduce (all published experiments), or summary '
    '(the layer table)',
)
flags.DEFINE_string('workdir', None, "Where the run lives; 'runs/<config name>' if not given")
flags.DEFINE_string('step', None, "eval: which checkpoint: best, latest or a step; the run's result if not given")
flags.DEFINE_string('split', None, "eval: which split, as 'holdout' or 'test[:10%]'; the config's test if not given")
flags.DEFINE_multi_string('run', [], "compare: a workdir, or a pattern such as 'runs/cnn-*'; may be repeated")
flags.DEFINE_integer('seeds', 3, 'reproduce: how many seeds')
flags.DEFINE_list('experiments', [], 'reproduce: the names of some configs, comma-separated; all if not given')


def _train() -> None:
    from mnist_jax.crossvalidate import cross_validate
    from mnist_jax.train import train

    config = _config()
    run = cross_validate if config.folds and not config.fold else train
    run(config, _workdir(Path(FLAGS['config'].config_filename).stem))


def _eval() -> None:
    from mnist_jax.evaluate import evaluate_workdir

    if FLAGS.workdir is None or _CONFIG.value is not None:
        raise UserError('--mode=eval needs --workdir, the directory of a run, and no --config: the run has its own')
    evaluate_workdir(Path(FLAGS.workdir), FLAGS.step, FLAGS.split)


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


def _config() -> configs.ConfigDict:
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/cnn.py')
    return _CONFIG.value


def _workdir(name: str) -> Path:
    return Path(FLAGS.workdir or f'runs/{name}')


MODES = {
    'train': _train,
    'eval': _eval,
    'summary': _summary,
    'compare': _compare,
    'explore': _explore,
    'reproduce': _reproduce,
}


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags as absl does, but tell what is wrong with the config in one line."""
    overridden = configs.check_arguments(argv)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        wrong = [name for name in overridden if f'--config.{name}' in str(error)]
        if not wrong:
            return app.parse_flags_with_usage(argv)
        kind = type(overridden[wrong[0]]).__name__
        raise UserError(f'{" ".join(str(error).split())}; its type is {kind}') from None


def main(argv: list[str]) -> None:
    """Run the chosen mode."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]!r} is not a flag; flags begin with --')
    monitor.configure_logging()
    choose('--mode', FLAGS.mode, MODES)()


if __name__ == '__main__':
    try:
        app.run(main, flags_parser=_parse)
    except (UserError, FloatingPointError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
