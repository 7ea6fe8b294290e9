"""`intercept`, and with it: values, gates and perturbations at sites."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups
from jprune.graph.couple.coupling import check_leaves, couple, unit_numbers
from jprune.graph.couple.labels import Indices
from jprune.graph.look.branches import branch_spots, find_forks
from jprune.graph.look.sites import KINDS, Spot, find_spots, units_on
from jprune.jaxprs import Equation, bind


class Site(NamedTuple):
    """A site while the network runs.

    Attributes:
        kind: one of `KINDS`.
        layer: name of the call site, or of the branch.
        axis: channel axis of the value.
        units: {group: [positions on the axis] number of the unit, -1 for none}.
        apply: the contraction run again on another data operand (sites `in` and `out`).
        patches: the data operand as `[batch, *positions, channels, window]` (sites `in` and `out`).
        kernel: path of the kernel whose contraction the layer is named after.
    """

    kind: str
    layer: str
    axis: int
    units: dict[str, Indices]
    apply: Callable[[Any], Any]
    patches: Callable[[Any], Any]
    kernel: str

    @property
    def examples(self) -> int:
        """Axis of the examples: the first, or the second where channels stand first.

        `vmap` of kernel @ row gives [outputs, examples].
        """
        return int(self.axis == 0)

    def along(self, values: Any, rank: int) -> Any:
        """Numbers of the channels in the shape that the site's value is multiplied by.

        Args:
            values: [channels] or [examples, channels].
            rank: of the site's value.
        """
        shape = [1] * rank
        shape[self.axis] = values.shape[-1]
        if values.ndim == 2:
            shape[self.examples] = values.shape[0]
            values = values if self.examples < self.axis else values.T
        return values.reshape(shape)


Handler = Callable[[Site, Any, Any], tuple[Any, Any]]


def intercept(
    fn: Callable[..., Any], groups: Groups, handler: Handler, kinds: Sequence[str] = ("in",)
) -> Callable[..., Any]:
    """Runs a network and calls a handler at its sites, in execution order.

    Args:
        fn: the function that was traced, or its training-mode twin.
        groups: from `trace`.
        handler: `handler(site, value, carry) -> (value, carry)`; the network goes on with its
            value.
        kinds: which sites: `in`, `out`, `norm`, `act`, `join`, and `branch` (the operand of a sum
            that can be removed; its layer is the name of the branch).

    Returns:
        `fn'(variables, carry, *args) -> (out, carry)`; a pure function if the handler is one.
        Sites inside loops (`scan`, `while`) and custom derivatives are not offered.

    Raises:
        ArgumentError: an unknown kind.
        StructureError: variables of another net (when called).

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> names = lambda site, value, carry: (value, [*carry, site.layer])
        >>> intercept(fn, groups, names)(variables, [], jnp.ones((1, 3)))[1]
        ['first', 'second']
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if isinstance(kinds, str) or unknown:
        raise errors.ArgumentError(
            f'kinds={kinds!r}; it is a tuple of {", ".join(KINDS)}. Write kinds=("in",).'
        )

    def intercepted(variables: Any, carry: Any, *args: Any) -> tuple[Any, Any]:
        # Traced anew at every call, since shapes (of a batch) may differ; under `jit` that happens
        # once for each shape.
        check_leaves(groups, variables)
        coupling = couple(fn, variables, *args, inline_remat=True, groups=groups)
        program = coupling.program
        uses = coupling.uses
        spots = find_spots(program, uses, coupling.paths)
        # Branches are read off the joins, so the other sites come first.
        spots += branch_spots(find_forks(program, spots, len(coupling.paths)), spots)
        spots = [spot for spot in spots if spot.kind in kinds]
        kernels = {c.equation: c.kernel for c in uses.contractions if c.program is program}
        numbers = unit_numbers(groups)
        inputs = dict(zip(program.inputs, jax.tree.leaves((variables, *args))))
        values: dict[int, Any] = {**program.constants, **inputs}
        reading: dict[int, list[Spot]] = {}
        making: dict[int, list[Spot]] = {}
        for spot in spots:
            # Values that a reader alone sees (`in`, `branch`) are changed in its operands, so that
            # other readers get the old value; the others are changed where they are made.
            where = reading if spot.kind in ("in", "branch") else making
            where.setdefault(spot.equation, []).append(spot)

        def call(spot: Spot, value: Any, equation: Equation, operands: list[Any]) -> Any:
            nonlocal carry
            units = units_on(coupling, groups, numbers, spot)
            site = _site(spot, units, equation, operands, kernels.get(spot.equation))
            result, carry = handler(site, value, carry)
            # The equations that follow were traced for this shape.
            if jnp.shape(result) != jnp.shape(value):
                raise errors.StructureError(
                    f"the handler turned the value at ({spot.layer}, {spot.kind}) of shape "
                    f"{jnp.shape(value)} into {jnp.shape(result)}; it must keep the shape."
                )
            return result

        for number, equation in enumerate(program.equations):
            operands = [values[value] for value in equation.inputs]
            for spot in reading.get(number, ()):
                # One place: the other operand is a kernel or the identity, never the same value.
                place = equation.inputs.index(spot.value)
                operands[place] = call(spot, operands[place], equation, operands)
            for value, result in zip(equation.outputs, bind(equation, operands)):
                values[value] = result
            for spot in making.get(number, ()):
                values[spot.value] = call(spot, values[spot.value], equation, operands)
        results = [values[value] for value in program.outputs]
        return jax.tree.unflatten(jax.tree.structure(coupling.output), results), carry

    return intercepted


