"""The command line, run as a process: what it prints and how it ends."""

import json

import pytest
from conftest import ROOT

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


def test_summary_prints_the_layer_table_and_nothing_else(program):
    finished = program(config_flag('cnn'), '--mode=summary', check=True)
    assert finished.stdout.splitlines()[-1].startswith('parameters: 224,394 (trainable 224,394, not trainable 0)')
    assert finished.stderr == ''


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('cnn', '--config.model.name=cmn'), "model.name must be one of cnn, mlp, got 'cmn' (did you mean 'cnn'?)"),
        (('cnn', '--config.optimizer.name=rmsprob'), "rmsprop, sgd, got 'rmsprob' (did you mean 'rmsprop'?)"),
        (
            ('cnn', '--config.dataset.name=mnits'),
            "must be one of digits, fashion_mnist, kaggle_digits, mnist, got 'mnits' (did you mean 'mnist'?)",
        ),
        (('cnn', '--config.loss.name=mse'), "loss.name must be one of cross_entropy, mean_squared_error, got 'mse'"),
        (
            ('cnn', '--config.epoch=3'),
            "config.epoch is not a field (did you mean 'epochs'?); the fields are: batch_size,",
        ),
        (('cnn', '--config.model.name=mlp'), "model.stages are not fields for 'mlp'; the fields are: dropout, hidden"),
        (('cnn', '--config.epochs=many'), "--config.epochs must be of type int, got 'many'"),
        (('cnn', '--config.model.batch_norm=maybe'), "--config.model.batch_norm must be of type bool, got 'maybe'"),
        (('cnn', '--config.batch_size=0'), 'config.batch_size must be an integer from 1 to 2147483647, got 0'),
        (
            ('cnn', '--config.batch_size=60001'),
            "batch_size must be at most the number of training examples, 60,000 (dataset.train='train'), got 60001",
        ),
        (
            ('cnn', '--config.devices=99'),
            'config.devices must be from 1 to 8 (virtual devices on the CPU), or 0 for automatic, got 99',
        ),
        (('cnn', '--config.epochs=-1'), 'config.epochs must be an integer from 0 to 2147483647, got -1'),
        (('nothing',), 'does not exist; configs/cnn.py is an example'),
        (('cnn', '--workdir=file'), "--workdir must be a directory, but 'file' or one of its parents is a file"),
        (('cnn', '--workdir=/proc/nowhere'), "--workdir must be a writable directory, got '/proc/nowhere'"),
        (('cnn', '--config.dataset.data_dir=new', '--config.dataset.raw_dir=empty'), 'raw file train-images'),
        (('cnn', '--mode=evaluate'), '--mode must be one of compare, eval, explore, export, predict,'),
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
        (('--mode=eval', '--workdir=empty'), "got 'empty', which contains no config.json"),
        (('--mode=eval', '--workdir='), '--workdir must not be empty; give a value, or omit the flag'),
        (('--mode=compare',), '--mode=compare needs --run'),
        (('--mode=compare', '--run=runs/*'), "a pattern of workdirs such as 'runs/cnn-*', got 'runs/*'"),
        (('--mode=compare', '--step=best'), '--step is not used by --mode=compare'),
        (('--mode=reproduce', '--seeds=abc'), "--seeds must be of type int, got 'abc'"),
        (('--wrokdir=x',), "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(forked, tmp_path, arguments, message):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    if arguments and not arguments[0].startswith('-'):
        arguments = (config_flag(arguments[0]), *arguments[1:])
    finished = forked(*arguments)
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 2, finished.stderr
    assert last.startswith('error: ') and message in last
    assert 'Traceback' not in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} - {'new'} == {'file', 'empty'}
    assert not list(tmp_path.rglob('*.array_record*'))


def test_help_is_not_an_error(program):
    finished = program('--help', check=True)
    assert '--mode=compare' in finished.stdout and '--workdir:' in finished.stdout and finished.stderr == ''
