"""Models that the train step would train wrongly are refused."""

import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, environment
from linen_models import ResidualCNN, VisionTransformer
from ml_collections import ConfigDict

from mnist_jax.errors import UserError
from mnist_jax.learning.augmentation import AUGMENTATIONS
from mnist_jax.learning.augmentation_steps import Mixed
from mnist_jax.learning.model_checks import check_independence, check_model, has_products
from mnist_jax.learning.optimizers import OPTIMIZERS, from_optax, sgd
from mnist_jax.learning.state import create_state
from mnist_jax.models.architectures import MODELS
from mnist_jax.training.experiment import make_experiment
from mnist_jax.training.plan import make_plan


class Standardized(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = image_BxHxWxC.reshape(len(image_BxHxWxC), -1)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x_BxF - x_BxF.mean(0, keepdims=True))


class Deterministic(nn.Module):
    """The interface of many models for Flax: a `Training` as the second argument would turn dropout off."""

    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dense(self.num_classes)(nn.Dropout(0.5)(x.mean((1, 2)), deterministic))


class Unnumbered(nn.Module):
    classes: int


class CountingPadding(nn.Module):
    """Subtracts the mean over all rows of the batch, those of padding included."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = image_BxHxWxC.reshape(len(image_BxHxWxC), -1)
        if training is not None:
            sums = training.batch_sum({'x': x_BxF.sum(0), 'count': training.mask.sum()})
            x_BxF = x_BxF - (sums['x'] / sums['count'])[None]
        return nn.Dense(self.num_classes)(x_BxF)


class Probabilities(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        return nn.softmax(nn.Dense(self.num_classes)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1)))


class AttentionOverExamples(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = nn.Dense(8)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1))
        return nn.Dense(self.num_classes)(nn.MultiHeadDotProductAttention(num_heads=2)(x_BxF))


class Accumulated(nn.Module):
    """Adds to each image those before it in its chunk."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        return nn.Dense(self.num_classes)(jnp.cumsum(image_BxHxWxC.reshape(len(image_BxHxWxC), -1), axis=0))


class RelativeToTheFirst(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        return nn.Dense(self.num_classes)((image_BxHxWxC - 0.5 * image_BxHxWxC[:1]).reshape(len(image_BxHxWxC), -1))


class OverExamples(nn.Module):
    """Takes the axis of the examples for that of time."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        rows_BxHxW = image_BxHxWxC.mean(-1)
        return nn.Dense(self.num_classes)(nn.RNN(nn.SimpleCell(8), time_major=True)(rows_BxHxW).mean(1))


class NoisyAndNormalized(nn.Module):
    """Dropout and noise before batch normalization."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = nn.Dense(8)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1))
        x_BxF = nn.Dropout(0.5, deterministic=training is None)(x_BxF)
        x_BxF = nn.BatchNorm(use_running_average=training is None)(x_BxF)
        if training is not None:
            x_BxF = x_BxF + 0.1 * jax.random.normal(self.make_rng('dropout'), x_BxF.shape)
        return nn.Dense(self.num_classes)(x_BxF)


class DeepAndMixing(nn.Module):
    """Many layers with batch normalization, after one that mixes the examples in a part of the calls."""

    num_classes: int = 3
    in_training: bool | None = None
    depth: int = 30

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = nn.Dense(8)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1))
        if self.in_training == (training is not None):
            x_BxF = x_BxF - x_BxF.mean(0, keepdims=True)
        for _ in range(self.depth):
            x_BxF = nn.relu(nn.BatchNorm(use_running_average=training is None)(nn.Dense(8)(x_BxF)))
        return nn.Dense(self.num_classes)(x_BxF)


