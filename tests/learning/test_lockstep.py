"""Sums over all chunks, and their gradients, against the same function of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.learning.lockstep import lockstep_sum, run_in_lockstep


def identity(tree):
    return tree


def standardize(weight, rows):
    """Subtracts the mean, multiplies by `weight`, and divides by the root of the sum of squares plus `weight`."""
    total, count = lockstep_sum((rows.sum(), jnp.float32(rows.size)))
    scaled = (rows - total / count) * weight
    (squares,) = lockstep_sum([jnp.square(scaled).sum()])
    return {'rows': scaled / jnp.sqrt(squares + weight), 'count': count}


def test_every_chunk_gets_the_sum_over_all_chunks():
    # The mean of 1 2 6 7 is 4. Centered and doubled: -6 -4 4 6, with the sum of squares 104; 104 + 2 is 106.
    chunks = [(jnp.float32(2), jnp.array(rows, jnp.float32)) for rows in ([1, 2], [6, 7])]
    results = run_in_lockstep(standardize, chunks, identity)
    rows = np.stack([result['rows'] for result in results])
    np.testing.assert_allclose(rows * np.sqrt(106), [[-6, -4], [4, 6]], rtol=1e-6)
    assert [float(result['count']) for result in results] == [4, 4]
    # `all_sum` adds the sums of other devices: here, of one other device with the same chunks.
    doubled = run_in_lockstep(standardize, chunks, lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree))
    np.testing.assert_allclose(doubled[0]['rows'] * np.sqrt(210), [-6, -4], rtol=1e-6)
    assert float(doubled[1]['count']) == 8


def test_the_gradient_is_that_of_the_whole_batch():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    target = jnp.asarray(np.random.default_rng(1).normal(size=12), jnp.float32)

    def whole(weight, rows):
        scaled = (rows - rows.mean()) * weight
        return jnp.vdot(scaled / jnp.sqrt(jnp.square(scaled).sum() + weight), target)

    def chunked(weight, rows, chunks):
        arguments = [(weight, part) for part in jnp.split(rows, chunks)]
        results = run_in_lockstep(standardize, arguments, identity)
        return jnp.vdot(jnp.concatenate([result['rows'] for result in results]), target)

    expected = jax.grad(whole, (0, 1))(jnp.float32(1.5), rows)
    for chunks in (1, 2, 3, 4):
        gradients = jax.jit(jax.grad(chunked, (0, 1)), static_argnums=2)(jnp.float32(1.5), rows, chunks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected)


def test_a_function_without_sums_runs_chunk_by_chunk():
    assert [int(result) for result in run_in_lockstep(lambda number: number + 1, [(1,), (2,)], identity)] == [2, 3]


def test_a_derivative_rule_is_kept_without_a_sum_and_refused_around_one():
    @jax.custom_jvp
    def plain(number):
        return number

    @jax.custom_jvp
    def summed(number):
        return lockstep_sum(number)

    for function in (plain, summed):
        function.defjvp(lambda primals, tangents, function=function: (function(*primals), 7 * tangents[0]))

    def total(function, number):
        return sum(run_in_lockstep(lambda part: function(lockstep_sum(part)), [(number,), (number,)], identity))

    assert jax.grad(functools.partial(total, plain))(1.0) == 2 * 2 * 7
    with pytest.raises(UserError, match=r'and training\.batch_sum must not be inside .*, got custom_jvp_call'):
        total(summed, 1.0)
