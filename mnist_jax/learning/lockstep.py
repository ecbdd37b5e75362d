"""One function on several chunks of a batch, each waiting for the others wherever it needs a sum over all of them.

BatchNorm needs, in every layer, sums over the whole batch. Computing the chunks in one piece would take these sums,
and those of every gradient, in an order that depends on how many chunks lie on a device. So the function is traced
once, and its operations are applied to one chunk after another, each up to its next `total`; then the sums of the
chunks are added, in the order of `tree_sum`, and every chunk goes on with the result.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
from jax.extend.core import Literal, Primitive

from mnist_jax.kernels import ops
from mnist_jax.kernels.sums import tree_sum

_total = Primitive('total')
_total.multiple_results = True
_total.def_abstract_eval(lambda *avals: avals)


def lockstep_sum(tree: Any) -> Any:
    """The sum of `tree` over all chunks, in a function that `run` runs."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _total.bind(*leaves))


def run_in_lockstep(function: Callable, arguments: Sequence[tuple], all_sum: Callable[[Any], Any]) -> list[Any]:
    """`[function(*chunk) for chunk in arguments]`, where `total` is the sum over the chunks and, by `all_sum`, devices.

    Its gradient adds what belongs together in the same order.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments[0])
    structure = jax.tree.structure(shapes)

    @jax.custom_vjp
    def shared(parts: list[Any]) -> list[Any]:
        whole = jax.lax.optimization_barrier(all_sum(tree_sum(jax.lax.optimization_barrier(parts))))
        return [whole] * len(parts)

    # Every chunk has a part in what all of them get: of such a sum, the gradient is the same sum of the gradients.
    shared.defvjp(lambda parts: (shared(parts), None), lambda _, gradients: (shared(gradients),))
    paused = [_until_total(jaxpr, jax.tree.leaves(chunk)) for chunk in arguments]
    received: list[Any] = [None] * len(paused)
    while True:
        parts, results = [], []
        for chunk, values in zip(paused, received, strict=True):
            try:
                parts.append(chunk.send(values and jax.lax.optimization_barrier(ops.delay_until(parts[-1:], values))))
            except StopIteration as end:
                results.append(jax.tree.unflatten(structure, end.value))
        if results:
            return results
        received = shared(parts)


def _until_total(closed: Any, arguments: Sequence[jax.Array]) -> Generator[list, list, list]:
    """Evaluate a closed jaxpr; yields what is to be added up, and is sent the sum."""
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(places: Sequence[Any]) -> list:
        return [place.val if isinstance(place, Literal) else known[place] for place in places]

    for equation in closed.jaxpr.eqns:
        values = read(equation.invars)
        if equation.primitive is _total:
            values = yield values
        else:
            values = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
        known.update(zip(equation.outvars, values if equation.primitive.multiple_results else [values], strict=True))
    return read(closed.jaxpr.outvars)
