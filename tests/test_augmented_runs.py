"""Whole runs with augmentation: the same bits however they are executed, and validation without augmentation."""

import numpy as np
import pytest

from mnist_jax.data.batches import permutation
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.train import train
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import make_experiment

EVERYTHING = (
    {'name': 'affine', 'rotation': 15, 'scale': 0.1, 'shear': 5, 'shift': 1.5, 'stretch': 0.3, 'probability': 0.8},
    {'name': 'shift', 'pixels': 2},
    {'name': 'flip'},
    {'name': 'alternating_flip', 'probability': 0.5},
    {'name': 'brightness'},
    {'name': 'contrast'},
    {'name': 'erase'},
    {'name': 'noise', 'amount': 0.02},
    {'name': 'elastic', 'probability': 0.5},
    {'name': 'shift', 'pixels': 1, 'fill': 'reflect'},
    {'name': 'stroke', 'probability': 0.7},
    {'name': 'blur', 'sigma': 1.2, 'probability': 0.5},
    {'name': 'pixelate', 'probability': 0.3},
    {'name': 'binarize', 'probability': 0.2},
    {'name': 'frame', 'probability': 0.3},
    {'name': 'mixup', 'probability': 0.5},
    {'name': 'cutmix', 'probability': 0.5},
)


def digest(config, workdir, **options):
    return train(config, workdir, report=False, **options)['params_sha256']


def test_devices_calls_and_interruptions_do_not_change_the_bits(small, tmp_path):
    config = {'augmentation': EVERYTHING, 'chunks': 4, 'batch_size': 67, 'dataset__train': 'train[:400]'}
    once = digest(small('mlp', **config, devices=1), tmp_path / 'once')
    other = small('mlp', **config, devices=4, steps_per_call=3, dataset__on_device='on')

    def stop(step, request):
        if step == 9:  # in the middle of the second epoch
            request.signal = 15

    with pytest.raises(Interrupted):
        digest(other, tmp_path / 'stopped', on_step=stop)
    assert digest(other, tmp_path / 'stopped') == once


def test_each_epoch_has_other_images_and_evaluation_the_original_ones(small):
    augmented, plain = (make_experiment(small(augmentation=steps, devices=1)) for steps in (EVERYTHING[::8], ()))
    split = plain.source.split('train').take(permutation(0, 0, 300)[:20])
    images, index = split.image.astype(np.float32), np.arange(20, dtype=np.int32)
    epochs = [augmented.augment(images, index, epoch) for epoch in (0, 1, 0)]
    assert np.array_equal(epochs[0], epochs[2]) and not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(plain.augment(images, index, 0), images)
    variables = plain.create_state().variables
    totals = [evaluate_split(experiment, variables, split)[0] for experiment in (augmented, plain)]
    np.testing.assert_equal(totals[0], totals[1])


@pytest.mark.parametrize('value', ['shift', ('shift',), ({'name': 'nothing'},)])
def test_wrong_augmentation_is_refused_before_anything_is_written(small, tmp_path, value):
    config = small()
    with config.ignore_type():
        config.augmentation = value
    with pytest.raises(UserError, match=r'config.augmentation'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