@pytest.mark.parametrize(
    'model',
    [
        Standardized,
        AttentionOverExamples,
        Accumulated,
        RelativeToTheFirst,
        OverExamples,
        functools.partial(DeepAndMixing, in_training=True),
        functools.partial(DeepAndMixing, in_training=False, depth=10),
    ],
)
def test_a_model_that_mixes_the_examples_of_a_batch_is_refused(small, monkeypatch, model):
    monkeypatch.setitem(MODELS, 'mixing', model)
    config = small()
    config.model = ConfigDict({'name': 'mixing'})
    with pytest.raises(UserError, match=r'the model must not mix the examples of a batch, except through nn.BatchNorm'):
        make_experiment(config)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            CountingPadding,
            'the model must not count padding rows, whose training.mask is 0, but the logits of an image',
        ),
        (Probabilities, 'the model must return logits, of which the loss takes the softmax, got probabilities'),
    ],
)
def test_a_model_that_counts_padding_or_returns_probabilities_is_refused(model, message):
    state = create_state(model(3), sgd(), (28, 28, 1), seed=0)
    with pytest.raises(UserError, match=message):
        check_independence(model(3), state, (28, 28, 1))


@pytest.mark.parametrize(
    'model', [ResidualCNN, VisionTransformer, NoisyAndNormalized, functools.partial(DeepAndMixing, depth=60)]
)
def test_batch_norm_attention_and_dropout_do_not_count_as_mixing(model):
    check_independence(model(), create_state(model(), sgd(), (28, 28, 1), seed=0), (28, 28, 1))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (lambda num_classes: len, 'config.model.name must select a Linen module, got a builtin_function'),
        (
            lambda num_classes: nn.Dense(num_classes),
            r'the model must define __call__\(self, image, training=None\), got Dense\(inputs: ',
        ),
        (Unnumbered, r'the model must have an attribute num_classes, got linen\(classes: int, '),
        (
            Deterministic,
            r'the model must define __call__\(self, image, training=None\), got Deterministic\(x, deterministic=True\)',
        ),
    ],
)
def test_what_is_not_a_model_is_refused(small, monkeypatch, model, message):
    monkeypatch.setitem(MODELS, 'linen', model)
    config = small()
    config.model = ConfigDict({'name': 'linen'})
    with pytest.raises(UserError, match=message):
        make_plan(config)


def test_an_optimizer_without_the_learning_rate_of_the_step_is_refused(small, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, 'own', lambda: optax.adam(1e-3))
    config = small()
    config.optimizer = ConfigDict({'name': 'own', 'learning_rate': 0.1})
    with pytest.raises(UserError, match='must depend on the keyword argument learning_rate of its update'):
        make_experiment(config)
    monkeypatch.setitem(OPTIMIZERS, 'own', lambda: optax.scale_by_lion())
    with pytest.raises(UserError, match='must depend on the keyword argument learning_rate of its update'):
        make_experiment(config)
    monkeypatch.setitem(OPTIMIZERS, 'own', lambda: from_optax(optax.adam(1e-3)))
    frozen, accumulating = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    frozen.init.freeze = ('Dense_0',)
    accumulating.optimizer.accumulate = 3
    for changed in (config, frozen, accumulating):
        with pytest.raises(UserError, match='must go against the gradient, got updates along it'):
            make_experiment(changed)
    monkeypatch.setitem(OPTIMIZERS, 'own', lambda: from_optax(optax.scale_by_adam()))
    make_experiment(config)


def test_a_gradient_that_is_not_finite_is_noticed_with_an_optimizer_that_hides_it(small, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, 'own', lambda: from_optax(optax.scale_by_lion()))
    config = small()
    config.optimizer = ConfigDict({'name': 'own', 'learning_rate': 0.1})
    plan = make_plan(config)
    state = plan.create_state()
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.inf), state.params)
    updates, _ = plan.optimizer.update(grads, state.opt_state, state.params, learning_rate=jnp.float32(0.1))
    assert not any(np.isfinite(leaf).any() for leaf in jax.tree.leaves(updates))


