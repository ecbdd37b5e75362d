"""Turns C kernels into operations that support all of JAX's transformations.

XLA cannot look into a kernel, so JAX can neither differentiate nor batch a call of one. `Operation` is a JAX primitive
with rules for that: reverse mode calls other kernels, a batch of batches becomes one large batch, and the rest is left
to the plain form of the operation, which JAX transforms like any other function.
"""

import contextvars
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mnist_jax.kernels.build import kernels_available
from mnist_jax.kernels.sums import PyTree

use_plain = contextvars.ContextVar('use_plain', default=False)
"""Whether calls of an operation are traced as calls of its plain function."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A function of arrays that a C kernel computes on a CPU if all arrays are non-empty and float32.

    Create it once, not once per call: JAX caches traces by operation.

    Attributes:
      kernel: The name of the C kernel, if there is one.
      plain: The same function in plain JAX.
      gradients: Maps the arguments, the outputs and their gradients to the gradients of the arguments. If None, the
        plain function is differentiated.
      by_example: The positions of the arguments with one row per example, if each row of the output depends only on the
        same row of these. Then `vmap` over them computes one large batch.
      in_place: Whether the kernel may write its result over its first argument, which has the same shape. XLA copies an
        argument that is needed later.
    """

    kernel: str | None
    plain: Callable[..., PyTree]
    gradients: Callable[..., Sequence[jax.Array]] | None = None
    by_example: tuple[int, ...] = ()
    in_place: bool = False

    def __call__(self, *arrays: jax.Array) -> PyTree:
        """Returns `plain(*arrays)`, except for rounding."""
        if use_plain.get():
            return self.plain(*arrays)
        structure = jax.tree.structure(jax.eval_shape(self.plain, *arrays))
        return jax.tree.unflatten(structure, _call.bind(*arrays, operation=self))


def _evaluate(*arrays: jax.Array, operation: Operation) -> list[jax.Array]:
    on_cpu, default = (functools.partial(form, operation=operation) for form in (_evaluate_on_cpu, _evaluate_plain))
    return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=default)


def _evaluate_on_cpu(*arrays: jax.Array, operation: Operation) -> list[jax.Array]:
    shapes = jax.eval_shape(operation.plain, *arrays)
    everything = jax.tree.leaves((arrays, shapes))
    suitable = all(0 not in array.shape and array.dtype == jnp.float32 for array in everything)
    if operation.kernel is None or not suitable or not kernels_available():
        return _evaluate_plain(*arrays, operation=operation)
    aliases = {0: 0} if operation.in_place else None
    call = jax.ffi.ffi_call(f'mnist_jax_{operation.kernel}', shapes, input_output_aliases=aliases)
    return jax.tree.leaves(call(*arrays))


def _evaluate_plain(*arrays: jax.Array, operation: Operation) -> list[jax.Array]:
    return jax.tree.leaves(operation.plain(*arrays))


def _shapes(*arrays: jax.core.ShapedArray, operation: Operation) -> list[jax.core.ShapedArray]:
    leaves = jax.tree.leaves(jax.eval_shape(operation.plain, *arrays))
    return [jax.core.ShapedArray(leaf.shape, leaf.dtype) for leaf in leaves]


def _jvp(arrays: Sequence, tangents: Sequence, operation: Operation) -> tuple[list, list]:
    outputs = _call.bind(*arrays, operation=operation)
    argnums = tuple(i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero))
    values = (*arrays, *outputs, *(tangents[i] for i in argnums))
    return outputs, _derivative.bind(*values, operation=operation, argnums=argnums, arity=len(arrays))


def _batch(arrays: Sequence, axes: Sequence[int | None], operation: Operation) -> tuple[list, list[int]]:
    batched = [i for i, axis in enumerate(axes) if axis is not None]
    if set(batched) <= set(operation.by_example):
        size = arrays[batched[0]].shape[axes[batched[0]]]
        merged = list(arrays)
        for i in operation.by_example:
            batched_array = batching.bdim_at_front(arrays[i], axes[i], size)
            merged[i] = jax.lax.collapse(batched_array, 0, 2)
        outputs = _call.bind(*merged, operation=operation)
        outputs = [output.reshape(*batched_array.shape[:2], *output.shape[1:]) for output in outputs]
    else:
        outputs = jax.tree.leaves(jax.vmap(operation.plain, tuple(axes))(*arrays))
    return outputs, [0] * len(outputs)


_call = Primitive('mnist_jax_call')
_call.multiple_results = True
_call.def_impl(_evaluate)
_call.def_abstract_eval(_shapes)
ad.primitive_jvps[_call] = _jvp
batching.primitive_batchers[_call] = _batch
mlir.register_lowering(_call, mlir.lower_fun(_evaluate_plain))
mlir.register_lowering(_call, mlir.lower_fun(_evaluate_on_cpu), platform='cpu')


# The derivative of an operation is a primitive too: a function of the operation's arguments, its outputs, and the
# tangents of the arguments `argnums`, in which it is linear. Reverse mode never computes it, but transposes it.


def _split(values: Sequence, argnums: tuple[int, ...], arity: int) -> tuple[Sequence, Sequence, Sequence]:
    """Splits the arguments of a derivative into those of the operation, its outputs and the tangents."""
    end = len(values) - len(argnums)
    return values[:arity], values[arity:end], values[end:]


def _evaluate_derivative(*values: jax.Array, operation: Operation, argnums: tuple[int, ...], arity: int) -> list:
    arrays, _, tangents = _split(values, argnums, arity)

    def plain(*varying: jax.Array) -> PyTree:
        values = dict(zip(argnums, varying, strict=True))
        return operation.plain(*(values.get(i, array) for i, array in enumerate(arrays)))

    return jax.tree.leaves(jax.jvp(plain, [arrays[i] for i in argnums], list(tangents))[1])


def _derivative_jvp(values: Sequence, tangents: Sequence, **params: Any) -> tuple[list, list]:
    function = functools.partial(_evaluate_derivative, **params)
    return jax.jvp(function, list(values), [ad.instantiate_zeros(tangent) for tangent in tangents])


def _derivative_transpose(
    gradients: Sequence, *values: Any, operation: Operation, argnums: tuple[int, ...], arity: int
) -> list:
    arrays, outputs, _ = _split(values, argnums, arity)
    gradients = [ad.instantiate_zeros(gradient) for gradient in gradients]
    if operation.gradients is not None:
        array_gradients = operation.gradients(*arrays, *outputs, *gradients)
    else:
        plain_outputs, vjp = jax.vjp(operation.plain, *arrays)
        array_gradients = vjp(jax.tree.unflatten(jax.tree.structure(plain_outputs), gradients))
    return [None] * (arity + len(outputs)) + [array_gradients[i] for i in argnums]


def _derivative_batch(values: Sequence, axes: Sequence[int | None], **params: Any) -> tuple[list, list[int]]:
    outputs = jax.vmap(functools.partial(_evaluate_derivative, **params), tuple(axes))(*values)
    return outputs, [0] * len(outputs)


_derivative = Primitive('mnist_jax_derivative')
_derivative.multiple_results = True
_derivative.def_impl(_evaluate_derivative)
_derivative.def_abstract_eval(lambda *values, argnums, arity, operation: _split(values, argnums, arity)[1])
ad.primitive_jvps[_derivative] = _derivative_jvp
ad.primitive_transposes[_derivative] = _derivative_transpose
batching.primitive_batchers[_derivative] = _derivative_batch
mlir.register_lowering(_derivative, mlir.lower_fun(_evaluate_derivative))
