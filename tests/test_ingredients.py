"""Whole runs with averages, other optimizers and other gradients: the same bits however they are executed."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import results

import mnist_jax
from mnist_jax.config import default_config
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.learning import losses
from mnist_jax.train import train

RUNS = {
    'ema': {
        'average__name': 'ema',
        'optimizer': {'name': 'muon', 'learning_rate': 0.01, 'sam_radius': 0.05, 'accumulate': 2, 'clip_norm': 1.0},
    },
    'schedule_free': {'average__name': 'schedule_free', 'model__batch_norm': True},
    'swa': {
        'average__name': 'swa',
        'average__evaluated': 'last',
        'optimizer': {'name': 'nadam', 'learning_rate': 0.01},
    },
}


@pytest.mark.parametrize('name', RUNS)
def test_devices_calls_and_interruptions_do_not_change_the_bits(name, small, tmp_path):
    def run(workdir, on_step=None, **fields):
        model = 'mlp' if name == 'swa' else 'cnn'
        config = small(model, **RUNS[name], **{'chunks': 4, 'devices': 1, 'dataset__train': 'train[:320]', **fields})
        train(config, tmp_path / workdir, on_step=on_step)
        return results(tmp_path / workdir)

    once = run('once')
    other = {'devices': 4, 'steps_per_call': 2}

    def stop(step, request):
        if step == 7:  # in the middle of the second epoch
            request.signal = 15

    with pytest.raises(Interrupted):
        run('stopped', stop, **other)
    assert run('stopped', **other) == once


@pytest.mark.parametrize('options', [{'momentum': 0.9}, {'momentum': 0.9, 'nesterov': True}])
def test_calls_do_not_change_the_bits_of_momentum(options, small, tmp_path):
    """The learning rate is an argument of the step, so that XLA fuses the update in the same way in every program."""
    config = {'optimizer': {'name': 'sgd', 'learning_rate': 3e-3, **options}, 'devices': 1, 'epochs': 1}
    digests = {
        train(small(**config, steps_per_call=steps), tmp_path / f'{steps}')['params_sha256'] for steps in (1, 2, 4)
    }
    assert len(digests) == 1


def test_both_weights_are_evaluated_and_the_chosen_ones_are_used(small, tmp_path):
    outcomes = {}
    for evaluated in ('average', 'last'):
        config = small(average__name='ema', average__evaluated=evaluated, devices=1)
        outcomes[evaluated] = train(config, tmp_path / evaluated)
        model = mnist_jax.load(tmp_path / evaluated)
        image = np.zeros((28, 28), np.uint8)
        outcomes[evaluated, 'logits'] = model.logits(image[None])
        again = evaluate_workdir(tmp_path / evaluated)
        assert again == outcomes[evaluated] == json.loads((tmp_path / evaluated / 'eval.json').read_text())
    average, last = outcomes['average'], outcomes['last']
    assert average['weights'] == 'average' and last['weights'] == 'last'
    for one, other, name in ((average, last, 'last'), (last, average, 'average')):
        assert list(one['other_weights']) == [name]
        assert one['other_weights'][name] == {field: other[field] for field in ('loss', 'accuracy', 'params_sha256')}
    assert average['params_sha256'] != last['params_sha256']
    assert not np.array_equal(outcomes['average', 'logits'], outcomes['last', 'logits'])
    plain = train(small(devices=1), tmp_path / 'plain')
    assert plain['params_sha256'] == last['params_sha256'] and 'weights' not in plain


def test_a_run_that_starts_from_another_one_averages_from_there(small, tmp_path):
    first = train(small(average__name='ema', devices=1), tmp_path / 'first')
    config = small(average__name='ema', devices=1, epochs=0, init__workdir=str(tmp_path / 'first'))
    start = train(config, tmp_path / 'start')
    assert start['params_sha256'] == first['params_sha256'] == start['other_weights']['last']['params_sha256']


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'average__name': 'mean'}, 'config.average.name must be one of'),
        ({'average__evaluated': 'both'}, "config.average.evaluated must be one of average, last, got 'both'"),
        ({'optimizer__sam_radius': -1.0}, 'config.optimizer.sam_radius must be'),
        ({'optimizer__accumulate': 0}, 'config.optimizer.accumulate must be'),
        (
            {'optimizer__accumulate': 11},
            'config.optimizer.accumulate must be at most the number of batches',
        ),
        ({'optimizer__sam_radius': 1e300}, 'config.optimizer.sam_radius must be a number from 0 to 1e'),
        ({'average': {'name': 'swa', 'start': 2}}, 'config.average.start must be less than config.epochs=2'),
        (
            {'average__name': 'schedule_free', 'schedule__name': 'cosine'},
            "config.schedule.name must be 'constant' if config.average.name='schedule_free' is set, got 'cosine'",
        ),
        (
            {'average__name': 'schedule_free', 'optimizer': {'name': 'adam', 'learning_rate': 1e-3}},
            "config.optimizer.beta_1 must be 0 if config.average.name='schedule_free' is set",
        ),
        ({'average': {'name': 'swa', 'start': '5'}}, 'config.average.start must be'),
        ({'optimizer': {'name': 'rmsprob', 'learning_rate': 1e-3}}, 'config.optimizer.name must be one of'),
        (
            {'batch_size': 8, 'chunks': 8, 'augmentation': ({'name': 'flip'}, {'name': 'cutmix'})},
            "config.batch_size must be greater than config.chunks=8 if config.augmentation has 'cutmix', which",
        ),
        ({'init': {'workdir': '', 'freeze': ()}}, 'config.init.layer_decay is missing'),
        ({'model__hidden': (len,)}, 'config.model.hidden must be a value that JSON can hold, got .<built-in'),
        (
            {'init': {**default_config().init.to_dict(), 'frozen': ('Conv_*',)}},
            r"config.init.frozen is not a field \(did you mean 'freeze'\?\); the fields are: freeze, layer_decay",
        ),
        ({'distillation': {'workdirs': ()}}, 'config.distillation.temperature is missing'),
        ({'distillation__workdirs': ('/nowhere',)}, 'config.distillation.workdirs must be the directory of a run'),
        (
            {'augmentation': ({'name': 'shift', 'probability': 'x'},)},
            "must be a number from 0 to 1, got 'x'",
        ),
        ({'augmentation': ({'name': 'elastic', 'smoothness': 1e9},)}, 'smoothness must be a number from 0.1 to 100'),
        ({'augmentation': ({'name': 'shift', 'pixels': 10**6},)}, 'pixels must be an integer from 1 to 10000'),
        ({'augmentation': ({'name': 'erase', 'elongation': 0.5},)}, 'elongation must be a number from 1 to'),
        (
            {'augmentation': ({'name': 'erase', 'smallest': 0.5},)},
            r'config.augmentation\[0\].smallest must be at most largest=0.2, got 0.5',
        ),
    ],
)
def test_wrong_fields_are_refused_before_anything_is_written(fields, message, small, tmp_path):
    with pytest.raises(UserError, match=message):
        train(small(**fields), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_distillation_learns_from_other_runs(small, tmp_path):
    for seed in range(2):
        train(small('mlp', seed=seed, devices=1, epochs=1), tmp_path / f'teacher-{seed}')
    teachers = tuple(str(tmp_path / f'teacher-{seed}') for seed in range(2))

    def run(workdir, on_step=None, **fields):
        fields = {
            'chunks': 4,
            'devices': 1,
            'augmentation': ({'name': 'shift'}, {'name': 'mixup'}),
            'distillation__workdirs': teachers,
            **fields,
        }
        return train(small('mlp', **fields), tmp_path / workdir, on_step=on_step)

    once = run('once')
    for name, value in (('weight', 0.2), ('temperature', 5.0)):
        assert run(name, **{f'distillation__{name}': value})['params_sha256'] != once['params_sha256']
    models = [mnist_jax.load(teacher) for teacher in teachers]
    images = models[0].plan.source.split('train').image
    expected = np.mean([model.predict(images) for model in models], axis=0)
    np.testing.assert_allclose(np.load(tmp_path / 'once' / 'teacher.npz')['probabilities'], expected, rtol=1e-6)
    assert [run['workdir'] for run in once['teachers']] == list(teachers)
    assert not any('overlaps' in run for run in once['teachers'])

    def stop(step, request):
        if step == 7:
            request.signal = 15

    other = {'devices': 4, 'steps_per_call': 2, 'dataset__on_device': 'on'}
    with pytest.raises(Interrupted):
        run('stopped', stop, **other)
    for teacher in teachers:  # It is not needed any more.
        shutil.rmtree(teacher)
    assert run('stopped', **other) == once
    (tmp_path / 'stopped' / 'teacher.npz').write_bytes(b'damaged')
    with pytest.raises(UserError, match=r'config.distillation.workdirs must be the directory of a run'):
        run('stopped', epochs=3, **other)  # The teachers would have to predict again.
    with pytest.raises(UserError, match=r'config.distillation.workdirs must be the directory of a run'):
        run('new')
    assert not (tmp_path / 'new').exists()


def test_distillation_by_hand():
    """With temperature 2, the logits (2 ln 3, 0) are (ln 3, 0), and the target (0.9, 0.1) becomes (0.75, 0.25)."""
    logits, target = jnp.array([[2 * np.log(3), 0.0]]), jnp.array([[0.9, 0.1]])
    expected = -4 * (0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(losses.distillation(logits, target, 2.0), [expected], rtol=1e-6)


def test_a_new_run_has_its_own_teacher_and_a_damaged_file_is_written_again(small, tmp_path):
    for seed in range(2):
        train(small('mlp', seed=seed, devices=1, epochs=1), tmp_path / f'teacher-{seed}')

    def run(teacher, **fields):
        config = small('mlp', devices=1, distillation__workdirs=(str(tmp_path / teacher),), **fields)
        return train(config, tmp_path / 'student')

    first = run('teacher-0', dataset__validation='train[:50]')
    (overlap,) = first['teachers'][0]['overlaps']
    assert (overlap['second'], overlap['examples']) == ('validation', 50)
    shutil.rmtree(tmp_path / 'student' / 'checkpoints')
    for name in ('config.json', 'digests.json'):
        (tmp_path / 'student' / name).unlink()
    second = run('teacher-1', dataset__validation='train[:50]')
    assert [Path(row['workdir']).name for row in second['teachers']] == ['teacher-1']
    assert first['params_sha256'] != second['params_sha256']
    contents = (tmp_path / 'student' / 'teacher.npz').read_bytes()
    (tmp_path / 'student' / 'teacher.npz').write_bytes(b'damaged')
    third = run('teacher-1', epochs=3, dataset__validation='train[:50]')
    assert (tmp_path / 'student' / 'teacher.npz').read_bytes() == contents and third['teachers'] == second['teachers']
    # It is not computed again from other parameters.
    (tmp_path / 'student' / 'teacher.npz').unlink()
    shutil.rmtree(tmp_path / 'teacher-1')
    (tmp_path / 'teacher-0').rename(tmp_path / 'teacher-1')
    with pytest.raises(UserError, match=r'must have the parameters that the run in .* was started with'):
        run('teacher-1', epochs=4, dataset__validation='train[:50]')