OWN_OPTIMIZER = """
import optax
from ml_collections import ConfigDict

from mnist_jax.config import load_config
from mnist_jax.learning.optimizers import OPTIMIZERS, from_optax
from mnist_jax.training.experiment import make_experiment

OPTIMIZERS['own'] = lambda: from_optax(optax.scale_by_lion())
config = load_config('configs/mlp.py')
config.optimizer = ConfigDict({'name': 'own', 'learning_rate': 0.1})
config.devices = 2
print(len(make_experiment(config).replicas), 'devices')
"""


def test_the_check_of_an_optimizer_does_not_start_jax_before_its_devices_are_configured(data_dir):
    options = {'cwd': ROOT, 'env': environment(data_dir), 'capture_output': True, 'text': True}
    process = subprocess.run([sys.executable, '-c', OWN_OPTIMIZER], **options, check=False)
    assert process.stdout == '2 devices\n', process.stderr


def half(image_BxHxWxC, draw):
    return image_BxHxWxC[:, ::2]


def centered(image_BxHxWxC, draw):
    return image_BxHxWxC - image_BxHxWxC.mean()


def accumulated(image_BxHxWxC, draw):
    return image_BxHxWxC.at[1:].add(image_BxHxWxC[:-1])


def sometimes_centered(image_BxHxWxC, draw):
    is_centered_B = draw.uniform(1)[0] > 0.8
    return jnp.where(is_centered_B[:, None, None, None], centered(image_BxHxWxC, draw), image_BxHxWxC)


def by_position(image_BxHxWxC, draw):
    return image_BxHxWxC * (1 + 0.1 * jnp.arange(len(image_BxHxWxC)))[:, None, None, None]


def darker(image_BxHxWxC, draw):
    return 0.5 * image_BxHxWxC


def mixed(image_BxHxWxC, draw):
    return Mixed(0.5 * (image_BxHxWxC + image_BxHxWxC[::-1]), jnp.full(len(image_BxHxWxC), 0.5))


def mixed_with_the_next(image_BxHxWxC, draw):
    other_BxHxWxC = jnp.roll(image_BxHxWxC, 1, axis=0)
    return Mixed(0.5 * (image_BxHxWxC + other_BxHxWxC), jnp.full(len(image_BxHxWxC), 0.5))


def mixed_by_the_batch(image_BxHxWxC, draw):
    own_weight = image_BxHxWxC.sum() % 7 / 7
    image_BxHxWxC = own_weight * image_BxHxWxC + (1 - own_weight) * image_BxHxWxC[::-1]
    return Mixed(image_BxHxWxC, jnp.full(len(image_BxHxWxC), own_weight))


def test_an_augmentation_that_mixes_images_or_changes_their_shape_is_refused(small, monkeypatch):
    def make(step, **fields):
        monkeypatch.setitem(AUGMENTATIONS, 'own', lambda: step)
        return make_experiment(small(augmentation=({'name': 'own', 'probability': 0.05},), **fields))

    with pytest.raises(UserError, match=r'must keep the shape of its images, \(7, 28, 28, 1\), got \(7, 14, 28, 1\)'):
        make(half)
    for step in (centered, accumulated, sometimes_centered, by_position):
        with pytest.raises(UserError, match='must not mix the images of a chunk, except by returning Mixed'):
            make(step)
    make(darker)
    make(mixed)
    for step in (mixed_with_the_next, mixed_by_the_batch):
        with pytest.raises(UserError, match='must mix each image only with the one at the mirrored position'):
            make(step)
    monkeypatch.setitem(AUGMENTATIONS, 'mixed', lambda: mixed)
    with pytest.raises(UserError, match='must not mix the images of a chunk, except by returning Mixed'):
        monkeypatch.setitem(AUGMENTATIONS, 'own', lambda: centered)
        make_experiment(small(augmentation=({'name': 'own'}, {'name': 'mixed'})))
    with pytest.raises(
        UserError, match=r"must be greater than config.chunks=64 if config.augmentation has 'own', which"
    ):
        make(mixed, chunks=64)


