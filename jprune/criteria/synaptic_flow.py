"""Synaptic flow: what a connection carries of a signal of ones through the absolute weights.

References:
    Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively
    conserving synaptic flow, 2020, arXiv 2006.05467.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.base import Criterion, PyTree, Variables
from jprune.jaxprs import Program, bind, program_of
from jprune.masks import map_parameters

Flow = Callable[[Variables], tuple[Any, PyTree]]
SMALL = 1e-30
"""A flow below it loses scores to the underflow of float32."""
LEAST = 1e-5
"""Of the flow, what a layer must carry at least, if any does."""
INLINED = {"custom_jvp_call", "custom_vjp_call", "jit", "pjit", "closed_call", "core_call"}


def synaptic_flow(fn: Callable[..., Any], example: Any) -> Criterion:
    """|dR/d|w|| |w| of every parameter, R the sum of the outputs on ones, all variables absolute.

    In a chain without shifts the scores of every layer add up to R: what a layer with few weights
    loses in number, its weights gain in score. Pruned in many small rounds, each with new scores,
    no layer is emptied as long as the budget leaves one path; in one round layers collapse as with
    other criteria. No data is looked at.

    Statistics are made absolute too, as in the authors' code, and norms are in inference mode.

    Args:
        fn: `fn(variables, x)`, in inference mode.
        example: shapes and types of `x`, as `Task.example`; its numbers are not looked at.

    Returns:
        A criterion; scores are a tree like the variables, None for statistics. Where the flow
        leaves the range of float32 they are computed in float64, and are NumPy arrays.

    Raises:
        ArgumentError: (when scoring) the flow is not finite even so, or no weight carries any of
            it: behind a softmax, or a norm that takes off the mean of an example.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> variables = {"a": jnp.array([[1.0, 3.0], [-2.0, 4.0]]), "b": jnp.array([[1.0], [-1.0]])}
        >>> criterion = synaptic_flow(fn, jax.ShapeDtypeStruct((1, 2), jnp.float32))
        >>> scores = jprune.run_criterion(criterion, variables, ())
        >>> scores["a"].tolist(), scores["b"][:, 0].tolist()
        ([[1.0, 3.0], [2.0, 4.0]], [3.0, 7.0])
    """
    flow = flow_of(fn, example)

    def score(state: Any, variables: Variables) -> PyTree:
        del state
        total, scores = flow(variables)
        if not isinstance(total, Tracer):
            _check(float(total), scores)
        return scores

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)


def flow_of(fn: Callable[..., Any], example: Any) -> Flow:
    """`variables -> (R, scores)`, as `synaptic_flow` has them, and refused by nothing.

    Where no path of weights is left from the inputs to the outputs, R is 0 (of a net without
    shifts), and so are all scores of a layer that none leads through.

    Args:
        fn: `fn(variables, x)`, in inference mode.
        example: shapes and types of `x`.

    Example:
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> variables = {"a": jnp.array([[1.0, 0.0]]), "b": jnp.array([[0.0], [5.0]])}
        >>> total, scores = flow_of(fn, jax.ShapeDtypeStruct((1, 1), jnp.float32))(variables)
        >>> float(total), float(scores["a"].sum())
        (0.0, 0.0)
    """
    x = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), example)

    def scored(run: Callable[..., Any]) -> Callable[[Variables], tuple[Any, PyTree]]:
        def of(variables: Variables) -> tuple[Any, PyTree]:
            # |theta|, of parameters and statistics; integers and keys stay as they are.
            sizes = jax.tree.map(lambda leaf: jnp.abs(leaf) if _inexact(leaf) else leaf, variables)
            # R = 1^T f(1; |theta|)
            total = lambda sizes: sum(jnp.sum(out) for out in jax.tree.leaves(run(sizes, x)))
            value, slopes = jax.value_and_grad(total, allow_int=True)(sizes)
            # S = |dR/d|theta| * |theta||
            product = lambda size, slope: jnp.abs(slope * size) if _inexact(size) else 0 * size
            return value, map_parameters(product, sizes, slopes)

        return jax.jit(of)

    single, double = scored(fn), scored(_in_double(fn))

    def flow(variables: Variables) -> tuple[Any, PyTree]:
        total, scores = single(variables)
        leaves = jax.tree.leaves(scores)
        if any(isinstance(leaf, Tracer) for leaf in (total, *leaves)) or _in_range(total, leaves):
            return total, scores
        with jax.enable_x64(True):
            wide = jax.tree.map(
                lambda leaf: np.asarray(leaf, np.float64) if _inexact(leaf) else leaf, variables
            )
            total, scores = double(wide)
            return np.asarray(total), jax.tree.map(np.asarray, scores)

    return flow


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _in_range(total: Any, scores: Sequence[Any]) -> bool:
    finite = np.isfinite(total) and all(np.isfinite(np.asarray(leaf)).all() for leaf in scores)
    return bool(finite and abs(total) > SMALL)


def _check(total: float, scores: PyTree) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(scores)]
    if not (np.isfinite(total) and all(np.isfinite(leaf).all() for leaf in leaves)):
        raise errors.ArgumentError(
            "the synaptic flow is not finite in float64 either: the net divides by what is 0 on "
            "ones, or its weights are not finite. Take a criterion that looks at data, such as "
            "sensitivity."
        )
    # Of a sum that does not depend on weights, rounding may leave a little.
    if not any(leaf.sum() > LEAST * abs(total) for leaf in leaves):
        raise errors.ArgumentError(
            "no weight carries synaptic flow: the sum of the outputs on ones does not depend on "
            "them. That is so behind a softmax, and behind a norm that takes off the mean of an "
            "example. Leave the softmax to the loss, or take a criterion that looks at data, such "
            "as sensitivity."
        )


def _in_double(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with all its floats as float64, those that it casts itself too.

    Nets cast parameters to the type that they compute in, so that wide variables alone do nothing.
    """

    def run(variables: Variables, x: Any) -> Any:
        program, output = program_of(fn, variables, x, inline_remat=True)
        results = _run(program, jax.tree.leaves((variables, x)))
        return jax.tree.unflatten(jax.tree.structure(output), results)

    return run


def _run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    values: list[Any] = [None] * len(program.avals)
    for value, array in (*program.constants.items(), *zip(program.inputs, inputs)):
        values[value] = _wide(array)
    for equation in program.equations:
        operands = [values[value] for value in equation.inputs]
        avals = [program.avals[value] for value in equation.outputs]
        floats = jnp.issubdtype(avals[0].dtype, jnp.floating) if avals else False
        if equation.name == "convert_element_type" and floats and _inexact(operands[0]):
            results = operands
        elif len(equation.inner) == 1 and equation.name in INLINED:
            results = _run(equation.inner[0], operands)
        elif equation.inner:
            # Bodies of loops hold types of their own: they run as they were written.
            types = [program.avals[value].dtype for value in equation.inputs]
            results = bind(equation, [jnp.asarray(v, t) for v, t in zip(operands, types)])
        else:
            wide = {
                name: jnp.dtype("float64")
                for name in ("preferred_element_type", "dtype", "new_dtype")
                if floats and equation.params.get(name) is not None
            }
            results = bind(equation, operands, {**equation.params, **wide})
        for value, result in zip(equation.outputs, results):
            values[value] = _wide(result)
    return [values[value] for value in program.outputs]


def _wide(value: Any) -> Any:
    # Random keys have a type that NumPy does not know.
    dtype = value.dtype if hasattr(value, "dtype") else np.result_type(value)
    return jnp.asarray(value, jnp.float64) if jnp.issubdtype(dtype, jnp.floating) else value
