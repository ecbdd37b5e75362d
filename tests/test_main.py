"""The command line, run as a process: what it prints and how it ends."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from digit_images import draw_digit, font_paths

TINY = ('--config.dataset.train=train[:300]', '--config.dataset.test=test[:200]', '--config.batch_size=100')


def config_flag(name):
    return f'--config={ROOT}/configs/{name}.py'


def test_train_and_evaluate(program, tmp_path):
    arguments = ('--config=configs/mlp.py', *TINY, '--config.epochs=1', '--config.model.hidden=(16,)')
    training = program(*arguments, check=True)
    lines = [line.split(' ', 1)[1] for line in training.stderr.splitlines()]
    # Only lines of this program, each prefixed with the time of day; no warnings from libraries.
    for start in (
        'devices   1 (CPU, virtual)',
        'dataset   mnist: train 300, test 200',
        'workdir   runs/mlp',
        'epoch 1/1  loss',
    ):
        assert any(line.startswith(start) for line in lines), start
    assert all('arning' not in line for line in lines) and '\r' not in training.stderr
    command = '  python -m mnist_jax.main --mode=eval --workdir=runs/mlp'
    assert lines[-2:] == [command, 'Report: runs/mlp/report/index.html']
    written = (tmp_path / 'runs' / 'mlp' / 'eval.json').read_bytes()
    evaluation = program(*command.split()[3:], check=True)
    assert (tmp_path / 'runs' / 'mlp' / 'eval.json').read_bytes() == written
    assert evaluation.stdout == training.stdout
    assert f'accuracy   {json.loads(written)["accuracy"]:.4f} (95% confidence interval' in evaluation.stdout


def test_summary_prints_the_layer_table_and_nothing_else(forked):
    finished = forked(config_flag('cnn'), '--mode=summary')
    assert finished.stdout.splitlines()[-1].startswith('parameters: 224,394 (trainable 224,394, not trainable 0)')
    assert finished.stderr == ''


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('cnn', '--config.model.name=cmn'), "'cmn' (did you mean 'cnn'?)"),
        (('cnn', '--config.optimizer.name=rmsprob'), "rmsprop, sgd, got 'rmsprob' (did you mean 'rmsprop'?)"),
        (
            ('cnn', '--config.dataset.name=mnits'),
            "mnist, npz, parquet, svhn_cropped, tfds, got 'mnits' (did you mean 'mnist'?)",
        ),
        (
            ('cnn', '--config.loss.name=mse'),
            "loss.name must be one of cross_entropy, focal, mean_squared_error, got 'mse'",
        ),
        (
            ('cnn', '--config.epoch=3'),
            "config.epoch is not a field (did you mean 'epochs'?); the fields are: augmentation, batch_size,",
        ),
        (
            ('cnn', '--config.model.name=mlp', '--config.model.stages=((8,),)'),
            "config.model.stages is not a field for 'mlp'; the fields are: activation, dropout, hidden",
        ),
        (
            ('cnn', '--config.optimizer.name=adam', '--config.optimizer.rho=0.5'),
            "config.optimizer.rho is not a field for 'adam'; the fields are: accumulate, beta_1, beta_2, ",
        ),
        (('cnn', '--config.model=mlp'), 'config.model is a section: set its fields, for example --config.model.name='),
        (('cnn', '--config.epochs'), '--config.epochs needs a value: --config.epochs=VALUE, of type int'),
        (('cnn', '--noconfig.model.batch_norm=1'), "--noconfig.model.batch_norm must not have a value, got '1'"),
        (('cnn', '--config.dataset.data_dir=None'), "data_dir must be of type str, got None; use '' for none"),
        (('cnn', '--noreport=1'), '--noreport=1 does not take an argument'),
        (('cnn', "--workdir='runs/x'"), "--workdir must not be in quotes, got 'runs/x'; no shell removes the quotes"),
        (('cnn', '--mode=compare', '--run=x'), '--config is not used by --mode=compare; it uses the configs of the'),
        (('cnn', '--mode=summary', '--workdir=x'), '--workdir is not used by --mode=summary'),
        (('--flagfile=nothing',), "one flag per line ([Errno 2] No such file or directory: 'nothing')"),
        (('--flagfile=empty',), "one flag per line ([Errno 21] Is a directory: 'empty')"),
        (('cnn', '--workdir=gs://bucket/run'), "--workdir must be a local path, got 'gs://bucket/run'; mount the"),
        (('cnn', '--config.dataset.data_dir=gs://bucket'), "dataset.data_dir must be a local path, got 'gs://bucket'"),
        (('cnn', '--config.dataset.raw_dir=s3://bucket'), "dataset.raw_dir must be a local path, got 's3://bucket'"),
        (('--config=gs://bucket/cnn.py',), "the config file must be a local path, got 'gs://bucket/cnn.py'"),
        (('--mode=eval', '--workdir=gs://bucket'), "--workdir must be a local path, got 'gs://bucket'"),
        (('--mode=compare', '--run=gs://bucket/*'), "--run must be a local path, got 'gs://bucket/*'"),
        (('--mode=predict', '--workdir=file', '--input=s3://b/a.png'), "--input must be a local path, got 's3://b/a"),
        (
            ('--mode=predict', '--workdir=file', '--input=file', '--output=gs://b/a.csv'),
            "--output must be a local path, got 'gs://b/a.csv'",
        ),
        (('cnn', '--workdir=~nobody-here/x'), '--workdir must not start with ~ unless it names a home directory, got'),
        (('cnn', '--config.epochs=many'), "--config.epochs must be of type int, got 'many'"),
        (('cnn', '--config.model.batch_norm=maybe'), "--config.model.batch_norm must be of type bool, got 'maybe'"),
        (('cnn', '--config.batch_size=0'), 'config.batch_size must be an integer from 1 to 2147483647, got 0'),
        (
            ('cnn', '--config.batch_size=60001'),
            "must be at most the number of training examples, 60,000 (config.dataset.train='train'), got 60001",
        ),
        (
            ('cnn', '--config.devices=99'),
            'config.devices must be from 1 to 8 (virtual devices on the CPU), or 0 for automatic, got 99',
        ),
        (
            ('cnn', '--config.model.padding=valid', '--config.model.pool=(28,28)'),
            'the model does not fit images of shape (28, 28, 1): no pixels are left',
        ),
        (('cnn', '--config.epochs=-1'), 'config.epochs must be an integer from 0 to 2147483647, got -1'),
        (('nothing',), 'does not exist; configs/cnn.py is an example'),
        (('cnn', '--workdir=file'), "--workdir must be a directory, but 'file' or one of its parents is a file"),
        (('cnn', '--workdir=/proc/nowhere'), "--workdir must be a writable directory, got '/proc/nowhere'"),
        (('cnn', '--config.dataset.data_dir=new', '--config.dataset.raw_dir=empty'), 'raw file train-images'),
        (('cnn', '--mode=evaluate'), '--mode must be one of check, compare, eval, explore, export,'),
        (('cnn', 'stray'), "arguments must be flags, which start with --, got 'stray'"),
        (('cnn', '--processes=65'), '--processes must be from 1 to 64, got 65'),
        (
            ('cnn', '--processes=2', '--process_id=0'),
            '--processes starts all processes itself and must not be combined',
        ),
        ((), '--config is missing; for example --config=configs/cnn.py'),
        (('--config.epochs=1',), '--config.epochs overrides a config field and needs --config=FILE'),
        (('--mode=eval',), '--mode=eval needs --workdir'),
        (('--mode=eval', '--workdir=nowhere'), "--workdir must be the directory of a run, got 'nowhere'"),
        (('--mode=eval', '--workdir=file'), "--workdir must be the directory of a run, got 'file'"),
        (('--mode=eval', '--workdir=study'), "must be the directory of a run, got 'study', which holds a study"),
        (('cnn', '--verbosity=1'), '--verbosity is not used by --mode=train'),
        (('--mode=predict', '--input=file', '--output=file/a.csv'), 'the parent of --output must be a directory, but '),
        (('--mode=eval', '--workdir=empty'), "got 'empty', which contains no config.json"),
        (('--mode=eval', '--workdir='), '--workdir must not be empty; give a value, or omit the flag'),
        (('--mode=compare',), '--mode=compare needs --run'),
        (('--mode=compare', '--run=runs/*'), "a pattern of workdirs such as 'runs/cnn-*', got 'runs/*'"),
        (('--mode=compare', '--step=best'), '--step is not used by --mode=compare'),
        (('--mode=reproduce', '--seeds=abc'), "--seeds must be of type int, got 'abc'"),
        (
            ('cnn', "--config.augmentation={{'name': 'flip'}}"),
            '--config.augmentation must be a tuple, such as (64, 32), ',
        ),
        (('--wrokdir=x',), "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(forked, tmp_path, arguments, message):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'study').mkdir()
    (tmp_path / 'study' / 'study.json').write_text('{}')
    if arguments and not arguments[0].startswith('-'):
        arguments = (config_flag(arguments[0]), *arguments[1:])
    finished = forked(*arguments)
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 2, finished.stderr
    assert last.startswith('error: ') and message in last
    assert 'Traceback' not in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} - {'new'} == {'file', 'empty', 'study'}
    assert not list(tmp_path.rglob('*.array_record*'))


UNEXPECTED = """
import errno, os
from mnist_jax import commands, main
from mnist_jax.errors import NonFiniteError, WriteError

