"""Where arrays are zero once a unit is masked, so that what sums over the unit loses nothing.

The law, by induction over equations: at the positions of living units, the masked net holds the
numbers of the slim one. What works position by position hands this on. What ends an axis does so if
the terms of a removed unit u are no terms:

    contraction   sum_u a_u b_u    if a_u = 0 or b_u = 0, the other one being finite
    sum, or, xor  sum_u a_u        if a_u = 0, and no division by the number of terms follows
    maximum       max_u a_u        if a_u = 0, and nothing is negative

Masks clear *leaves*: the operand is zero where every function between leaf and operand maps 0 to 0.
tanh(w) and w * s do; softplus(w), w + 1 and (w - z) * s do not, and sum_i w_i^2 loses nothing by a
row that is cleared.

Places `in`, what a unit's consumers read it with, are cleared first. Where that is not enough
its producers stand in: a head dimension ends in q . k, and no consumer of it has parameters; a
consumer's kernel exp(w) is 1 where w is masked, but may meet relu(0) = 0. Where that is not enough
either, the unit must stay, unless it is opened.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jprune.graph.couple.arithmetic import REDUCTIONS
from jprune.graph.couple.at_zero import (
    ALONE,
    CHANGES,
    CONSUMERS,
    PRODUCERS,
    ZERO,
    Zero,
    beside,
    contraction_result,
    elementwise,
    fills,
    is_never_negative,
    is_nothing,
    joined,
    product_of,
)
from jprune.graph.couple.divisors import counted
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.labels import (
    Axis,
    AxisLabels,
    Fixed,
    Flags,
    Indices,
    Labels,
    Reason,
    Solution,
)
from jprune.graph.couple.moves import aligned
from jprune.graph.couple.roles import CONTRACTIONS, Uses, contracted_axes
from jprune.graph.couple.rules import CONSTANT, DATA, OPEN
from jprune.graph.couple.solve import solve
from jprune.jaxprs import Equation, Program, describe, nested, user_line

STAND_INS = frozenset({"kernel", "shift", "mean"})
"""Roles whose places are cleared where a unit's consumers are not enough."""


def find_survivors(
    program: Program, frame: Frame, labels: Labels, uses: Uses, kernels: bool = True
) -> list[Indices]:
    """States which units must stay because what sums over them would change.

    Args:
        program: a function.
        frame: labels of its values.
        labels: are told what must stay unless it is opened.
        uses: of the program's leaves.
        kernels: whether contractions with parameters and activations are looked at, beside those
            with constants, sums and maxima.

    Returns:
        Axes whose units need their producers cleared.
    """
    leaves = [frame.labels[value] for value in program.inputs[: len(uses.roles)]]
    walker = _Walker(labels, leaves, kernels)
    walker.visit(program, frame, walker.inputs(program, uses))
    if walker.unsure:
        walker.only_parameters = False
        walker.visit(program, frame, walker.inputs(program, uses))
    return walker.cleared


