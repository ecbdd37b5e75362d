"""Square roots that have the same bits on every processor."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir


@functools.cache
def use_exact_square_roots() -> None:
    """Makes JAX compute sqrt, rsqrt and division by a square root with the operations that IEEE 754 fixes, on a CPU.

    XLA rewrites a / sqrt(b) as a * rsqrt(b), and computes rsqrt from an approximation of the processor, which differs
    between makers and generations. Of the functions that XLA computes for models and optimizers, it is the only one.
    Affects what is compiled afterwards, in the whole process.
    """
    exact_sqrt = mlir.lower_fun(_hide_from_division, multiple_results=False)
    exact_rsqrt = mlir.lower_fun(lambda x: 1 / jnp.sqrt(x), multiple_results=False)

    def lower_sqrt(context: mlir.LoweringRuleContext, x: mlir.Value, **params: object) -> Sequence[mlir.Value]:
        return exact_sqrt(context, stablehlo.SqrtOp(x).result)

    def lower_rsqrt(context: mlir.LoweringRuleContext, x: mlir.Value, **params: object) -> Sequence[mlir.Value]:
        return exact_rsqrt(context, x)

    mlir.register_lowering(jax.lax.sqrt_p, lower_sqrt, platform='cpu')
    mlir.register_lowering(jax.lax.rsqrt_p, lower_rsqrt, platform='cpu')


def _hide_from_division(root: jax.Array) -> jax.Array:
    """Returns the root itself, in a form that XLA's rewriting rule for divisions does not match."""
    return root if jnp.iscomplexobj(root) else jnp.maximum(root, 0)
