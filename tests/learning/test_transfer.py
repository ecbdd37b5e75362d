import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.errors import UserError
from mnist_jax.learning import transfer
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.learning.state import Variables
from mnist_jax.models.architectures import CNN
from mnist_jax.models.layer_table import list_layers
from mnist_jax.models.token_models import ViT

PARAMS = {'Conv_0': {'kernel': jnp.ones((3, 3, 1, 2)), 'bias': jnp.zeros(2)}, 'Dense_0': {'kernel': jnp.ones((4, 3))}}


@pytest.mark.parametrize(
    ('path', 'pattern', 'expected'),
    [
        ('Conv_0/kernel', 'Conv_0', True),
        ('Conv_0/kernel', 'Conv_*', True),
        ('Conv_0/kernel', '*/kernel', True),
        ('Conv_0/kernel', 'Conv', False),
        ('Conv_10/kernel', 'Conv_1', False),
        ('Block_0/Conv_0/kernel', 'Block_0/Conv_0', True),
        ('Block_0/Conv_0/kernel', 'Conv_0', False),
        ('Block_0/Conv_0/kernel', '*Conv_0', True),
    ],
)
def test_patterns_match_paths_and_modules(path, pattern, expected):
    assert transfer.matches(path, [pattern]) is expected


def test_what_fits_is_taken():
    origin = {
        'Conv_0': {'kernel': np.full((3, 3, 1, 2), 7, np.float32), 'bias': np.full(2, 8, np.float32)},
        'Dense_0': {'kernel': np.full((4, 9), 9, np.float32)},
    }
    new = Variables({**PARAMS, 'Dense_1': {'kernel': jnp.ones(1)}}, {'BatchNorm_0': {'mean': jnp.ones(2)}})
    taken, rows = transfer.take_variables(new, Variables(origin, {'BatchNorm_0': {'mean': np.zeros(2, np.float32)}}))
    assert float(taken.params['Conv_0']['kernel'].max()) == 7 and float(taken.params['Conv_0']['bias'][0]) == 8
    assert float(taken.params['Dense_0']['kernel'].max()) == 1 and taken.batch_stats['BatchNorm_0']['mean'][0] == 0
    assert {row.path: row.reason for row in rows} == {
        'BatchNorm_0/mean': '',
        'Conv_0/bias': '',
        'Conv_0/kernel': '',
        'Dense_0/kernel': '4 x 9 in the origin',
        'Dense_1/kernel': 'not in the origin',
    }


def test_nothing_that_fits_is_an_error():
    with pytest.raises(UserError, match='parameters that fit this model, got one with Other_0/kernel'):
        transfer.take_variables(Variables(PARAMS, {}), Variables({'Other_0': {'kernel': np.ones(1)}}, {}))


def test_the_rates_of_layers_fall_towards_the_input():
    layers = list_layers(CNN(num_classes=3, stages=((4,), (4,)), batch_norm=True, hidden=(5,)), (8, 8, 1))
    assert dict(transfer.layer_rates(layers, 0.5)) == {
        'Dense_1': 1.0, 'Dense_0': 0.5, 'BatchNorm_1': 0.25, 'Conv_1': 0.25, 'BatchNorm_0': 0.125, 'Conv_0': 0.125,
        '*': 0.125,
    }  # fmt: skip
    assert transfer.layer_rates(layers, 1.0) == []


def test_the_rates_of_a_transformer_fall_by_layers_with_a_kernel():
    model = ViT(num_classes=3, patch=4, width=8, depth=1, heads=2)
    rates = transfer.layer_rates(list_layers(model, (8, 8, 1)), 0.5)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))['params']
    found = {
        path: [factor for pattern, factor in rates if transfer.matches(path, [pattern])][-1]
        for path in transfer.leaves_by_path(params)
    }
    kernels = {path: factor for path, factor in found.items() if path.endswith('kernel')}
    assert sorted(kernels.values()) == [2.0**-power for power in range(len(kernels) - 1, -1, -1)]
    (position,) = (factor for path, factor in found.items() if '/' not in path)
    assert position == min(kernels.values())


def test_patterns_must_match_something():
    transfer.check_patterns('config.init.freeze', ['Conv_*', 'Dense_0/kernel'], Variables(PARAMS, {}))
    with pytest.raises(UserError, match=r"config.init.freeze must match paths of the model, .* got 'Konv_\*'"):
        transfer.check_patterns('config.init.freeze', ['Konv_*'], Variables(PARAMS, {}))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_factor_multiplies_the_learning_rate_of_every_optimizer(name):
    """Three updates equal those of a parameter that is alone, with a learning rate that is multiplied by the factor."""
    plain = OPTIMIZERS[name]()
    scaled = transfer.with_rates(plain, ['Conv_0/bias'], [('*', 0.5), ('Dense_0', 0.1)])
    grads = jax.tree.map(lambda leaf: jnp.arange(1.0, leaf.size + 1).reshape(leaf.shape), PARAMS)
    params, state = PARAMS, scaled.init(PARAMS)
    for _ in range(3):
        updates, state = scaled.update(grads, state, params, learning_rate=jnp.float32(0.01))
        params = optax.apply_updates(params, updates)
    assert jnp.array_equal(params['Conv_0']['bias'], PARAMS['Conv_0']['bias'])
    for module, leaf, rate in (('Conv_0', 'kernel', 0.005), ('Dense_0', 'kernel', 0.001)):
        alone, grad = PARAMS[module][leaf], grads[module][leaf]
        state = plain.init(alone)
        for _ in range(3):
            updates, state = plain.update(grad, state, alone, learning_rate=jnp.float32(rate))
            alone = optax.apply_updates(alone, updates)
        assert np.allclose(params[module][leaf], alone, rtol=1e-6, atol=1e-7)


def test_without_patterns_the_optimizer_is_the_same():
    optimizer = OPTIMIZERS['adam']()
    assert transfer.with_rates(optimizer, (), ()) is optimizer
