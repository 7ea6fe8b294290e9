"""Equations with bodies on smaller arrays: custom derivatives, rematerialisation, control flow.

Functions with custom derivatives keep them: on smaller arrays, the derivative is the program of
their own jvp or vjp, run on the kept positions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune.graph.couple.answers import spread
from jprune.graph.couple.interpret import Frame, interpret
from jprune.graph.couple.labels import Fixed, Labels
from jprune.graph.shrink.rules import Alive, Keep, Step, rule, run
from jprune.jaxprs import REMAT, Body, bind, nested, program_of


@rule("custom_jvp_call")
def custom_jvp_call(step: Step) -> list[Any]:
    """The same function on smaller arrays, with the derivative rule that it came with."""
    body, frame, alive = step.equation.inner[0], step.frames[0], step.alive
    whole = lambda *xs: bind(step.equation, xs)

    @jax.custom_jvp
    def function(*xs: Any) -> list[Any]:
        return run(body, frame, alive, xs)

    @function.defjvp
    def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        # The derivative rule was written for full arrays and may compute shapes from them: it is
        # traced at full size, and its program is run on the small ones.
        full = _full_shapes(step)
        push = lambda xs, ts: jax.jvp(lambda *ys: whole(*ys), xs, ts)
        # Inputs of (primals, tangents) -> (results, tangents of the results): a tangent has the
        # axes of its primal.
        keeps = [*step.in_keeps, *step.in_keeps]
        results = _rerun(push, (full, _tangents(full)), keeps, (*primals, *tangents))
        # results, then their tangents
        half = len(results) // 2
        return results[:half], results[half:]

    return function(*step.values)


@rule("custom_vjp_call", "custom_vjp_call_jaxpr")
def custom_vjp_call(step: Step) -> list[Any]:
    """As for `custom_jvp_call`; the cotangents go through the function's own backward rule."""
    body, frame, alive = step.equation.inner[0], step.frames[0], step.alive
    whole = lambda *xs: bind(step.equation, xs)

    @jax.custom_vjp
    def function(*xs: Any) -> list[Any]:
        return run(body, frame, alive, xs)

    def forward(*xs: Any) -> tuple[Any, Any]:
        # All operands are saved: what the function's own forward pass saves has no labels outside
        # it.
        return function(*xs), xs

    def backward(xs: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        full = _full_shapes(step)
        outputs = tuple(jax.eval_shape(whole, *full))
        pull = lambda xs, cts: jax.vjp(lambda *ys: whole(*ys), *xs)[1](list(cts))
        # (xs, cotangents of the results): these have the axes of the results.
        keeps = [*step.in_keeps, *step.out_keeps]
        return tuple(_rerun(pull, (full, _tangents(outputs)), keeps, (*xs, *cotangents)))

    function.defvjp(forward, backward)
    return function(*step.values)


def _full_shapes(step: Step) -> tuple[jax.ShapeDtypeStruct, ...]:
    avals = (step.program.avals[value] for value in step.equation.inputs)
    return tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)


def _tangents(shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of tangents or cotangents: integers have float0."""
    return tuple(
        jax.ShapeDtypeStruct(
            s.shape, s.dtype if jnp.issubdtype(s.dtype, jnp.inexact) else jax.dtypes.float0
        )
        for s in shapes
    )


def _rerun(
    fn: Callable[..., Any], shapes: tuple[Any, ...], keeps: Sequence[Keep], values: Sequence[Any]
) -> list[Any]:
    """Runs a derivative, traced at full `shapes`, on the positions of its inputs in `keeps`."""
    # Its own program, with labels of its own: only the kept positions of its inputs tell what
    # lives.
    program, _ = program_of(fn, *shapes)
    labels = Labels()
    inputs = [tuple(labels.axis(n) for n in program.shape(value)) for value in program.inputs]
    frame = interpret(labels, program, inputs)
    pairs = [pair for axes, keep in zip(inputs, keeps) for pair in zip(axes, keep)]
    dead = np.array([False])  # the one unit that all dead positions answer to
    seeds = [
        # -1: no unit, always alive; 0: the one dead unit
        (axis, np.full((1, len(axis)), -1) if keep is None else np.where(keep, -1, 0)[None])
        for axis, keep in pairs
        if not isinstance(axis, Fixed)
    ]
    return run(program, frame, Alive(spread(labels, seeds), dead), values)


@rule(*REMAT)
def remat(step: Step) -> list[Any]:
    """Rematerialised as before, on smaller arrays."""
    body, frame, alive = step.equation.inner[0], step.frames[0], step.alive
    params = step.equation.params
    again = jax.checkpoint(
        lambda *xs: run(body, frame, alive, xs),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return again(*step.values)


@rule("cond")
def cond(step: Step) -> list[Any]:
    """The same branches on smaller arrays."""
    index, *operands = step.values
    branches = [
        # Default arguments bind this branch: a closure would see the last one.
        lambda *xs, body=body, frame=frame: run(body, frame, step.alive, xs)
        for body, frame in zip(step.equation.inner, step.frames)
    ]
    return jax.lax.switch(index, branches, *operands)


@rule("while")
def while_(step: Step) -> list[Any]:
    """The same loop on smaller arrays."""
    condition, body = nested(step.equation)

    def turn(of: Body, frame: Frame, carry: Sequence[Any]) -> list[Any]:
        inputs = [step.values[number] for number in of.operands]
        for place, value in zip(of.carried, carry):
            inputs[place] = value
        return run(of.program, frame, step.alive, inputs)

    return jax.lax.while_loop(
        lambda carry: turn(condition, step.frames[0], carry)[0],
        lambda carry: turn(body, step.frames[1], carry),
        [step.values[body.operands[place]] for place in body.carried],
    )


@rule("scan")
def scan(step: Step) -> list[Any]:
    """The same loop over smaller stacked arrays."""
    params = step.equation.params
    (body,), (frame,) = nested(step.equation), step.frames

    def turn(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        inputs = [*step.values]
        for place, value in zip((*body.carried, *body.stacked), (*carry, *xs)):
            inputs[place] = value
        results = run(body.program, frame, step.alive, inputs)
        return results[: len(carry)], results[len(carry) :]

    carry, collected = jax.lax.scan(
        turn,
        [step.values[place] for place in body.carried],
        [step.values[place] for place in body.stacked],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *collected]
