"""OBD's own estimate: second derivatives propagated backwards, like gradients.

For a unit with input a = sum_j w_j x_j and output x' = f(a), per example:

    d2E/dw_j2 = x_j^2 d2E/da2,
    d2E/dx_j2 = sum_i w_ij^2 d2E/da_i2,
    d2E/da2 = f'(a)^2 d2E/dx'2 + f''(a) dE/dx';

A weight that several connections share (a convolution) gets the sum over them. Cross terms between
units are left out, so that this is the true diagonal for the last two layers only. The
Levenberg-Marquardt form leaves out the term with f'', and is never negative.

The net is read as a list of equations. Contractions are transposed at squared inputs, which
multiplies by squares, as the first two formulas do; operations that only move, select or sum
numbers (reshapes, pools) are transposed as they are; all elementwise equations between two of these
form one function f.

By hand, for out = b tanh(a x), E = out^2, x = 1, a = 0.5, b = 2, with t = tanh(a) = 0.4621: at the
output the derivatives are 2 out = 1.8485 and 2, so weight b has d2E/db2 = t^2 * 2 = 0.4271. Back
through b, dE/dt = b * 1.8485 = 3.6969 and d2E/dt2 = b^2 * 2 = 8. Through tanh, with
f' = 1 - t^2 = 0.7864 and f'' = -2 t f' = -0.7269, weight a has
d2E/da2 = 0.7864^2 * 8 - 0.7269 * 3.6969 = 2.261.

References:
    LeCun, Denker, Solla, Optimal brain damage, 1990, Advances in Neural Information Processing
    Systems 2 [1].
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, Variables
from jprune.curvature.diagonal import Estimator
from jprune.curvature.products import Function, losses_of, parameters_of, shares_of
from jprune.curvature.rows import check_outputs
from jprune.graph.couple.arithmetic import ELEMENTWISE
from jprune.graph.couple.roles import CONTRACTIONS
from jprune.graph.look.reach import SELECTIONS
from jprune.jaxprs import Equation, Program, bind, describe, program_of, user_line

KINDS = {
    **dict.fromkeys(ELEMENTWISE, "function"),
    # The zeros and ones of their Jacobian are their own squares: first and second derivatives go
    # back the same way.
    **dict.fromkeys(SELECTIONS, "selection"),
    **dict.fromkeys(CONTRACTIONS, "contraction"),
}
INNER = {"custom_jvp_call", "jit", "pjit", "closed_call"}
"""Calls that are a function if all that is in them is."""
Pair = tuple[Any, Any]
"""First and second derivative of the loss in a value."""


def kind_of(equation: Equation) -> str | None:
    """What second derivatives meet in an equation; None: no rule.

    A function with a derivative of its own is elementwise if all equations in it are: a rule for
    derivatives may stand around a product with a matrix as well.
    """
    if equation.name not in INNER:
        return KINDS.get(equation.name)
    # A scalar is repeated (`broadcast_in_dim`) before it meets an array: relu's 0.
    inner = [(body, e) for body in equation.inner for e in body.equations]
    elementwise = all(
        kind_of(e) == "function"
        or (e.name == "broadcast_in_dim" and all(body.shape(v) == () for v in e.inputs))
        for body, e in inner
    )
    return "function" if elementwise else None


class Step(NamedTuple):
    """Equations that are propagated through together, as one function.

    Attributes:
        kind: "contraction", "selection" or "function".
        equations: in execution order.
        inputs: numbers of the values it reads that depend on variables or data.
        output: number of the value it makes.
    """

    kind: str
    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    output: int


@functools.cache
def recursion(levenberg_marquardt: bool = False) -> Estimator:
    """An estimator of the diagonal by OBD's recursion, at the cost of one more backward pass.

    It covers chains: dense layers and convolutions, with anything elementwise (norms in inference
    mode too) and pools in between, and one array as output.

    Args:
        levenberg_marquardt: leave out the second derivatives of the nonlinearities.

    Raises:
        TraceError: (when run) the net is no such chain; the message names the equation.

    Example:
        >>> fn = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]
        >>> loss = lambda out, batch: out[:, 0] ** 2
        >>> variables = {"a": jnp.array([[0.5]]), "b": jnp.array([[2.0]])}
        >>> batch = {"image": jnp.ones((1, 1))}
        >>> a, b = recursion().estimate(fn, loss, variables, batch, None)
        >>> round(float(a[0, 0]), 4), round(float(b[0, 0]), 4)
        (2.2608, 0.4271)
    """

    def estimate(
        fn: Function, loss: Function, variables: Variables, batch: Batch, key: Any
    ) -> list[jax.Array]:
        del key
        leaves = jax.tree.leaves(variables)
        program, _ = program_of(fn, variables, batch["image"], inline_remat=True)
        steps = find_steps(program, len(leaves))
        values = _run(program, [*leaves, jnp.asarray(batch["image"])])
        # {value: (dE/dvalue, d2E/dvalue2)}, from the output backwards.
        derivatives = {program.outputs[0]: _of_loss(loss, values[program.outputs[0]], batch)}
        for step in reversed(steps):
            after = derivatives.get(step.output)
            if after is None:
                continue
            inputs = [values[value] for value in step.inputs]
            back = BACKWARDS[step.kind]
            before = back(_function_of(step, values), inputs, after, levenberg_marquardt)
            # A leaf may be read by several steps: its connections' derivatives are summed.
            for value, pair in zip(step.inputs, before):
                earlier = derivatives.get(value)
                derivatives[value] = pair if earlier is None else tuple(map(jnp.add, earlier, pair))
        parameters = parameters_of(variables)
        return [
            derivatives[program.inputs[place]][1]
            if program.inputs[place] in derivatives
            else 0 * value
            for place, value in zip(parameters.places, parameters.values)
        ]

    return Estimator("recursion", estimate, False)


def _run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The arrays of all values of a program, computed equation by equation."""
    values: list[Any] = [None] * len(program.avals)
    for value, array in (*program.constants.items(), *zip(program.inputs, inputs)):
        values[value] = array
    for equation in program.equations:
        results = bind(equation, [values[value] for value in equation.inputs])
        for value, result in zip(equation.outputs, results):
            values[value] = result
    return values


