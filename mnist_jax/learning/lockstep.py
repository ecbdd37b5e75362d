"""Runs one function on several chunks of a batch that wait for each other at every sum over the whole batch.

Batch normalization needs sums over the whole batch in every layer. If the chunks were computed as one array, the order
of these sums, and of those in every gradient, would depend on how many chunks a device has. Instead, the function
is traced once, and its operations are applied to one chunk after another, each up to its next `lockstep_sum`. Then the
sums of the chunks are added in the order of `tree_sum`, and every chunk continues with the total.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, Primitive

from mnist_jax.kernels import ops
from mnist_jax.kernels.sums import PyTree, tree_sum

_sum = Primitive('lockstep_sum')
_sum.multiple_results = True
_sum.def_abstract_eval(lambda *avals: avals)


def lockstep_sum(tree: PyTree) -> PyTree:
    """Returns the sum of `tree` over all chunks; works only inside a function that `run_in_lockstep` runs."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _sum.bind(*leaves))


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

    @jax.custom_vjp
    def share_sum(parts: list) -> list:
        total = jax.lax.optimization_barrier(all_sum(tree_sum(jax.lax.optimization_barrier(parts))))
        return [total] * len(parts)

    # The total is broadcast to all chunks, so its gradient is the same ordered sum of their gradients.
    share_sum.defvjp(lambda parts: (share_sum(parts), None), lambda _, gradients: (share_sum(gradients),))
    evaluations = [_evaluate_until_sum(jaxpr, jax.tree.leaves(chunk)) for chunk in arguments]
    totals: list[list | None] = [None] * len(evaluations)
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
        totals = share_sum(parts)


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
        else:
            outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
        values.update(zip(equation.outvars, outputs if equation.primitive.multiple_results else [outputs], strict=True))
    return read(closed.jaxpr.outvars)
