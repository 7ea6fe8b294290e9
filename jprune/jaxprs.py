"""Jaxprs as flat lists of equations: the only module that touches `jax.extend`.

JAX nests what a user calls (`jit` around every `jax.numpy` function). `flatten` writes those
calls out, so that the engine sees one list of equations over integer value ids. Calls that mean
more than their body (custom derivatives, rematerialisation, control flow) stay one equation with
`inner` programs. A reshape that permutes axes first is written out as a transpose and a reshape,
and arrays of length 0 are not joined to others.
"""

import os
import site
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex

# Primitives whose body can be written out where they stand. Names, since JAX moves the objects.
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
# Primitives that keep their bodies: parameter(s) that hold them.
NESTED = {
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_vjp_call_jaxpr": ("call_jaxpr", "fun_jaxpr"),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
}
REMAT = {"checkpoint", "remat2"}


class Equation(NamedTuple):
    """One primitive applied to values.

    Attributes:
        primitive: JAX's object, for `bind`.
        name: of the primitive.
        params: its static parameters.
        inputs: value ids of the operands.
        outputs: value ids of the results.
        inner: programs of its bodies; empty for most.
        traceback: where it comes from, innermost call first. JAX shortens the traces of its own
            functions, so those of the callers follow.
    """

    primitive: Any
    name: str
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    inner: tuple["Program", ...]
    traceback: tuple[Any, ...]


