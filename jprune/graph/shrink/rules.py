"""Equations on smaller arrays: a rule for every primitive that has a shape among its parameters.

A program is run again with the labels of its values and the labels that live. An equation whose
arrays keep their shapes is bound unchanged; others go through a rule here, or are bound unchanged
too where the primitive reads its shapes off its operands.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.forms.layout import applied, turned
from jprune.forms.leaf_type import is_dynamic, is_leaf_type
from jprune.graph.couple.arithmetic import COLLECTIVES, ELEMENTWISE, REDUCTIONS, WINDOWS
from jprune.graph.couple.divisors import Divisors
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.labels import AxisLabels, Fixed, Flags, Indices, Solution
from jprune.graph.couple.moves import gather_of
from jprune.graph.couple.roles import CONTRACTIONS
from jprune.graph.couple.scatters import SCATTERS, scatter_of
from jprune.graph.shrink.concrete import at_hand, put_back
from jprune.jaxprs import Equation, Program, bind, describe

Keep: TypeAlias = tuple[Flags | None, ...]
"""Per axis: which positions live, None where all do."""


class Alive(NamedTuple):
    """Which labels live.

    Attributes:
        solution: the atoms of every label.
        atoms: bool [atoms]: which atoms live; the last entry is for "none" (-1), which always does.
    """

    solution: Solution
    atoms: Flags

    def of(self, labels: Indices) -> Flags:
        """[like labels]: which of them live."""
        atoms = self.solution.atoms[self.solution.component[labels]]
        # A conjunction: a label lives if all its atoms do; "none" (-1) is no condition.
        return np.all(self.atoms[atoms] | (atoms < 0), axis=-1)

    def keep(self, axes: AxisLabels) -> Keep:
        """Per axis of an array, which positions live."""
        keeps = (None if isinstance(axis, Fixed) else self.of(axis) for axis in axes)
        return tuple(None if keep is None or keep.all() else keep for keep in keeps)


class Step(NamedTuple):
    """One equation on smaller arrays."""

    program: Program
    equation: Equation
    values: list[Any]
    in_keeps: list[Keep]
    out_keeps: list[Keep]
    frames: tuple[Frame, ...]
    alive: Alive

    def shape(self, result: int = 0) -> tuple[int, ...]:
        """The shape that a result must have."""
        full = self.program.shape(self.equation.outputs[result])
        return kept_shape(full, self.out_keeps[result])


def kept_shape(full: Sequence[int], keep: Keep) -> tuple[int, ...]:
    """The shape of an array after removal."""
    return tuple(n if k is None else int(k.sum()) for n, k in zip(full, keep))


def take(value: Any, keep: Keep) -> Any:
    """The kept positions of an array; contiguous runs are sliced, so that no gather is left."""
    part = cut(value, keep)
    return put_back(part, value) if isinstance(part, np.ndarray) else part


def cut(value: Any, keep: Keep) -> Any:
    """As `take`; concrete arrays come back as NumPy arrays, which programs have as constants."""
    if all(mask is None for mask in keep):
        return value
    numbers = at_hand(value)
    value = value if numbers is None else numbers
    for axis, mask in enumerate(keep):
        if mask is not None:
            value = take_positions(value, np.flatnonzero(mask), axis)
    return value


def take_positions(value: Any, index: Indices, axis: int) -> Any:
    """Positions of one axis, as few slices as runs; a NumPy array stays one."""
    if isinstance(value, np.ndarray) or not isinstance(value, jax.Array):
        return np.take(value, index, axis)
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    runs = np.split(index, breaks)
    # Scattered positions: a gather is one operation, and slices would be as many as runs.
    if len(runs) > 8 or not index.size:
        return jnp.take(value, index, axis)
    parts = [jax.lax.slice_in_dim(value, int(run[0]), int(run[-1]) + 1, axis=axis) for run in runs]
    return parts[0] if len(parts) == 1 else jax.lax.concatenate(parts, axis)


def run(program: Program, frame: Frame, alive: Alive, inputs: Sequence[Any]) -> list[Any]:
    """Runs a program on the kept part of its arrays; the inputs are cut already.

    Raises:
        StructureError: a primitive without a rule meets an array that has shrunk.
    """
    # Once for every value of the program: an equation asks for those of all its operands.
    keeps = [alive.keep(axes) for axes in frame.labels]
    values: list[Any] = [None] * len(program.avals)
    for value, constant in program.constants.items():
        values[value] = cut(constant, keeps[value])
    for value, array in zip(program.inputs, inputs):
        values[value] = array
    divisors = Divisors(program, frame)
    for number, equation in enumerate(program.equations):
        # A mean over channels that were opened divides by the number that is left.
        operands = divisors.follow(equation, [values[value] for value in equation.inputs])
        if operands and equation.outputs:
            divisors.note(equation, operands[0])
        step = Step(
            program,
            equation,
            operands,
            [keeps[value] for value in equation.inputs],
            [keeps[value] for value in equation.outputs],
            frame.inner.get(number, ()),
            alive,
        )
        for value, result in zip(equation.outputs, shrunk(step)):
            values[value] = result
    return [values[value] for value in program.outputs]


def shrunk(step: Step) -> list[Any]:
    """Results of one equation."""
    equation = step.equation
    held = [place for place, value in enumerate(step.values) if is_leaf_type(value)]
    if held:
        kernel, place = step.values[held[0]], held[0]
        laid_out = hasattr(kernel, "axes")
        if equation.name in CONTRACTIONS and len(held) == 1 and (place == 1 or laid_out):
            # A leaf type runs its contraction itself; anything else that meets it gets the dense
            # kernel.
            return [applied(kernel, step.values[1 - place], equation, place)]
        if equation.name == "transpose" and laid_out:
            return [turned(kernel, equation.params["permutation"])]
        if any(is_dynamic(value) for value in step.values):
            return [_cast(step)]
        plain = [value.dense() if is_leaf_type(value) else value for value in step.values]
        return shrunk(step._replace(values=plain))
    touched = any(k is not None for keep in (*step.in_keeps, *step.out_keeps) for k in keep)
    # The common case: nothing here shrank. Bodies may hold constants with channels of their own.
    if not touched and not (equation.inner and _inner_touched(step)):
        return bind(equation, step.values)
    if not equation.outputs:
        return bind(equation, step.values)
    if equation.name in RULES:
        return RULES[equation.name](step)
    if equation.name in SHAPELESS:
        return bind(equation, step.values)
    if not any(k is not None for keep in step.in_keeps for k in keep):
        # Made from nothing that shrinks (random bits, an iota): made whole, so that masked and slim
        # nets see the same numbers, then cut.
        return [take(v, keep) for v, keep in zip(bind(equation, step.values), step.out_keeps)]
    raise errors.StructureError(
        f"slim met the primitive {equation.name!r} ({describe(step.program, equation)}) on an "
        "array that has shrunk, and has no rule for it. Add one to jprune.graph.shrink.rules, or "
        "freeze the group."
    )


def _cast(step: Step) -> Any:
    """Casts a gated kernel to another type, or transposes it; its gates are unchanged.

    Raises:
        StructureError: anything else, on which a kernel would lose its gates.
    """
    equation = step.equation
    if equation.name not in ("convert_element_type", "transpose"):
        raise errors.StructureError(
            f"a gated kernel met {equation.name!r} ({describe(step.program, equation)}), which has "
            "no place for its gates; it may be cast, transposed, and contracted with data. Leave "
            "this layer out of gates."
        )
    return step.values[0].cast(lambda kernel: bind(equation, [kernel])[0])


def _inner_touched(step: Step) -> bool:
    return any(
        keep is not None
        for frame in step.frames
        for axes in frame.labels
        for keep in step.alive.keep(axes)
    )


# Primitives that read all shapes off their operands.
SHAPELESS = {
    *ELEMENTWISE,
    *REDUCTIONS,
    *COLLECTIVES,
    *WINDOWS,
    *(
        "transpose",
        "squeeze",
        "unstack",
        "rev",
        "concatenate",
        "dot_general",
        "sort",
        "tile",
        "top_k",
    ),
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "dynamic_update_slice"),
}
ShrinkRule: TypeAlias = Callable[[Step], list[Any]]
RULES: dict[str, ShrinkRule] = {}


def rule(*names: str) -> Callable[[ShrinkRule], ShrinkRule]:
    """Registers a rule for primitives of these names."""

    def register(function: ShrinkRule) -> ShrinkRule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule("reshape")
def reshape(step: Step) -> list[Any]:
    """To the kept shape: whole rows and columns are removed, so the rest is still row-major."""
    return [jax.lax.reshape(step.values[0], step.shape())]


@rule("broadcast_in_dim")
def broadcast_in_dim(step: Step) -> list[Any]:
    """To the kept shape."""
    places = step.equation.params["broadcast_dimensions"]
    return [jax.lax.broadcast_in_dim(step.values[0], step.shape(), places)]


@rule("conv_general_dilated")
def convolution(step: Step) -> list[Any]:
    """With as many feature groups as remain."""
    params = dict(step.equation.params)
    if params["feature_group_count"] > 1:
        numbers = params["dimension_numbers"]
        channels = step.values[0].shape[numbers.lhs_spec[1]]
        # groups = channels / (channels of a group): rows go whole, so both numbers are what is
        # left.
        params["feature_group_count"] = channels // step.values[1].shape[numbers.rhs_spec[1]]
    return bind(step.equation, step.values, params)


@rule("slice")
def slice_(step: Step) -> list[Any]:
    """The kept positions among those that the slice takes."""
    params = step.equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    value = step.values[0]
    windows = zip(params["start_indices"], params["limit_indices"], strides)
    for axis, (keep, window) in enumerate(zip(step.in_keeps[0], windows)):
        if keep is None:
            value = jax.lax.slice_in_dim(value, *window, axis=axis)
        else:
            # old position -> place among those that are kept
            new_place = np.cumsum(keep) - 1
            # Of the positions that the slice takes, those that are kept, by their new places.
            taken = np.arange(len(keep))[slice(*window)]
            value = take_positions(value, new_place[taken[keep[taken]]], axis)
    return [value]


@rule("stack")
def stack(step: Step) -> list[Any]:
    """Without the operands whose position on the new axis is removed."""
    keep = step.out_keeps[0][step.equation.params["axis"]]
    remaining = step.values if keep is None else list(itertools.compress(step.values, keep))
    return bind(step.equation, remaining)


@rule("split")
def split(step: Step) -> list[Any]:
    """Into parts of the kept widths."""
    axis = step.equation.params["axis"]
    sizes = [step.shape(result)[axis] for result in range(len(step.out_keeps))]
    offsets = np.cumsum([0, *sizes]).tolist()
    value = step.values[0]
    return [
        jax.lax.slice_in_dim(value, start, stop, axis=axis)
        for start, stop in itertools.pairwise(offsets)
    ]


@rule("pad")
def pad(step: Step) -> list[Any]:
    """With the kept part of the padding, also on axes that lost channels."""
    value, filling = step.values
    for axis, config in enumerate(step.equation.params["padding_config"]):
        keep = step.out_keeps[0][axis]
        full = step.program.shape(step.equation.inputs[0])[axis]
        # Whole axes are padded as they were.
        if keep is None and step.in_keeps[0][axis] is None:
            plain = [(0, 0, 0)] * value.ndim
            plain[axis] = config
            value = jax.lax.pad(value, filling, plain)
        elif config != (0, 0, 0):
            keep = (
                np.ones(step.program.shape(step.equation.outputs[0])[axis], bool)
                if keep is None
                else keep
            )
            value = _pad_kept(value, filling, axis, config, full, keep, step.in_keeps[0][axis])
    return [value]


def _pad_kept(
    value: Any,
    filling: Any,
    axis: int,
    config: tuple[int, int, int],
    full: int,
    keep: Flags,
    in_keep: Flags | None,
) -> Any:
    """Pads one axis of which some positions, old or new, are gone."""
    low, high, interior = config
    in_keep = np.ones(full, bool) if in_keep is None else in_keep
    source = np.full(full + interior * (full - 1), -1)
    # [padded length]: which kept position stands there, -1 for padding and for what is gone.
    source[:: interior + 1] = np.where(in_keep, np.cumsum(in_keep) - 1, -1)
    source = source[max(0, -low) : len(source) - max(0, -high)]
    source = np.concatenate([np.full(max(0, low), -1), source, np.full(max(0, high), -1)])[keep]
    real = np.flatnonzero(source >= 0)
    # One run of old positions: padding on both sides is enough, and stays one operation.
    if real.size and real[-1] - real[0] == real.size - 1:
        part = take_positions(value, source[real], axis)
        edges = [(0, 0, 0)] * value.ndim
        edges[axis] = (int(real[0]), int(len(source) - 1 - real[-1]), 0)
        return jax.lax.pad(part, filling, edges)
    pieces: list[Any] = []
    # Else runs of old positions and of padding, put together in turn.
    for run_of in np.split(source, np.flatnonzero(np.diff(source >= 0)) + 1):
        if run_of.size and run_of[0] >= 0:
            pieces.append(take_positions(value, run_of, axis))
        elif run_of.size:
            shape = [run_of.size if i == axis else n for i, n in enumerate(value.shape)]
            pieces.append(jnp.full(shape, filling, value.dtype))
    return pieces[0] if len(pieces) == 1 else jax.lax.concatenate(pieces, axis)


@rule("dynamic_slice")
def dynamic_slice(step: Step) -> list[Any]:
    """With the kept widths of axes that are taken whole."""
    value, *starts = step.values
    return [jax.lax.dynamic_slice(value, starts, step.shape())]


@rule("gather")
def gather(step: Step) -> list[Any]:
    """With constant indices renumbered, and windows of the kept widths."""
    params, value = dict(step.equation.params), step.values[0]
    full = step.program.shape(step.equation.inputs[0])
    indices_known = step.program.known(step.equation.inputs[1])
    how = gather_of(params, indices_known, full, len(step.out_keeps[0]))
    indices = step.values[1]
    if how.known is not None:
        (axis,) = how.looked_up
        result_keep = step.out_keeps[0]
        index = _index_left(how.known, step.in_keeps[0][axis], [result_keep[a] for a in how.batch])
        # One constant index on one axis, all else whole: slices along that axis do, and a gather
        # does not remain.
        if how.known.ndim == 1 and tuple(params["slice_sizes"][:axis]) == full[:axis]:
            taken = take_positions(value, index, axis)
            if all(params["slice_sizes"][other] == full[other] for other in how.passed):
                return [jnp.moveaxis(taken, axis, how.batch[0])]
        indices = jnp.asarray(index[..., None], step.values[1].dtype)
    # An axis that was taken whole is taken whole again, at its new length.
    params["slice_sizes"] = tuple(
        value.shape[axis] if size == full[axis] and axis in how.passed else size
        for axis, size in enumerate(params["slice_sizes"])
    )
    return bind(step.equation, [value, indices], params)


@rule(*SCATTERS)
def scatter(step: Step) -> list[Any]:
    """With constant indices renumbered; windows are as wide as the updates."""
    operand, indices, updates = step.values
    full = step.program.shape(step.equation.inputs[0])
    indices_known = step.program.known(step.equation.inputs[1])
    update_keep = step.in_keeps[2]
    how = scatter_of(step.equation.params, indices_known, full, len(update_keep))
    if how.known is not None:
        operand_keep = step.in_keeps[0][how.written[0]]
        index = _index_left(how.known, operand_keep, [update_keep[a] for a in how.batch])
        indices = jnp.asarray(index[..., None], indices.dtype)
    return bind(step.equation, [operand, indices, updates])


def _index_left(index: Indices, keep: Flags | None, of_axes: Sequence[Flags | None]) -> Indices:
    """Constant indices for a smaller operand.

    Args:
        index: positions of one axis of the whole operand.
        keep: which of them live.
        of_axes: which indices live, on each of their axes.
    """
    for number, alive in enumerate(of_axes):
        if alive is not None:
            index = np.compress(alive, index, axis=number)
    return index if keep is None else (np.cumsum(keep) - 1)[index]
