"""Runs one function on several chunks of a batch that wait for each other at every sum over the whole batch.

Batch normalization needs sums over the whole batch in every layer. If the chunks were computed as one array, the order
of these sums, and of those in every gradient, would depend on how many chunks a device has. Instead, the function
is traced once, and its operations are applied to one chunk after another, each up to its next `lockstep_sum`. Then the
sums of the chunks are added in the order of `tree_sum`, and every chunk continues with the total.
"""

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import batching

from mnist_jax.errors import UserError
from mnist_jax.kernels import ops
from mnist_jax.kernels.primitive import Operation
from mnist_jax.kernels.sums import PyTree, tree_sum

_sum = Primitive('lockstep_sum')
_sum.multiple_results = True
_sum.def_abstract_eval(lambda *avals: avals)
batching.primitive_batchers[_sum] = lambda values, axes: (_sum.bind(*values), axes)


def lockstep_sum(tree: PyTree) -> PyTree:
    """Returns the sum of `tree` over all chunks; works only inside a function that `run_in_lockstep` runs."""
    # Parts whose gradient is not needed must not be left out on one device, where no collective keeps them: XLA would
    # compile what remains differently.
    vector, unravel = ravel_pytree(tree)
    return unravel(_sum.bind(vector)[0])


def run_in_lockstep(
    function: Callable, arguments: Sequence[tuple], all_sum: Callable[[PyTree], PyTree]
) -> list[PyTree]:
    """Returns `[function(*chunk) for chunk in arguments]`, computing each `lockstep_sum` over all chunks.

    Sums in the gradient of this function are added in the same order.

    Args:
      function: Calls `lockstep_sum` the same number of times for every chunk.
      arguments: The arguments of each chunk, all of the same shapes.
      all_sum: Sums a pytree over all devices.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments[0])
    structure = jax.tree.structure(shapes)

    def by_chunk(values: Sequence[jax.Array]) -> list[Sequence[jax.Array]]:
        size = len(values) // len(arguments)
        return [values[start : start + size] for start in range(0, len(values), size)]

    def share_sum(*values: jax.Array) -> list[jax.Array]:
        parts = jax.lax.optimization_barrier(by_chunk(values))
        return len(parts) * list(jax.lax.optimization_barrier(all_sum(tree_sum(parts))))

    # The total is broadcast to all chunks, so its gradient is the same ordered sum of their gradients.
    shared_sum = Operation(None, share_sum, lambda *values: share_sum(*values[len(values) // 3 * 2 :]))
    evaluations = [_evaluate_until_sum(jaxpr, jax.tree.leaves(chunk)) for chunk in arguments]
    totals: Sequence[Sequence | None] = [None] * len(evaluations)
    while True:
        parts: list[list] = []
        results: list[PyTree] = []
        for evaluation, total in zip(evaluations, totals, strict=True):
            try:
                parts.append(
                    evaluation.send(total and jax.lax.optimization_barrier(ops.delay_until(parts[-1:], total)))
                )
            except StopIteration as end:
                results.append(jax.tree.unflatten(structure, end.value))
        if results:
            return results
        totals = by_chunk(shared_sum(*itertools.chain(*parts)))


def _evaluate_until_sum(closed: ClosedJaxpr, arguments: Sequence[jax.Array]) -> Generator[list, Any, list]:
    """Evaluates a jaxpr; at each `lockstep_sum`, yields the chunk's values and receives the total."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(variables: Sequence) -> list:
        return [variable.val if isinstance(variable, Literal) else values[variable] for variable in variables]

    for equation in closed.jaxpr.eqns:
        inputs = read(equation.invars)
        if equation.primitive is _sum:
            outputs = yield inputs
        elif (inner := _inner_with_sum(equation)) is not None:
            outputs = yield from _evaluate_until_sum(inner, inputs)
        else:
            with jax.named_scope(str(equation.source_info.name_stack)):  # the layer, for profiles
                outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return read(closed.jaxpr.outvars)


def depends_on(closed: ClosedJaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Returns for each output whether it depends on some inputs other than through a `lockstep_sum`.

    Args:
      closed: The jaxpr of a function.
      inputs: For each input, whether it is one of them.
    """
    dependent = {variable for variable, own in zip(closed.jaxpr.invars, inputs, strict=True) if own}

    def read(variables: Sequence) -> list[bool]:
        return [not isinstance(variable, Literal) and variable in dependent for variable in variables]

    for equation in closed.jaxpr.eqns:
        own = read(equation.invars)
        inner = _inner_with_sum(equation)
        if equation.primitive is _sum:
            outputs = [False] * len(own)
        else:
            outputs = [any(own)] * len(equation.outvars) if inner is None else depends_on(inner, own)
        dependent.update(variable for variable, own in zip(equation.outvars, outputs, strict=True) if own)
    return read(closed.jaxpr.outvars)


def _inner_with_sum(equation: JaxprEqn) -> ClosedJaxpr | None:
    """Returns the function that an equation such as `jit` or `checkpoint` calls, if it calls `lockstep_sum`."""
    values = [value for param in equation.params.values() for value in (param if isinstance(param, tuple) else [param])]
    closed = [ClosedJaxpr(value, ()) if isinstance(value, Jaxpr) else value for value in values]
    with_sum = [value for value in closed if isinstance(value, ClosedJaxpr) and contains_sum(value)]
    if not with_sum:
        return None
    if equation.primitive.name not in ('jit', 'remat2', 'closed_call'):
        raise UserError(
            'batch normalization and training.batch_sum must not be inside a transformation other than jit, remat and '
            f'vmap, got {equation.primitive.name}'
        )
    return with_sum[0]


def contains_sum(closed: ClosedJaxpr) -> bool:
    """Returns whether a function calls `lockstep_sum`."""
    return any(equation.primitive is _sum or _inner_with_sum(equation) is not None for equation in closed.jaxpr.eqns)
