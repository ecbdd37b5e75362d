"""Square roots and divisions by them have the bits of NumPy, which computes them as IEEE 754 fixes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

VALUES = np.random.default_rng(0).exponential(size=4097).astype(np.float32)
NUMERATORS = np.random.default_rng(1).normal(size=4097).astype(np.float32)


# The tests' backend has been started by `start_backend`, which calls `use_exact_square_roots`.
@pytest.mark.parametrize(
    ('function', 'reference'),
    [
        (lambda x, y: jnp.sqrt(x), lambda x, y: np.sqrt(x)),
        (lambda x, y: jax.lax.rsqrt(x), lambda x, y: 1 / np.sqrt(x)),
        (lambda x, y: y / jnp.sqrt(x), lambda x, y: y / np.sqrt(x)),
        (lambda x, y: y * jax.lax.rsqrt(x), lambda x, y: y * (1 / np.sqrt(x))),
        (lambda x, y: jnp.sqrt(y * y) / jnp.sqrt(x), lambda x, y: np.sqrt(y * y) / np.sqrt(x)),
        (jax.vmap(lambda x, y: y / jnp.sqrt(x)), lambda x, y: y / np.sqrt(x)),
    ],
)
def test_compiled_functions_have_the_bits_of_numpy(function, reference):
    np.testing.assert_array_equal(jax.jit(function)(VALUES, NUMERATORS), reference(VALUES, NUMERATORS))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'complex64'])
def test_other_types_and_special_values_are_those_of_jax(dtype):
    special = np.array([0, 1, np.inf, np.nan, -1, 4], np.complex64 if dtype == 'complex64' else np.float32)
    roots = np.asarray(jax.jit(jnp.sqrt)(jnp.asarray(special, dtype))).astype(special.dtype)
    with np.errstate(invalid='ignore'):
        np.testing.assert_allclose(roots, np.sqrt(special), rtol=1e-2)


def test_derivatives_are_unchanged():
    np.testing.assert_allclose(jax.jit(jax.grad(jax.lax.rsqrt))(4.0), -1 / 16, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(jnp.sqrt)))(4.0), -1 / 32, rtol=1e-6)


def test_an_optimizer_of_optax_has_the_bits_of_numpy():
    optimizer = optax.scale_by_rms(0.75, 0.0, eps_in_sqrt=True)  # 0.75 and 0.25 are exact, so nothing is fused
    updates, _ = jax.jit(optimizer.update)(NUMERATORS, optimizer.init(NUMERATORS))
    second_moment = np.float32(0.25) * (NUMERATORS * NUMERATORS)
    np.testing.assert_array_equal(updates, NUMERATORS * (1 / np.sqrt(second_moment)))