class Program(NamedTuple):
    """A jaxpr without nesting: equations over value ids, in execution order.

    Attributes:
        inputs: value ids.
        outputs: value ids.
        constants: value id -> array or scalar: closed-over constants and literals.
        equations: in execution order.
        avals: shape and type of every value, by id.
        shapes: of every value, by id.
        makers: value id -> the equation that makes it.
        fixed: values that depend on constants alone.
        evaluated: value id -> array, of the fixed values that somebody asked for so far.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    equations: tuple[Equation, ...]
    avals: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    makers: dict[int, Equation]
    fixed: set[int]
    evaluated: dict[int, Any]

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return self.shapes[value]

    def known(self, value: int) -> np.ndarray | None:
        """The value as an array, if it depends on constants alone; else None."""
        # Random keys have no numbers.
        if value not in self.fixed or is_key(self.avals[value]):
            return None
        if value in self.constants:
            return np.asarray(self.constants[value])
        # Inside `jit`, constants would else become tracers, and have no number.
        with jax.ensure_compile_time_eval():
            return np.asarray(self._evaluated(value))

    def _evaluated(self, value: int) -> Any:
        """The number of a fixed value: every equation behind it is run once, for all who ask."""
        needed, waiting = set[int](), [value]
        while waiting:
            number = waiting.pop()
            if number not in needed and number not in self.evaluated:
                needed.add(number)
                if number not in self.constants:
                    waiting += self.makers[number].inputs
        # Operands have smaller numbers than results.
        for number in sorted(needed):
            if number in self.constants:
                self.evaluated[number] = self.constants[number]
            elif number not in self.evaluated:
                equation = self.makers[number]
                operands = [self.evaluated[operand] for operand in equation.inputs]
                self.evaluated.update(zip(equation.outputs, bind(equation, operands)))
        return self.evaluated[value]


class _Builder:
    """Collects equations while nested calls are written out."""

    def __init__(self, inline_remat: bool, callers: tuple[Any, ...]):
        self.inline_remat = inline_remat
        self.callers = callers
        self.avals: list[Any] = []
        self.constants: dict[int, Any] = {}
        self.fixed: set[int] = set()
        self.equations: list[Equation] = []
        self.idle: set[int] = set()
        """Values that arrays of length 0 were made of."""

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, aval: Any, value: Any) -> int:
        number = self.new(aval)
        self.constants[number] = value
        if not isinstance(value, Tracer):
            self.fixed.add(number)
        return number

    def add(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[int]) -> list[int]:
        """Appends the equations of `jaxpr` applied to `inputs`; returns the ids of its outputs."""
        ids: dict[Any, int] = dict(zip(jaxpr.invars, inputs))
        # Constants of a body stand beside it (open jaxprs) or inside it (closed ones); `opened`
        # hides which.
        closed_over = dict(zip(jaxpr.constvars, constants))

        def read(variable: Any) -> int:
            # A constant gets an id per reader: sharing one does not couple two layers.
            if isinstance(variable, jex.Literal):
                return self.constant(variable.aval, variable.val)
            if variable in closed_over:
                return self.constant(variable.aval, closed_over[variable])
            return ids[variable]

        for equation in jaxpr.eqns:
            name = equation.primitive.name
            operands = [read(variable) for variable in equation.invars]
            # jax.numpy pads every axis, most of them with arrays of length 0 that it has cut,
            # averaged or broadcast from all channels.
            if self.is_empty(equation):
                self.idle.update(operands)
                for variable in equation.outvars:
                    empty = np.zeros(variable.aval.shape, variable.aval.dtype)
                    ids[variable] = self.constant(variable.aval, empty)
                continue
            inlined = INLINED.get(name)
            if inlined is None and self.inline_remat and name in REMAT:
                inlined = "jaxpr"
            if inlined is not None:
                body, body_constants = opened(equation.params[inlined])
                outside = self.callers
                # An equation inside a `jit` has the trace up to that call alone; with those of the
                # callers behind it the user's line is always among them.
                self.callers = (equation.source_info.traceback, *outside)
                results = self.add(body, body_constants, operands)
                self.callers = outside
                ids.update(zip(equation.outvars, results))
                continue
            if name == "concatenate":
                joined = equation.params["dimension"]
                long = [value for value in operands if self.avals[value].shape[joined] != 0]
                if len(long) == 1:
                    ids[equation.outvars[0]] = long[0]
                    continue
                operands = long or operands
            params = equation.params
            if params.get("dimensions") is not None and name == "reshape":
                operands = [self.transposed(equation, operands[0])]
                params = {**params, "dimensions": None}
            for variable in equation.outvars:
                ids[variable] = self.new(variable.aval)
            # What prints or calls back is not run while a net is read.
            if self.fixed.issuperset(operands) and not equation.effects:
                self.fixed.update(ids[variable] for variable in equation.outvars)
            self.equations.append(
                Equation(
                    equation.primitive,
                    name,
                    params,
                    tuple(operands),
                    tuple(ids[variable] for variable in equation.outvars),
                    self.bodies(equation),
                    (equation.source_info.traceback, *self.callers),
                )
            )
        return [read(variable) for variable in jaxpr.outvars]

    def is_empty(self, equation: Any) -> bool:
        """Whether all results of an equation that does nothing else are arrays of length 0."""
        avals = [variable.aval for variable in equation.outvars]
        empty = bool(avals) and all(0 in getattr(aval, "shape", ()) for aval in avals)
        return empty and not (equation.effects or any(map(is_key, avals)))

    def transposed(self, reshape: Any, value: int) -> int:
        """What a reshape reads, in the order that its `dimensions` stand for: a transpose."""
        order = tuple(reshape.params["dimensions"])
        whole = self.avals[value]
        moved = self.new(whole.update(shape=tuple(whole.shape[axis] for axis in order)))
        if value in self.fixed:
            self.fixed.add(moved)
        callers = (reshape.source_info.traceback, *self.callers)
        primitive, params = jex.primitives.transpose_p, {"permutation": order}
        self.equations.append(
            Equation(primitive, "transpose", params, (value,), (moved,), (), callers)
        )
        return moved

    def bodies(self, equation: Any) -> tuple[Program, ...]:
        keys = NESTED.get(equation.primitive.name, ())
        bodies = [equation.params[key] for key in keys if key in equation.params]
        flat = [body for item in bodies for body in (item if isinstance(item, tuple) else (item,))]
        callers = (equation.source_info.traceback, *self.callers)
        return tuple(flatten(body, self.inline_remat, callers) for body in flat)


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, for closed and open ones (in JAX >= 0.12 they are one type)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def flatten(jaxpr: Any, inline_remat: bool = False, callers: tuple[Any, ...] = ()) -> Program:
    """A jaxpr as a `Program`.

    Args:
        jaxpr: closed or open jaxpr.
        inline_remat: write out `jax.checkpoint` too (same values, more memory in the backward
            pass).
        callers: tracebacks of the calls around it, innermost first.
    """
    body, constants = opened(jaxpr)
    builder = _Builder(inline_remat, callers)
    inputs = [builder.new(variable.aval) for variable in body.invars]
    outputs = builder.add(body, constants, inputs)
    equations = _of_use(builder, outputs)
    return Program(
        tuple(inputs),
        tuple(outputs),
        builder.constants,
        tuple(equations),
        tuple(builder.avals),
        shapes_of(builder.avals),
        {value: equation for equation in equations for value in equation.outputs},
        builder.fixed,
        {},
    )


def shapes_of(avals: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Shapes of values; those that have none, such as tokens, count as scalars."""
    return tuple(tuple(getattr(aval, "shape", ())) for aval in avals)


def _of_use(builder: _Builder, outputs: Sequence[int]) -> list[Equation]:
    """The equations without those that only went into arrays of length 0."""
    idle, needed = set(builder.idle), set(outputs)
    result: list[Equation] = []
    for equation in reversed(builder.equations):
        # Other results that nobody reads stay: their leaves are tied to what they meet there.
        if equation.outputs and not needed & {*equation.outputs} and idle >= {*equation.outputs}:
            idle.update(equation.inputs)
        else:
            needed.update(equation.inputs)
            result.append(equation)
    return result[::-1]


def program_of(
    fn: Callable[..., Any], *args: Any, inline_remat: bool = False
) -> tuple[Program, Any]:
    """The program of `fn(*args)` and the shapes of its output tree; `args` may be shapes."""
    closed, output = jax.make_jaxpr(fn, return_shape=True)(*jax.tree.map(_without_placement, args))
    return flatten(closed, inline_remat), output


