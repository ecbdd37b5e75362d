"""The command line: flags, start-up, and the choice of the mode."""

import re
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mnist_jax import config as configs
from mnist_jax import monitor
from mnist_jax.errors import UserError, choose

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, "The experiment's config file; --config.FIELD=VALUE overrides"
)
_MODE = flags.DEFINE_string('mode', 'train', 'train (or resume), eval, or summary (the layer table)')
_WORKDIR = flags.DEFINE_string('workdir', None, "Where the run lives; 'runs/<config name>' if not given")

_STEP = flags.DEFINE_string(
    'step', None, "Which checkpoint to evaluate: best, latest or a step; the run's result if not given"
)


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags as absl does, but tell what is wrong with the config in one line."""
    joined = '\n'.join(argv)
    paths = re.findall(r'^--?config[=\n](.*)$', joined, re.MULTILINE)
    overrides = re.findall(r'^--?(?:no)?config\.([\w.]+)', joined, re.MULTILINE)
    if overrides and not paths:
        raise UserError(f'--config.{overrides[0]} overrides a field of a config; give --config=FILE too')
    values = configs.check_fields(configs.load(paths[-1]), overrides) if paths else {}
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        wrong = [name for name in overrides if f'--config.{name}' in str(error)]
        if not wrong:
            return app.parse_flags_with_usage(argv)
        raise UserError(f'{" ".join(str(error).split())}; its type is {type(values[wrong[0]]).__name__}') from None


def _train() -> None:
    from mnist_jax.train import train

    train(_config(), Path(_WORKDIR.value or f'runs/{Path(flags.FLAGS["config"].config_filename).stem}'))


def _eval() -> None:
    from mnist_jax.evaluate import evaluate_workdir

    if _WORKDIR.value is None or _CONFIG.value is not None:
        raise UserError('--mode=eval needs --workdir, the directory of a run, and no --config: the run has its own')
    evaluate_workdir(Path(_WORKDIR.value), _STEP.value)


def _summary() -> None:
    from mnist_jax.experiment import layer_table

    print(layer_table(_config()))


def _config() -> configs.ConfigDict:
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/cnn.py')
    return _CONFIG.value


MODES = {'train': _train, 'eval': _eval, 'summary': _summary}


def main(argv: list[str]) -> None:
    """Run the chosen mode."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]!r} is not a flag; flags begin with --')
    monitor.configure_logging()
    choose('--mode', _MODE.value, MODES)()


if __name__ == '__main__':
    try:
        app.run(main, flags_parser=_parse)
    except (UserError, FloatingPointError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