def _function_of(step: Step, values: Sequence[Any]) -> Function:
    """The step as a function of its inputs; its other operands are held constant."""

    def run(*inputs: Any) -> Any:
        computed = dict(zip(step.inputs, inputs))
        for equation in step.equations:
            operands = [computed.get(value, values[value]) for value in equation.inputs]
            computed.update(zip(equation.outputs, bind(equation, operands)))
        return computed[step.output]

    return run


def _of_loss(loss: Function, out: jax.Array, batch: Batch) -> Pair:
    """First derivatives of the mean loss in the outputs, and the diagonal of the second ones."""
    check_outputs(out[0].size)

    # Examples do not interact: a Hessian [outputs, outputs] of each, of which the diagonal is used.
    def one(vector: jax.Array, example: Batch, share: jax.Array) -> Pair:
        many = jax.tree.map(lambda leaf: leaf[None], example)
        of = lambda flat: share * losses_of(loss, flat.reshape(1, *vector.shape), many)[0]
        flat = vector.reshape(-1)
        second = jnp.diagonal(jax.hessian(of)(flat))
        return jax.grad(of)(flat).reshape(vector.shape), second.reshape(vector.shape)

    return jax.vmap(one)(out, jax.tree.map(jnp.asarray, dict(batch)), shares_of(batch))


def _through_contraction(run: Function, inputs: list[Any], after: Pair, simple: bool) -> list[Pair]:
    del simple
    # dE/dw_j = x_j dE/da; d2E/dw_j2 = x_j^2 d2E/da2, and the same with w and x exchanged: the
    # contraction's transpose at squared inputs. Shared weights are summed over by the transpose.
    first = jax.vjp(run, *inputs)[1](after[0])
    second = jax.vjp(run, *(value**2 for value in inputs))[1](after[1])
    return list(zip(first, second))


def _through_selection(run: Function, inputs: list[Any], after: Pair, simple: bool) -> list[Pair]:
    del simple
    pull = jax.vjp(run, *inputs)[1]
    return list(zip(pull(after[0]), pull(after[1])))


def _through_function(run: Function, inputs: list[Any], after: Pair, simple: bool) -> list[Pair]:
    pairs = []
    for place, value in enumerate(inputs):
        # f is elementwise: a tangent of ones gives all f'(a) at once, and its tangent all f''(a).
        of = lambda u, place=place: run(*inputs[:place], u, *inputs[place + 1 :])
        slope = lambda u, of=of: jax.jvp(of, (u,), (jnp.ones_like(u),))[1]
        first, bend = jax.jvp(slope, (value,), (jnp.ones_like(value),))
        # d2E/da2 = f'(a)^2 d2E/dx'2 + f''(a) dE/dx'
        second = first**2 * after[1] + (0 if simple else bend * after[0])
        pairs.append((_like(first * after[0], value), _like(second, value)))
    return pairs


def _like(array: jax.Array, value: jax.Array) -> jax.Array:
    """Summed over the axes along which a value was broadcast."""
    if jnp.ndim(value) == 0:
        return array.sum()
    axes = [axis for axis in range(array.ndim) if value.shape[axis] != array.shape[axis]]
    return array.sum(axis=axes, keepdims=True)


BACKWARDS = {
    "contraction": _through_contraction,
    "selection": _through_selection,
    "function": _through_function,
}


