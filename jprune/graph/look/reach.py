"""Which numbers of a net's outputs can depend on its inputs, whatever the inputs are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jprune.graph.couple.arithmetic import ELEMENTWISE
from jprune.graph.couple.roles import CONTRACTIONS
from jprune.jaxprs import CONTROL_FLOW, Equation, Program, bind, nested, program_of

SELECTIONS = frozenset(
    "reshape transpose broadcast_in_dim squeeze expand_dims slice pad rev concatenate reduce_sum "
    "reduce_max reduce_window_max reduce_window_sum copy".split()
)
"""What moves, selects or sums numbers: the Jacobian has only zeros and ones."""
# What these do to numbers above 0 they do to the question whether a number depends on the inputs.
FOLLOWED = SELECTIONS | {"cumsum", "cummax"}


def reached(fn: Callable[..., Any], variables: Any, *args: Any) -> list[np.ndarray]:
    """For every array of the outputs: which of its numbers can depend on the inputs.

    It is a question about where weights are 0, and not about one input: a ReLU that is silent for
    some inputs lets others through. What an operation without a rule reads reaches all that it
    gives, so that True may be wrong there, and False is always right.

    Args:
        fn: `fn(variables, *args)`.
        variables: of the net, at hand: a weight that is 0 lets nothing through.
        *args: inputs, or their shapes.

    Returns:
        Bool arrays of the outputs' shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"]
        >>> v = {"a": jnp.array([[1.0, 0.0]]), "b": jnp.array([[-2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])}
        >>> reached(fn, v, jnp.zeros((1, 1)))[0].tolist()
        [[True, False, False]]
    """
    program, _ = program_of(fn, variables, *args, inline_remat=True)
    leaves = jax.tree.leaves(variables)
    inputs = program.inputs[len(leaves) :]
    depends = {value: np.ones(program.shape(value), bool) for value in inputs}
    return _outputs(program, dict(zip(program.inputs, leaves)), depends)


def _outputs(
    program: Program, known: dict[int, Any], depends: dict[int, np.ndarray]
) -> list[np.ndarray]:
    """Which numbers of a program's outputs depend on the inputs.

    Args:
        program: or a body.
        known: {value: array} of what does not depend on the inputs.
        depends: {value: which of its numbers do}, for the others.
    """
    known = {**program.constants, **known}
    for equation in program.equations:
        if any(value in depends for value in equation.inputs):
            depends |= zip(equation.outputs, _through(program, equation, known, depends))
        elif equation.outputs:
            known |= zip(equation.outputs, bind(equation, [known[v] for v in equation.inputs]))
    nothing = lambda value: np.zeros(program.shape(value), bool)
    return [depends.get(value, nothing(value)) for value in program.outputs]


def _through(
    program: Program, equation: Equation, known: dict[int, Any], depends: dict[int, np.ndarray]
) -> list[np.ndarray]:
    """Which numbers of an equation's results depend on the inputs."""
    shapes = [program.shape(value) for value in equation.outputs]
    moving = [depends[value] for value in equation.inputs if value in depends]
    if not any(part.any() for part in moving):
        return [np.zeros(shape, bool) for shape in shapes]
    if equation.name == "mul" and len(moving) == 1:  # nothing gets through a factor of 0
        factors = [np.asarray(known[v]) != 0 for v in equation.inputs if v not in depends]
        return [np.logical_and(moving[0], factors[0])]
    if equation.name in ELEMENTWISE and len(shapes) == 1:
        return [np.broadcast_to(functools.reduce(np.logical_or, moving), shapes[0])]
    if equation.name in CONTRACTIONS:
        # The operands in turn: what depends, through all that is not 0 in the other.
        through = [
            _run(program, equation, [_lets(program, v, known, depends, v == one) for v in pair])
            for pair in [equation.inputs]
            for one in pair
            if one in depends
        ]
        return [functools.reduce(np.logical_or, through)]
    if equation.name in FOLLOWED:
        zeros = lambda value: np.zeros(program.shape(value), bool)
        return [_run(program, equation, [depends.get(v, zeros(v)) for v in equation.inputs])]
    bodies = nested(equation)
    if len(bodies) == 1 and equation.name not in CONTROL_FLOW:
        (body,) = bodies
        at = [equation.inputs[number] for number in body.operands]
        pairs = list(zip(body.program.inputs, at))
        inside = _outputs(
            body.program,
            {inner: known[value] for inner, value in pairs if value not in depends},
            {inner: depends[value] for inner, value in pairs if value in depends},
        )
        return [inside[output] for output in body.results]
    return [np.ones(shape, bool) for shape in shapes]


def _lets(
    program: Program,
    value: int,
    known: dict[int, Any],
    depends: dict[int, np.ndarray],
    asked: bool,
) -> np.ndarray:
    """What an operand lets through: where it depends, if that is asked, else where it is not 0."""
    if value not in depends:
        return np.asarray(known[value]) != 0
    return depends[value] if asked else np.ones(program.shape(value), bool)


def _run(program: Program, equation: Equation, operands: Sequence[np.ndarray]) -> np.ndarray:
    """An equation on numbers that are 1 where an operand is True, and 0 elsewhere."""
    types = [program.avals[value].dtype for value in equation.inputs]
    numbers = [operand.astype(dtype) for operand, dtype in zip(operands, types)]
    return np.asarray(bind(equation, numbers)[0]) > 0