errors = {
    'FloatingPointError': FloatingPointError('invalid value (nan) encountered in mul'),
    'FileNotFoundError': FileNotFoundError(errno.ENOENT, 'No such file or directory', 'template.html'),
    'ConnectionResetError': ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer'),
    'NonFiniteError': NonFiniteError('the loss of step 2 is nan'),
    'WriteError': WriteError(errno.ENOENT, 'No such file or directory', 'eval.json'),
    'full disk': OSError(errno.ENOSPC, 'No space left on device', 'eval.json'),
    'PermissionError': PermissionError(errno.EACCES, 'Permission denied', '/root/x'),
}


def command():
    raise errors[name]


commands.parse = lambda argv: command
for name in errors:
    child = os.fork()  # Importing everything again for each error would take seconds.
    if child == 0:
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), 2)
        main.main()
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=':', flush=True)
"""


def test_an_unexpected_error_keeps_its_traceback(tmp_path):
    finished = subprocess.run([sys.executable, '-c', UNEXPECTED], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    expected = {
        'FloatingPointError': (1, None),
        'FileNotFoundError': (1, None),
        'ConnectionResetError': (1, None),
        'NonFiniteError': (1, 'the loss of step 2 is nan'),
        'WriteError': (1, "[Errno 2] No such file or directory: 'eval.json'"),
        'full disk': (1, "[Errno 28] No space left on device: 'eval.json'"),
        'PermissionError': (2, "[Errno 13] Permission denied: '/root/x'"),
    }
    assert finished.stdout.splitlines() == [f'{name}:{status}' for name, (status, _) in expected.items()]
    for name, (_, line) in expected.items():
        stderr = (tmp_path / name).read_text()
        if line is None:
            assert stderr.startswith('Traceback') and ', in command\n' in stderr, name
        else:
            assert stderr == f'error: {line}\n'


def test_a_full_standard_error_does_not_change_the_exit_status():
    with open('/dev/full', 'w') as full:
        command = [sys.executable, '-m', 'mnist_jax.main', '--config=configs/nothing.py']
        assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=full).returncode == 2


def test_a_full_standard_output_is_an_error_in_one_line():
    variables = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    with open('/dev/full', 'w') as full:
        command = [sys.executable, '-m', 'mnist_jax.main', '--help']
        finished = subprocess.run(command, cwd=ROOT, env=variables, stdout=full, stderr=subprocess.PIPE, text=True)
    assert finished.returncode == 1
    assert finished.stderr == 'error: standard output cannot be written: No space left on device\n'


def test_names_that_the_encoding_of_the_terminal_lacks_are_escaped(program, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    draw_digit(font_paths()[0], 7, 60, dark=True).save(tmp_path / 'sieben-é.png')
    finished = program('--mode=predict', '--input=sieben-é.png')
    assert finished.returncode == 0, finished.stderr
    assert 'sieben-\\xe9.png' in finished.stdout


def test_jax_debug_nans_shows_where_the_nan_is(program, monkeypatch):
    monkeypatch.setenv('JAX_DEBUG_NANS', '1')
    diverging = ('--config.model.hidden=(8,)', '--config.optimizer.learning_rate=1e38', '--config.epochs=1')
    finished = program('--config=configs/mlp.py', *TINY, *diverging, '--noreport')
    assert finished.returncode == 1
    assert 'Traceback' in finished.stderr and 'FloatingPointError: Invalid value (nan)' in finished.stderr
    assert 'mnist_jax/learning/step.py' in finished.stderr


def test_help_is_not_an_error(program):
    finished = program('--help', check=True)
    assert '--mode=compare' in finished.stdout and '--workdir:' in finished.stdout and finished.stderr == ''


def parameters_of(finished):
    """Returns the number of parameters in the layer table that --mode=summary prints."""
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout.splitlines()[-1].split()[1].replace(',', ''))


def test_a_flagfile_is_read_like_the_command_line(forked, tmp_path):
    (tmp_path / 'flags.txt').write_text('# a comment\n\n--flagfile=base.txt\n// another\n--config.model.hidden=(16,)\n')
    (tmp_path / 'base.txt').write_text('--config=configs/mlp.py\n--mode=summary\n--config.model.hidden=(512,)\n')
    # Weights and biases of two dense layers; the last value counts, wherever it is.
    assert parameters_of(forked('--flagfile=flags.txt')) == 784 * 16 + 16 + 16 * 10 + 10
    override = '--config.model.hidden=(8,)'
    assert parameters_of(forked('--flagfile=flags.txt', override)) == 784 * 8 + 8 + 8 * 10 + 10
    assert parameters_of(forked('--flagfile', 'flags.txt', override)) == 784 * 8 + 8 + 8 * 10 + 10
    assert parameters_of(forked(override, '--flagfile=flags.txt')) == 784 * 16 + 16 + 16 * 10 + 10
    (tmp_path / 'cnn.txt').write_text('--config=configs/cnn.py\n')
    assert parameters_of(forked('--flagfile=flags.txt', '--flagfile=cnn.txt', override)) > 10_000


def test_a_wrong_flag_in_a_flagfile_is_one_line(forked, tmp_path):
    for line, message in (
        ('--config.epoch=1', "config.epoch is not a field (did you mean 'epochs'?)"),
        ('--config.epochs 1', "config.epochs 1 is not a field (did you mean 'epochs'?)"),
        ('--wrokdir=x', "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
        ('--processes=65', '--processes must be from 1 to 64, got 65'),
        ("--config.dataset.train='train[:9]'", "--config.dataset.train must not be in quotes, got 'train[:9]'"),
    ):
        (tmp_path / 'flags.txt').write_text(f'--config=configs/mlp.py\n{line}\n')
        finished = forked('--flagfile=flags.txt')
        assert finished.returncode == 2 and message in finished.stderr
        assert len(finished.stderr.splitlines()) == 1


def test_processes_in_a_flagfile_start_and_report_an_error_once(program, tmp_path):
    (tmp_path / 'flags.txt').write_text('--config=configs/mlp.py\n--processes=2\n--config.batch_size=0\n')
    finished = program('--flagfile=flags.txt')
    assert finished.returncode == 2
    assert finished.stderr == 'error: config.batch_size must be an integer from 1 to 2147483647, got 0\n'


def test_a_run_records_the_flags_of_its_flagfile_and_the_fields_of_its_parts(forked, tmp_path):
    flags = ('--config=configs/mlp.py', *TINY, '--config.epochs=0', '--noreport', '--workdir=run')
    (tmp_path / 'flags.txt').write_text('\n'.join(flags))
    finished = forked('--flagfile=flags.txt', '--config.optimizer.beta_1=0.8', '--config.optimizer.name=adam')
    assert finished.returncode == 0, finished.stderr
    (start,) = json.loads((tmp_path / 'run' / 'provenance.json').read_text())
    assert shlex.split(start['command'])[3:-2] == list(flags)
    optimizer = json.loads((tmp_path / 'run' / 'config.json').read_text())['optimizer']
    shared = {'learning_rate': 0.001, 'clip_norm': 0.0, 'clip_value': 0.0, 'sam_radius': 0.0, 'accumulate': 1}
    assert optimizer == {'name': 'adam', **shared, 'beta_1': 0.8}


def test_the_flags_of_a_part_follow_its_name(forked):
    finished = forked(
        '--config=configs/cnn.py', '--mode=summary', '--config.model.hidden=64', '--config.model.name', 'mlp',
        '--config.schedule.warmup=1', '--config.schedule.name=cosine', '--config.model.hidden=32',
    )  # fmt: skip
    assert parameters_of(finished) == 784 * 32 + 32 + 32 * 10 + 10
    assert [line.split(' ', 1)[1] for line in finished.stderr.splitlines()] == [
        'config    model.hidden=32 replaces the earlier 64',
        "model     mlp; defaults: dropout=(), activation='relu'",
        'schedule  cosine; defaults: final=0.0',
    ]


def test_another_dataset_keeps_the_splits_of_the_config(forked):
    fraction = ('--config.dataset.name=digits', '--config.dataset.validation_fraction=0.1')
    finished = forked(config_flag('kaggle_mlp'), '--mode=summary', *fraction)
    message = (
        'config.dataset.validation and config.dataset.validation_fraction must not both select the validation examples'
    )
    assert message in finished.stderr