def find_steps(program: Program, leaves: int) -> list[Step]:
    """The steps of a chain, in execution order.

    Args:
        program: of `fn(variables, x)`.
        leaves: how many of its inputs are leaves of the variables.

    Raises:
        TraceError: the program is no chain.
    """
    chain = _Chain(program, leaves)
    for equation in program.equations:
        chain.read(equation)
    return chain.steps()


class _Chain:
    """Groups the equations of a chain into steps.

    All elementwise equations that depend on the same activation, their *root*, are one function.
    Inside a function a value may be read several times, as in x * sigmoid(x). Outside, every
    activation is read once: two readers would need cross terms, which the recursion leaves out.
    """

    def __init__(self, program: Program, leaves: int):
        self.program = program
        # Activations: values that depend on the data.
        self.data = set(program.inputs[leaves:])
        # {value that depends on variables alone: the leaves it depends on}.
        self.leaves = {value: frozenset((value,)) for value in program.inputs[:leaves]}
        # {value inside a function: root of the function}.
        self.root: dict[int, int] = {}
        # {root: equations of the function}.
        self.functions: dict[int, list[Equation]] = {}
        # {activation: equations that read it}, without values inside a function.
        self.readers: dict[int, list[Equation]] = {}
        # Equations that are a step by themselves.
        self.single: list[Equation] = []

    def read(self, equation: Equation) -> None:
        """Adds the next equation to the chain."""
        data = {value for value in equation.inputs if value in self.data}
        kernels = {value for value in equation.inputs if value in self.leaves}
        if not data and not kernels:
            return
        if kind_of(equation) is None or len(equation.outputs) != 1:
            self.refuse(equation, f"there is no rule for {equation.name}")
        if data:
            self.data |= {*equation.outputs}
            self._read_data(equation, data)
        else:
            self._read_variables(equation, kernels)

    def _read_variables(self, equation: Equation, kernels: set[int]) -> None:
        parts = [self.leaves[value] for value in kernels]
        union = frozenset[int]().union(*parts)
        # A leaf counted twice, or two leaves multiplied, would have cross terms.
        if sum(map(len, parts)) > len(union) or kind_of(equation) == "contraction":
            self.refuse(equation, "parameters are combined before they meet the data")
        self.leaves[equation.outputs[0]] = union
        self.single.append(equation)

    def _read_data(self, equation: Equation, data: set[int]) -> None:
        roots = {self.root.get(value, value) for value in data}
        # x + f(x) (a residual sum) or x * y of two activations: both have cross terms.
        if len(roots) > 1 or (
            kind_of(equation) == "contraction" and {*equation.inputs} <= self.data
        ):
            self.refuse(equation, "two activations meet")
        if kind_of(equation) != "function":
            for value in data:
                self.readers.setdefault(value, []).append(equation)
            self.single.append(equation)
            return
        (root,) = roots
        if self.program.shape(root) != self.program.shape(equation.outputs[0]):
            self.refuse(equation, "an activation is repeated along an axis")
        self.root[equation.outputs[0]] = root
        self.functions.setdefault(root, []).append(equation)

    def steps(self) -> list[Step]:
        """The steps, once all equations are read."""
        steps = [self._step((equation,), equation.outputs[0]) for equation in self.single]
        for root, equations in self.functions.items():
            made = [value for equation in equations for value in equation.outputs]
            # The function's result is the one value that is read outside of it.
            ends = [v for v in made if v in self.readers or v in self.program.outputs]
            if len(ends) > 1:
                self.refuse(self.program.makers[ends[-1]], "it is read in two places")
            self.readers.setdefault(root, []).append(equations[0])
            if ends:
                steps.append(self._step(tuple(equations), ends[0]))
        for readers in self.readers.values():
            if len(readers) > 1:
                self.refuse(readers[-1], "what it reads is read elsewhere too")
        order = {value: n for n, e in enumerate(self.program.equations) for value in e.outputs}
        differentiable = [step for step in steps if self._is_float(step.output)]
        return sorted(differentiable, key=lambda step: order[step.output])

    def _step(self, equations: tuple[Equation, ...], output: int) -> Step:
        made = {value for equation in equations for value in equation.outputs}
        read = dict.fromkeys(value for equation in equations for value in equation.inputs)
        inputs = tuple(
            value
            for value in read
            if (value in self.data or value in self.leaves)
            and value not in made
            and self._is_float(value)
        )
        return Step(kind_of(equations[0]) or "", equations, inputs, output)

    def _is_float(self, value: int) -> bool:
        return jnp.issubdtype(self.program.avals[value].dtype, jnp.floating)

    def refuse(self, equation: Equation, why: str) -> NoReturn:
        """Raises, with the equation and the user's line."""
        line = user_line(equation.traceback)
        raise errors.TraceError(
            f"OBD's recursion covers chains of layers, nonlinearities and pools, and {why}: "
            f"{describe(self.program, equation)}{f' at {line}' if line else ''}. Write "
            "gauss_newton, fisher or hutchinson, which take any net."
        )