class _Walker:
    """Carries zeros from the leaves to what ends an axis."""

    def __init__(self, labels: Labels, leaves: Sequence[AxisLabels], kernels: bool):
        self.labels = labels
        self.leaves = leaves
        self.kernels = kernels
        self.cleared: list[Indices] = []
        # Most kernels are zero where their leaf is: values of parameters are followed first, and
        # data only if that leaves a question open.
        self.only_parameters = True
        self.unsure = False

    @functools.cached_property
    def component(self) -> Indices:
        """[labels]: which are tied to each other. Most nets never ask."""
        return self.labels.components()

    @functools.cached_property
    def lives(self) -> Flags:
        """[components]: frozen for good, so that nothing is asked of it."""
        lives = np.zeros(self.component.max(initial=-1) + 1, bool)
        for frozen, _ in self.labels.frozen:
            lives[self.component[frozen]] = True
        return lives

    @functools.cached_property
    def units(self) -> tuple[Solution, Flags]:
        """What the labels mean, and which atoms a leaf has: these can go."""
        solution = solve(self.labels, opened=True)
        removable = np.zeros(len(solution.atoms) + 1, bool)  # the last entry is for "none" (-1)
        for axis in (axis for axes in self.leaves for axis in axes):
            if not isinstance(axis, Fixed):
                removable[solution.atoms_of(axis)] = True
        removable[-1] = False
        return solution, removable

    def can_go(self, axis: Axis) -> bool:
        """Whether positions of an axis can be removed: those that some leaf has."""
        solution, removable = self.units
        return not isinstance(axis, Fixed) and bool(removable[solution.atoms_of(axis)].any())

    def inputs(self, program: Program, uses: Uses) -> list[Zero]:
        """Bits of a program's inputs."""
        bits: list[Zero] = [(0,) * len(program.shape(value)) for value in program.inputs]
        for leaf, axes in enumerate(self.leaves):
            bits[leaf] = tuple(
                # A scale need not be cleared, since scale * 0 is 0.
                self.bits_of(axis, uses.of_axis(leaf, number))
                for number, axis in enumerate(axes)
            )
        return bits

    def bits_of(self, axis: Axis, roles: set[str]) -> int:
        """Bits of a leaf's axis; that it stays is not asked while a question can be left open."""
        if "in" in roles or isinstance(axis, Fixed):
            return ZERO
        if not self.only_parameters and self.stays(axis):
            return ZERO
        return PRODUCERS if roles & STAND_INS else 0

    def stays(self, axis: Axis) -> bool:
        """Whether no position can go."""
        return isinstance(axis, Fixed) or bool(self.lives[self.component[axis]].all())

    def visit(self, program: Program, frame: Frame, inputs: Sequence[Zero]) -> list[Zero]:
        """Zeros of the program's outputs, from those of its inputs."""
        zeros: list[Zero] = [(0,) * len(program.shape(v)) for v in range(len(program.avals))]
        for value, zero in zip(program.inputs, inputs):
            zeros[value] = zero
        means = counted(program, frame)
        for number, equation in enumerate(program.equations):
            if not equation.outputs:  # what prints or calls back
                continue
            operands = [zeros[value] for value in equation.inputs]
            if self.only_parameters and makes_data(frame, equation):
                # Data that may be zero, or wild, where consumers alone are cleared.
                self.unsure |= any(
                    bits & (CONSUMERS | CONSUMERS << 2) for z in operands for bits in z
                )
                continue
            if equation.inner:
                results = self.nested(equation, frame.inner[number], operands)
            elif equation.name in ALONE and len(operands) == 1:
                results = operands
            elif equation.name in CHANGES:
                results = [elementwise(program, frame, equation, operands)]
            elif equation.name in CONTRACTIONS:
                results = [self.contraction(program, frame, equation, operands)]
            else:
                if equation.name in REDUCTIONS:
                    is_mean = equation.outputs[0] in means
                    self.reduction(program, frame, equation, operands[0], is_mean)
                results = self.moved(program, frame, equation, operands)
            for value, zero in zip(equation.outputs, results):
                zeros[value] = zero
        return [zeros[value] for value in program.outputs]

    def contraction(
        self, program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
    ) -> Zero:
        """Zeros of sum_u a_u b_u; units that are zero on neither side must stay."""
        levels = sorted(frame.levels[value] for value in equation.inputs)
        if levels == [CONSTANT, DATA]:
            text = "contracted with a constant, which no mask reaches"
        elif levels == [DATA, DATA]:
            text = "contracted with another activation, where it is not zero without its producers"
        else:
            text = "contracted with a kernel that is not zero where its leaves are"
        kernel = frame.labels[equation.inputs[1]]
        for one, two in zip(*ordered_contracted_axes(equation)):
            # The axis of the second operand is tied to that of the first one. With feature groups
            # it is the channel within its group: whole groups go with their outputs.
            bits = product_of([operands[0][one], operands[1][two]])
            if self.kernels or levels == [CONSTANT, DATA]:
                self.end(program, equation, kernel[two], bits, text)
        groups = equation.params.get("feature_group_count", 1)
        outputs = program.shape(equation.outputs[0])
        is_depthwise = (
            groups > 1 and groups == outputs[equation.params["dimension_numbers"].out_spec[1]]
        )
        return contraction_result(equation, operands, is_depthwise)

    def reduction(
        self, program: Program, frame: Frame, equation: Equation, zeros: Zero, is_mean: bool
    ) -> None:
        """Units whose term in a sum, or in a maximum, is not zero must stay."""
        name, source = equation.name, equation.inputs[0]
        neutral = name in ("reduce_sum", "reduce_or", "reduce_xor") and not is_mean
        if name == "reduce_max":
            neutral = is_never_negative(program, source)
        for axis in () if name.startswith("arg") else equation.params["axes"]:
            bits = zeros[axis] if neutral else 0
            text = f"{name} over the channels, without weights"
            self.end(program, equation, frame.labels[source][axis], bits, text)

    def end(self, program: Program, equation: Equation, axis: Axis, bits: int, text: str) -> None:
        """An axis that ends: its units must be zero there, or stay."""
        bits &= ZERO & ~(bits >> 2)
        if isinstance(axis, Fixed) or bits & CONSUMERS or self.stays(axis):
            return
        if self.only_parameters:
            self.unsure = True
            return
        if bits & PRODUCERS:
            self.cleared.append(axis)
            return
        line, place = user_line(equation.traceback), describe(program, equation)
        self.labels.reduce(axis, Reason(text, equation.name, place, line, OPEN))

    def nested(
        self, equation: Equation, frames: Sequence[Frame], operands: Sequence[Zero]
    ) -> list[Zero]:
        """Equations with bodies; what a loop carries is not followed."""
        results: list[Zero] = []
        for body, frame in zip(nested(equation), frames):
            if not body.results:
                continue
            inputs = [operands[number] for number in body.operands]
            for place in body.carried:
                inputs[place] = (0,) * len(inputs[place])
            for place in body.stacked:
                inputs[place] = inputs[place][1:]
            outputs = self.visit(body.program, frame, inputs)
            outputs[: len(body.carried)] = [inputs[place] for place in body.carried]
            # Results of the turns are stacked on a new first axis.
            zeros = [
                (0, *outputs[output]) if result in body.collected else outputs[output]
                for result, output in enumerate(body.results)
            ]
            # Which branch is taken is not known: zero is what is zero in all of them.
            pairs = zip(results or zeros, zeros)
            results = [tuple(map(joined, zip(*pair))) for pair in pairs]
        return results

    def moved(
        self, program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
    ) -> list[Zero]:
        """Zeros move as labels do: a result's axis has those of the axes that it is tied to."""
        if equation.name == "reshape":
            return [self.reshaped(program, frame, equation, operands[0])]
        if fills(program, frame, equation):
            return [(0,) * len(frame.labels[value]) for value in equation.outputs]
        sources = [
            (axis, zero)
            for value, zeros in zip(equation.inputs, operands)
            for axis, zero in zip(frame.labels[value], zeros)
            if not isinstance(axis, Fixed)
        ]
        alone = len(operands) == 1
        side = beside(program, equation)
        nothing = [bool(side) and is_nothing(program, frame, value) for value in equation.inputs]

        def of_axis(number: int, axis: Axis) -> int:
            if isinstance(axis, Fixed):
                return 0
            if number in side:
                rows = [ZERO if nothing[n] else operands[n][at] for n, at in side[number]]
                return joined(rows)
            same = [zero for source, zero in sources if source is axis] if alone else []
            return joined(same or [zero for source, zero in sources if self.shares(axis, source)])

        return [
            tuple(of_axis(number, axis) for number, axis in enumerate(frame.labels[value]))
            for value in equation.outputs
        ]

    def shares(self, axis: Indices, source: Axis) -> bool:
        """Whether two axes have channels in common."""
        if isinstance(source, Fixed):
            return False
        return axis is source or bool(np.isin(self.component[axis], self.component[source]).any())

    def reshaped(self, program: Program, frame: Frame, equation: Equation, zeros: Zero) -> Zero:
        """A split or merged run of axes is zero where all its axes with channels are."""
        shapes = program.shape(equation.inputs[0]), program.shape(equation.outputs[0])
        axes: AxisLabels = frame.labels[equation.inputs[0]]
        result = [0] * len(shapes[1])
        for sources, targets in aligned(*shapes):
            if not any(zeros[axis] for axis in sources):
                continue
            rows = [axis for axis in sources if zeros[axis] or not self.stays(axes[axis])]
            # The axis of a stack is no leaf's.
            rows = [axis for axis in rows if zeros[axis] or self.can_go(axes[axis])]
            bits = joined([zeros[axis] for axis in rows])
            for target in targets:
                result[target] = bits
        return tuple(result)


def makes_data(frame: Frame, equation: Equation) -> bool:
    """Whether an equation makes values that depend on inputs, and ends no axis."""
    ends = lambda one: bool(one.inner) or one.name in CONTRACTIONS or one.name in REDUCTIONS
    if all(frame.levels[value] != DATA for value in equation.inputs):
        return False
    if equation.inner:
        return not any(ends(one) for body in equation.inner for one in body.equations)
    return not ends(equation)


def ordered_contracted_axes(equation: Equation) -> tuple[Sequence[int], Sequence[int]]:
    """Contracted axes of both operands, in matching order."""
    if equation.name == "dot_general":
        return equation.params["dimension_numbers"][0]
    left, right = contracted_axes(equation)
    return [*left], [*right]
