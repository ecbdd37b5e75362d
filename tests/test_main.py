"""The command line, as a process: what it prints and how it ends."""

import json

import pytest

TINY = ('--config.dataset.train=train[:300]', '--config.dataset.test=test[:200]', '--config.batch_size=100')


def config_path(name):
    from conftest import ROOT

    return f'--config={ROOT}/configs/{name}.py'


def test_train_and_evaluate(program, tmp_path):
    arguments = (config_path('mlp'), *TINY, '--config.epochs=1', '--config.model.hidden=(16,)')
    trained = program(*arguments, check=True)
    lines = [line.split(' ', 1)[1] for line in trained.stderr.splitlines()]
    # Lines of this program only: each has the time in front and none is a library's warning.
    for begin in (
        'devices   1 (CPU, virtual)',
        'data set  mnist: train 300, test 200',
        'workdir   runs/mlp',
        'epoch 1/1  loss',
    ):
        assert any(line.startswith(begin) for line in lines), begin
    assert all('arning' not in line for line in lines) and '\r' not in trained.stderr
    command = '  python -m mnist_jax.main --mode=eval --workdir=runs/mlp'
    assert lines[-2:] == [command, 'How it learned and where it errs: runs/mlp/report/index.html']
    written = (tmp_path / 'runs' / 'mlp' / 'eval.json').read_bytes()
    evaluated = program(*command.split()[3:], check=True)
    assert (tmp_path / 'runs' / 'mlp' / 'eval.json').read_bytes() == written
    assert evaluated.stdout == trained.stdout
    assert f'accuracy   {json.loads(written)["accuracy"]:.4f} (95 % interval' in evaluated.stdout


def test_summary_prints_the_layer_table_and_nothing_else(program):
    found = program(config_path('cnn'), '--mode=summary', check=True)
    assert found.stdout.splitlines()[-1].startswith('parameters: 224,394 (trainable 224,394, not trainable 0)')
    assert found.stderr == ''


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (('cnn', '--config.model.name=cmn'), "model.name='cmn' is unknown (did you mean 'cnn'?); the choices are:"),
        (('cnn', '--config.optimizer.name=rmsprob'), "(did you mean 'rmsprop'?); the choices are: adadelta, adagrad,"),
        (
            ('cnn', '--config.dataset.name=mnits'),
            "(did you mean 'mnist'?); the choices are: digits, fashion_mnist, kaggle_digits, mnist",
        ),
        (('cnn', '--config.loss.name=mse'), "loss.name='mse' is unknown; the choices are: cross_entropy"),
        (
            ('cnn', '--config.epoch=3'),
            "config.epoch is no field (did you mean 'epochs'?); the fields are: batch_size,",
        ),
        (('cnn', '--config.model.name=mlp'), "model.stages are not for 'mlp'; its fields are: dropout, hidden"),
        (('cnn', '--config.epochs=many'), "flag --config.epochs=many: invalid literal for int() with base 10: 'many'"),
        (('cnn', '--config.model.batch_norm=maybe'), 'its type is bool'),
        (
            ('cnn', '--config.batch_size=0'),
            'config.batch_size=0 is wrong: a whole number from 1 to 2147483647 is wanted',
        ),
        (
            ('cnn', '--config.batch_size=60001'),
            'batch_size=60001 is larger than the number of training examples, 60,000: dataset',
        ),
        (('cnn', '--config.devices=99'), 'devices=99 is more than there are: 1 to 8 (virtual devices on the CPU)'),
        (('cnn', '--config.epochs=-1'), 'config.epochs=-1 is wrong: a whole number from 0 to 2147483647 is wanted'),
        (('nothing',), 'does not exist; configs/cnn.py is an example'),
        (('cnn', '--workdir=file'), "--workdir 'file' is, or lies below, a file; give a directory"),
        (('cnn', '--workdir=/proc/nowhere'), "--workdir '/proc/nowhere' is not writable"),
        (('cnn', '--config.dataset.data_dir=new', '--config.dataset.raw_dir=empty'), 'raw file train-images'),
        (('cnn', '--mode=evaluate'), "--mode='evaluate' is unknown (did you mean 'eval'?)"),
        (('cnn', 'stray'), "'stray' is not a flag"),
        ((), '--config is missing; for example --config=configs/cnn.py'),
        (('--config.epochs=1',), '--config.epochs overrides a field of a config; give --config=FILE too'),
        (('--mode=eval',), '--mode=eval needs --workdir'),
        (('--mode=eval', '--workdir=nowhere'), "--workdir 'nowhere' does not exist"),
        (('--mode=eval', '--workdir=file'), "--workdir 'file' is a file"),
        (('--mode=eval', '--workdir=empty'), "--workdir 'empty' holds no config.json"),
        (('--mode=eval', '--workdir='), '--workdir= is empty; give a value, or leave it out'),
        (('--mode=compare',), '--mode=compare needs --run'),
        (('--mode=compare', '--run=runs/*'), "--run='runs/*' is no workdir, nor a pattern of workdirs"),
        (('--mode=compare', '--step=best'), '--step is not for --mode=compare'),
        (('--mode=reproduce', '--seeds=abc'), "flag --seeds=abc: invalid literal for int() with base 10: 'abc'"),
        (('--wrokdir=x',), "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(forked, tmp_path, arguments, told):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    if arguments and not arguments[0].startswith('-'):
        arguments = (config_path(arguments[0]), *arguments[1:])
    found = forked(*arguments)
    last = found.stderr.splitlines()[-1]
    assert found.returncode == 2, found.stderr
    assert last.startswith('error: ') and told in last
    assert 'Traceback' not in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} - {'new'} == {'file', 'empty'}
    assert not list(tmp_path.rglob('*.array_record*'))


def test_help_is_no_error(program):
    found = program('--help', check=True)
    assert '--mode=compare' in found.stdout and '--workdir:' in found.stdout and found.stderr == ''