@pytest.mark.parametrize('layer', [nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)])
def test_a_model_that_trains_during_inference_is_refused(layer):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            return nn.Dense(3)(layer.copy()(image_BxHxWxC).mean((1, 2)))

    state = jax.eval_shape(functools.partial(create_state, Model(), sgd(), (28, 28, 1)), 0)
    with pytest.raises(UserError, match='must not update its variables or draw random numbers if training is None'):
        has_products(Model(), state, (28, 28, 1))


def apply_attention(x_BxHxWxC, module):
    x_BxTxF = x_BxHxWxC.reshape(len(x_BxHxWxC), 28, 28)
    attention = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.5, broadcast_dropout=False)
    return attention(x_BxTxF, deterministic=False).mean(1)[:, :3]


def own_batch_norm(x_BxHxWxC, module):
    mean = module.variable('batch_stats', 'mean', jnp.zeros, ())
    if not module.is_initializing():
        mean.value = 0.9 * mean.value + 0.1 * x_BxHxWxC.mean()
    return nn.Dense(3)(x_BxHxWxC.reshape(len(x_BxHxWxC), -1) - mean.value)


def cached(x_BxHxWxC, module):
    module.variable('memory', 'last', jnp.zeros, ())
    return nn.Dense(3)(x_BxHxWxC.reshape(len(x_BxHxWxC), -1))


def scanned(x_BxHxWxC, module):
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x_BxF, _):
            return nn.BatchNorm(use_running_average=False)(x_BxF), None

    scan = nn.scan(Cell, variable_axes={'params': 0, 'batch_stats': 0}, split_rngs={'params': True}, length=2)
    return nn.Dense(3)(scan()(x_BxHxWxC.reshape(len(x_BxHxWxC), -1), None)[0])


def time_major_dropout(x_BxHxWxC, module):
    rows = x_BxHxWxC.reshape(-1, 28)
    return nn.Dropout(0.5, deterministic=False)(rows).reshape(len(x_BxHxWxC), -1)[:, :3]


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (apply_attention, r'nn.MultiHeadDotProductAttention \(\w*\) must have broadcast_dropout=True .*, got False'),
        (own_batch_norm, 'batch_stats of the model must be computed from sums over the whole batch'),
        (cached, "collections 'params' and 'batch_stats', got 'memory'"),
        (scanned, 'must not be inside a transformation other than jit, remat and vmap, got scan'),
        (time_major_dropout, r'nn.Dropout .* must be applied to an array of examples .*, got \(196, 28\)'),
        (lambda x, module: nn.LayerNorm(reduction_axes=(0, 1))(x).mean((1, 2, 3)), 'nn.LayerNorm .* must not have'),
        (
            lambda x, module: nn.BatchNorm(False)(x.reshape(-1, 28)).reshape(len(x), -1)[:, :3],
            r'nn.BatchNorm .* must be applied to an array of examples .*, got \(196, 28\)',
        ),
        (lambda x, module: nn.BatchNorm(False, axis=0)(x).mean((1, 2, 3)), r'nn.BatchNorm .* got axis=0'),
        (lambda x, module: nn.Dense(4)(x.mean((1, 2))), r'must return logits of shape \(7, 3\) for 7 images, got'),
        (lambda x, module: (nn.Dense(3)(x.mean((1, 2))), x), r'must return logits of shape \(7, 3\) for 7 images, got'),
    ],
)  # fmt: skip
def test_a_model_that_would_be_wrong_in_chunks_is_refused_when_it_is_built(function, message):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            return function(image_BxHxWxC, self)

    with pytest.raises(UserError, match=message):
        state = jax.eval_shape(functools.partial(create_state, Model(), sgd(), (28, 28, 1)), 0)
        check_model(Model(), state, (28, 28, 1), 3)