def _site(
    spot: Spot,
    units: dict[str, Indices],
    equation: Equation,
    operands: list[Any],
    kernel: int | None,
) -> Site:
    def contraction() -> int:
        if kernel is None or spot.kind not in ("in", "out"):
            raise errors.ArgumentError(
                f"the site ({spot.layer}, {spot.kind}) is no contraction: apply and patches "
                "belong to the kinds in and out."
            )
        return kernel

    def apply(data: Any) -> Any:
        place = contraction()
        both = list(operands)
        both[1 - place] = data
        return bind(equation, both)[0]

    def patches(data: Any) -> Any:
        return patches_of(equation, contraction(), data, operands)

    return Site(spot.kind, spot.layer, spot.axis, units, apply, patches, spot.kernel)


def patches_of(equation: Equation, kernel: int, data: Any, operands: Sequence[Any]) -> Any:
    """The windows that a contraction sees: [batch, *positions, channels, window].

    A contraction without windows has window 1. Contracting the last two axes with the kernel
    (channels first, then window, row-major) gives the contraction's result.
    """
    numbers = equation.params["dimension_numbers"]
    if equation.name == "dot_general":
        axes = numbers[0][1 - kernel]
        # [..., contracted axes] -> [..., channels, 1]
        moved = jnp.moveaxis(data, axes, range(-len(axes), 0))
        return moved.reshape(*moved.shape[: -len(axes)], -1, 1)
    params = equation.params
    window = [operands[kernel].shape[axis] for axis in numbers.rhs_spec[2:]]
    rank = data.ndim
    # Patches come as [batch, positions..., channels x window], channels before window whatever the
    # layout of the data.
    last = (0, rank - 1, *range(1, rank - 1))
    # JAX makes the kernel that cuts out patches: in its own layout, not that of the layer's kernel,
    # whose window axes may stand in another order than those of the data.
    own = tuple(range(rank))
    result = jax.lax.conv_general_dilated_patches(
        data,
        window,
        params["window_strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=jax.lax.ConvDimensionNumbers(numbers.lhs_spec, own, last),
        precision=params["precision"],
    )
    channels = data.shape[numbers.lhs_spec[1]]
    # [batch, positions..., channels x window] -> [batch, positions..., channels, window]
    return result.reshape(*result.shape[:-1], channels, -1)


def taps(
    fn: Callable[..., Any], groups: Groups, kinds: Sequence[str] = ("in",)
) -> Callable[..., Any]:
    """The network, returning the values at its sites beside its output.

    Returns:
        `fn'(variables, *args) -> (out, {(layer, kind): value})`.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> taps(fn, groups, ("act",))(variables, jnp.ones((1, 3)))[1]["first", "act"].shape
        (1, 5)
    """

    def keep(site: Site, value: Any, carry: dict[tuple[str, str], Any]) -> tuple[Any, Any]:
        return value, {**carry, (site.layer, site.kind): value}

    run = intercept(fn, groups, keep, kinds)
    return lambda variables, *args: run(variables, {}, *args)


def gated(fn: Callable[..., Any], groups: Groups, at: str = "in") -> Callable[..., Any]:
    """The network with a gate per unit.

    Args:
        fn: the function that was traced, or its training-mode twin.
        groups: from `trace`.
        at: `in` (at every consumer: 0 is exact removal for any nonlinearity), `norm` (before the
            nonlinearity), `act` (behind it), `join` (branches on their way into the sum, where a
            gate has shape [1] or [batch, 1]; units on the sum itself).

    Returns:
        `fn'(variables, gates, *args)` with gates `{group: [n] | [batch, n]}`; a group that is not
        named has gates of one. With a batch axis, one backward pass gives the gradient per example.

    Raises:
        StructureError: gates of another net or shape; a group without a site of that kind (when
            called).

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> gated(fn, groups)(variables, {"first": jnp.array([1.0, 1, 0, 0, 0])}, jnp.ones((1, 3)))
        Array([[6., 6.]], dtype=float32)
    """

    def handler(site: Site, value: Any, gates: Mapping[str, Any]) -> tuple[Any, Any]:
        if site.kind == "branch":
            if site.layer in gates:
                # [1] or [batch, 1]: one number for all channels.
                gate = jnp.asarray(gates[site.layer]).reshape(-1, 1)
                value = value * site.along(gate, value.ndim).astype(value.dtype)
            return value, gates
        for name, units in site.units.items():
            if name in gates:
                value = value * _gate_along(site, value, jnp.asarray(gates[name]), units)
        return value, gates

    run = intercept(fn, groups, handler, ("join", "branch") if at == "join" else (at,))
    open_groups, sizes = {*gateable(groups, at)}, dict(groups.sizes)
    if at == "join":
        # A branch is one unit with one gate.
        sizes |= {branch.name: 1 for branch in groups.branches}
        open_groups |= {branch.name for branch in groups.branches}

    def gated_fn(variables: Any, gates: Mapping[str, Any], *args: Any) -> Any:
        for name, gate in gates.items():
            if name not in sizes or jnp.shape(gate)[-1:] != (sizes[name],):
                raise errors.StructureError(
                    f"a gate {name!r} of shape {jnp.shape(gate)}; gates are [n] or [batch, n] for "
                    f"the groups {sizes}."
                )
            if name not in open_groups:
                raise errors.StructureError(
                    f"the group {name!r} has no site of the kind {at!r}. It has "
                    f"{sorted({s.kind for s in groups.sites if name in s.groups})}."
                )
        return run(variables, gates, *args)[0]

    return gated_fn


def gateable(groups: Groups, at: str = "in") -> tuple[str, ...]:
    """Groups whose units can have gates at sites of a kind, in the order of the groups.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> gateable(groups, "act"), gateable(groups, "join")
        (('first',), ())
    """
    there = {name for site in groups.sites if site.kind == at for name in site.groups}
    return tuple(name for name in groups.names if name in there)


def _gate_along(site: Site, value: Any, gate: Any, units: Indices) -> Any:
    """A gate in the shape that a site's value is multiplied by; 1 at positions of other groups."""
    # [units] or [batch, units] -> [positions] or [batch, positions]: unit -1 has gate 1. The index
    # is clipped, or -1 would read the last unit's gate.
    along = jnp.where(units < 0, jnp.ones((), gate.dtype), gate[..., np.maximum(units, 0)])
    return site.along(along, value.ndim).astype(value.dtype)


def perturbed(
    fn: Callable[..., Any], groups: Groups, kinds: Sequence[str] = ("out",)
) -> Callable[..., Any]:
    """The network with something added at its sites: `fn'(variables, deltas, *args)`.

    The gradient in zero deltas is the gradient at the site's value, for every example: what
    Kronecker factors need at `out`. Shapes come from `jax.eval_shape(taps(fn, groups, kinds),
    variables, *args)[1]`.

    Example:
        >>> import jax, jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups, x = jprune.trace(fn, variables, jnp.ones((1, 3))), jnp.ones((1, 3))
        >>> shapes = jax.eval_shape(taps(fn, groups, ("out",)), variables, x)[1]
        >>> zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        >>> jax.grad(lambda d: perturbed(fn, groups)(variables, d, x).sum())(zeros)["first", "out"]
        Array([[2., 2., 2., 2., 2.]], dtype=float32)
    """

    def handler(site: Site, value: Any, deltas: Mapping[tuple[str, str], Any]) -> tuple[Any, Any]:
        delta = deltas.get((site.layer, site.kind))
        return (value if delta is None else value + delta), deltas

    run = intercept(fn, groups, handler, kinds)
    return lambda variables, deltas, *args: run(variables, deltas, *args)[0]