def _without_placement(leaf: Any) -> Any:
    """Shape and type of an array, without its sharding, which is no part of the network."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return leaf
    # Weak types (of Python numbers) give way in promotions: without the flag another program would
    # be traced.
    weak = getattr(leaf, "weak_type", False)  # random keys have none
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)


def is_key(array: Any) -> bool:
    """Whether an array, or its aval, holds random keys."""
    # Python numbers among the constants have no type.
    return jax.dtypes.issubdtype(getattr(array, "dtype", np.int64), jax.dtypes.prng_key)


def bind(
    equation: Equation, values: Sequence[Any], params: dict[str, Any] | None = None
) -> list[Any]:
    """Runs one equation, custom derivatives included."""
    parameters = equation.params if params is None else params
    # Primitives with functions among their parameters want these as arguments again.
    ready: Any = equation.primitive.get_bind_params(parameters)
    results = equation.primitive.bind(*values, **ready)
    return list(results) if equation.primitive.multiple_results else [results]


def scan_parts(equation: Equation) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many it carries; the rest is stacked."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()  # JAX >= 0.12
    return len(constants), len(carried)


CONTROL_FLOW = {"cond", "while", "scan"}
"""Primitives whose bodies may run not at all, or many times."""


class Body(NamedTuple):
    """A program inside an equation, and how the equation's values map to its own.

    Attributes:
        program: the body.
        operands: for every input of the body, the number of the equation's operand that it is.
        carried: inputs that hold what the turn before gave; from the second turn on they are the
            body's first outputs, in this order (a loop's condition carries, and gives nothing).
        stacked: inputs that are one turn's slice of an operand, along its first axis.
        results: for every result of the equation, the output of the body that it is; empty for a
            loop's condition.
        collected: results that hold that output of all turns, on a new first axis.
        turns: how often it runs; 1 where only the data say.
    """

    program: Program
    operands: tuple[int, ...]
    carried: tuple[int, ...] = ()
    stacked: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    collected: tuple[int, ...] = ()
    turns: int = 1


def nested(equation: Equation) -> tuple[Body, ...]:
    """The bodies of an equation, in the order of `inner`.

    Custom derivatives and rematerialisation have one body, a condition one a branch, a `while` its
    condition and what it repeats, a `scan` one.
    """
    operands, results = range(len(equation.inputs)), tuple(range(len(equation.outputs)))
    if equation.name == "cond":  # the first operand chooses
        return tuple(Body(body, tuple(operands[1:]), results=results) for body in equation.inner)
    if equation.name == "while":
        condition, body = equation.inner
        first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        carry = tuple(operands[first + second :])
        after = lambda constants: tuple(range(constants, constants + len(carry)))
        return (
            Body(condition, (*operands[:first], *carry), after(first)),
            Body(body, (*operands[first : first + second], *carry), after(second), results=results),
        )
    if equation.name == "scan":
        constants, carried = scan_parts(equation)
        return (
            Body(
                equation.inner[0],
                tuple(operands),
                carried=tuple(operands[constants : constants + carried]),
                stacked=tuple(operands[constants + carried :]),
                results=results,
                collected=results[carried:],
                turns=equation.params["length"],
            ),
        )
    return tuple(Body(body, tuple(operands), results=results) for body in equation.inner)


def describe(program: Program, equation: Equation) -> str:
    """An equation as text: `add f32[2,8] f32[2,8] -> f32[2,8]`."""

    def text(ids: Sequence[int]) -> str:
        return " ".join(str(program.avals[number].str_short()) for number in ids)

    return f"{equation.name} {text(equation.inputs)} -> {text(equation.outputs)}"


_PACKAGES = tuple(
    {
        # As Python names the files, and where they are: an environment may be a link.
        path(folder) + os.sep
        for folder in (
            *site.getsitepackages(),
            sysconfig.get_path("stdlib"),
            os.path.dirname(os.path.abspath(__file__)),
        )
        for path in (os.path.abspath, os.path.realpath)
    }
)


def user_line(tracebacks: Sequence[Any]) -> str:
    """The innermost line outside libraries, `file:line (function)`, or an empty string."""
    frames = (frame for trace in tracebacks for frame in getattr(trace, "frames", ()))
    for frame in frames:
        if not frame.file_name.startswith(_PACKAGES) and not frame.file_name.startswith("<"):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return ""


def depends(fn: Callable[[Any], Any], x: Any) -> bool:
    """Whether any output of a function depends on its argument.

    Args:
        fn: a function of one argument.
        x: an array, or its shape and type.

    Example:
        >>> depends(lambda x: 2 * x, 1.0), depends(lambda x: 2.0, 1.0)
        (True, False)
    """
    jaxpr = jax.make_jaxpr(fn)(x).jaxpr
    # By identity: literals stand among the inputs, and cannot be hashed.
    live = {id(value) for value in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(value) in live for value in equation.outvars):
            live |= {id(value) for value in equation.invars}
    return any(id(value) in live for value in jaxpr.invars)
