"""Models and steps under JAX's transformations, against plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_numbers, make_parts

from mnist_jax.kernels import ops
from mnist_jax.learning.state import TrainState
from mnist_jax.learning.step import train_step
from mnist_jax.models.architectures import CNN, MLP
from mnist_jax.models.layers import Training

IMAGE = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
LABEL = jnp.array([2, 0, 1])
MODELS = {
    'mlp': MLP(num_classes=3, hidden=(5, 4)),
    'cnn': CNN(num_classes=3, stages=((2,), (3,)), hidden=(4,)),
    'fashion_cnn': CNN(num_classes=3, stages=((2,), (3,)), hidden=(4,), batch_norm=True),
}


def apply(model, variables, image, training):
    """Returns the logits of a model of this package."""
    if not training:
        return model.apply(variables, image)
    mask, index = jnp.ones(len(image)), jnp.arange(len(image))
    return model.apply(variables, image, Training(mask, index, lambda tree: tree), mutable=['batch_stats'])[0]


def plain_apply(model, variables, image, training):
    """Returns the same logits, written in `jax.numpy` and `jax.lax`."""
    params, x = variables['params'], image
    layers = iter(range(10))
    for stage in getattr(model, 'stages', ()):
        for i in [next(layers) for _ in stage]:
            dimensions = ('NHWC', 'HWIO', 'NHWC')
            x = jax.lax.conv_general_dilated(
                x, params[f'Conv_{i}']['kernel'], (1, 1), 'SAME', dimension_numbers=dimensions
            )
            x = x + params[f'Conv_{i}']['bias']
            if model.batch_norm:
                scale, bias = (params[f'BatchNorm_{i}'][name] for name in ('scale', 'bias'))
                moving = variables['batch_stats'][f'BatchNorm_{i}']
                mean, variance = moving['mean'], moving['variance']
                if training:
                    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
                x = (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias
            x = jax.nn.relu(x)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = x.reshape(len(x), -1)
    for i in range(len(model.hidden) + 1):
        x = x @ params[f'Dense_{i}']['kernel'] + params[f'Dense_{i}']['bias']
        x = jax.nn.relu(x) if i < len(model.hidden) else x
    return x


def transform(logits, model, training, image, variables, direction):
    """Returns the results of the transformations by name, with `logits` as the model."""

    def loss(variables, image, label):
        log_probabilities = jax.nn.log_softmax(logits(model, variables, image, training))
        return -jnp.take_along_axis(log_probabilities, label[:, None], 1).mean()

    def batch_loss(variables):
        return loss(variables, image, LABEL)

    def image_logits(image):
        return logits(model, variables, image, training)

    def squared_gradient(variables):
        gradients = jax.grad(loss, (0, 1))(variables, image, LABEL)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradients))

    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables, direction)
    value_and_grad = jax.value_and_grad(batch_loss)
    return {
        'forward': image_logits(image),
        'ensemble': jax.vmap(value_and_grad)(ensemble),
        'per-example gradients': jax.vmap(jax.grad(loss), (None, 0, 0))(variables, image[:, None], LABEL[:, None]),
        'jacrev': jax.jacrev(image_logits)(image),
        'jacfwd': jax.jacfwd(image_logits)(image[:1]),
        'jvp and Hessian-vector product': jax.jvp(value_and_grad, (variables,), (direction,)),
        'grad of grad': jax.grad(squared_gradient)(variables),
    }


def random_variables(model, seed):
    """Returns variables of a model with random biases and statistics too."""
    rng = np.random.default_rng(seed)
    positive = {'scale', 'variance'}

    def draw(path, leaf):
        return (rng.uniform(-0.5, 0.5, leaf.shape) + (path[-1].key in positive)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), IMAGE))


def assert_close(actual, expected, name):
    assert jax.tree.structure(actual) == jax.tree.structure(expected), name
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * max(1, np.abs(other).max()), err_msg=name)


@pytest.mark.parametrize(('name', 'training'), [('mlp', False), ('cnn', False), ('fashion_cnn', True)])
def test_every_transformation_of_a_model_gives_what_plain_jax_gives(name, training):
    arguments = (IMAGE, random_variables(MODELS[name], 0), random_variables(MODELS[name], 1))
    with jax.numpy_rank_promotion('allow'):
        actual, expected = (
            jax.jit(functools.partial(transform, logits, MODELS[name], training))(*arguments)
            for logits in (apply, plain_apply)
        )
    for transformation in expected:
        assert_close(actual[transformation], expected[transformation], transformation)


@pytest.mark.parametrize('transformation', [jax.grad, jax.jacfwd, jax.hessian, jax.vmap])
def test_transformations_also_work_without_jit(transformation):
    def layers(scale):
        output = ops.conv(IMAGE * scale.reshape(1, 1, 1, 1), kernel, jnp.ones(2), 'SAME', True)
        return jnp.square(ops.max_pool(output, 2, 'SAME')).sum()

    kernel = np.random.default_rng(1).normal(size=(3, 3, 1, 2)).astype(np.float32)
    scale = jnp.array([1.0, 2.0]) if transformation is jax.vmap else jnp.float32(1.5)
    with ops.portable():
        expected = transformation(layers)(scale)
    np.testing.assert_allclose(transformation(layers)(scale), expected, rtol=1e-5)


def test_a_batch_of_no_batches_is_empty():
    kernel, no_images = jnp.ones((3, 3, 1, 2)), jnp.zeros((0, *IMAGE.shape))
    outputs = jax.vmap(lambda image: ops.conv(image, kernel, jnp.ones(2), 'SAME', True))(no_images)
    assert outputs.shape == (0, *IMAGE.shape[:3], 2)


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_gradients_and_batches_of_batches_still_use_the_kernels():
    model = MODELS['cnn']
    variables = random_variables(model, 1)

    def one_loss(variables, image):
        return jnp.square(model.apply(variables, image[None])).sum()

    gradient = compiled_text(jax.grad(lambda v: jnp.square(model.apply(v, IMAGE)).sum()), variables)
    counts = {'layer_relu': 3, 'layer': 1, 'pool': 2, 'pool_gradient': 2, 'input_gradient': 3, 'kernel_gradient': 4}
    assert {kernel: gradient.count(f'"mnist_jax_{kernel}"') for kernel in counts} == counts
    images_gradient = compiled_text(jax.vmap(jax.grad(one_loss, 1), (None, 0)), variables, IMAGE)
    counts = {'layer_relu': 3, 'layer': 1, 'pool': 2, 'pool_gradient': 2, 'input_gradient': 4, 'kernel_gradient': 0}
    assert {kernel: images_gradient.count(f'"mnist_jax_{kernel}"') for kernel in counts} == counts


STEP_MODELS = {
    'mlp': MLP(num_classes=3, hidden=(6,), dropout=(0.5,)),
    'cnn': CNN(num_classes=3, stages=((3,),), pool=(2,), hidden=(5,)),
    'fashion_cnn': CNN(num_classes=3, stages=((3,),), pool=(2,), hidden=(5,), batch_norm=True, stage_dropout=(0.3,)),
}


@pytest.mark.parametrize('name', STEP_MODELS)
def test_the_train_step_can_be_batched_and_differentiated(name):
    model = STEP_MODELS[name]
    parts = make_parts(model, 4 if name == 'mlp' else 2, 0.01)
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    batch = {'image': image, 'label': jnp.array([0, 1, 2, 1]), 'mask': jnp.ones(4), 'index': jnp.arange(4)}

    def two_steps(seed, variables, scale):
        params = variables['params']
        opt_state = parts.optimizer.init(params)
        state = TrainState(jnp.int32(0), params, variables.get('batch_stats', {}), opt_state, scale)
        for _ in range(2):
            state, sums = train_step(state, batch, make_numbers(seed), parts=parts, all_sum=lambda tree: tree)
        return state.params, sums['loss']

    seeds, scales = jnp.arange(2), jnp.array([1.0, 3.0])
    variables = [random_variables(model, seed) for seed in range(2)]

    def loss(scale):
        return two_steps(0, variables[0], scale)[1]

    batched = jax.jit(jax.vmap(two_steps))(seeds, jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables), scales)
    by_forward_mode, by_reverse_mode = jax.jit(lambda scale: (jax.jacfwd(loss)(scale), jax.grad(loss)(scale)))(
        scales[1]
    )
    with ops.portable():
        plain = jax.jit(lambda *run: two_steps(*run))
        single = [plain(*run) for run in zip(seeds, variables, scales, strict=True)]
        derivative = jax.jit(lambda scale: jax.grad(lambda scale: loss(scale))(scale))(scales[1])
    assert_close(batched, jax.tree.map(lambda *leaves: jnp.stack(leaves), *single), name)
    assert_close((by_forward_mode, by_reverse_mode), (derivative, derivative), name)
