"""Measuring a latency table: every call site at some of its widths, and some whole nets."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jprune.base import Groups, Variables
from jprune.cost import Contraction
from jprune.cost.counts import as_gates
from jprune.export.inputs import sample
from jprune.export.litert import converted
from jprune.graph import slim, slim_params
from jprune.measure.clock import timings
from jprune.measure.nets import tflite_call, xla_call
from jprune.measure.provenance import usable_cores
from jprune.measure.table import STEPS, LatencyTable, SiteTimes, features, relative_fit

FRACTIONS = (1.0, 0.55, 0.2)
"""Of an axis, at which a site is measured."""
NETS = 8
"""Whole nets that are measured, the dense one among them."""
SAVED = 0.01
"""Part of the time that narrowing has to save, to be worth it."""
Shape = jax.ShapeDtypeStruct
Call = tuple[Callable[[Any], Any], Shape]
"""A function of one array, and the array's shape."""
Stopwatch = Callable[[Mapping[str, Call]], dict[str, float]]
"""`{name: (function, shape of its argument)} -> {name: ms}`."""
Gates = dict[str, np.ndarray]


def stopwatch(target: str, clock: Callable[[], int] | None = None) -> Stopwatch:
    """Times functions in turns, and takes the least of ten rounds: what else runs only adds to it.

    Args:
        target: "xla", or "tflite" with all the cores that this process may use.
        clock: time in ns; None is the wall's, `time.process_time_ns` the work of this process.
    """

    def ready(fn: Callable[[Any], Any], shape: Shape) -> Callable[[], Any]:
        if target == "tflite":
            return tflite_call(converted(fn, shape), usable_cores())
        return xla_call(fn, sample(shape, shape.shape[0]))[0]

    def watch(calls: Mapping[str, Call]) -> dict[str, float]:
        times = timings({n: ready(*call) for n, call in calls.items()}, 10, 1, clock=clock)
        return {name: float(of.min()) for name, of in times.items()}

    return watch


def measured_table(
    fn: Callable[..., Any],
    variables: Variables,
    example: Shape,
    groups: Groups,
    sites: Sequence[Contraction],
    target: str,
    watch: Stopwatch,
) -> LatencyTable:
    """Measures a table; arguments as of `latency_table`, the example with its batch."""
    times: dict[str, float] = {}
    fits = []
    for site in sites:
        samples = {signature(site, gates): gates for gates in settings(groups, site)}
        # Sites of equal shapes, of which nets have many, are measured once.
        if fresh := {name: alone(site, samples[name]) for name in samples if name not in times}:
            times |= watch(fresh)
        terms = [site.term(gates) for gates in samples.values()]
        columns = np.stack([features(term.inputs, term.outputs) for term in terms])
        weights, error = relative_fit(columns, np.array([times[name] for name in samples]))
        positions = site.term(gates_of(groups, {})).positions
        fits.append(SiteTimes(float(positions), tuple(weights.tolist()), error))
    table = LatencyTable(target, example.shape[0], tuple(fits), 1.0, 0.0, 0.0, 1, 0.0)
    return with_the_rest(table, fn, variables, example, groups, sites, watch)


def with_the_rest(
    table: LatencyTable,
    fn: Callable[..., Any],
    variables: Variables,
    example: Shape,
    groups: Groups,
    sites: Sequence[Contraction],
    watch: Stopwatch,
) -> LatencyTable:
    """The table with what stands between the sites, from times of whole nets."""
    nets = [*random_widths(groups, NETS)]
    calls = {str(n): (small(fn, variables, groups, masks), example) for n, masks in enumerate(nets)}
    times = np.array([*watch(calls).values()])
    terms = [[site.term(gates_of(groups, masks)) for site in sites] for masks in nets]
    # T = scale x (the sum of the sites) + written x (values that are written) + constant
    columns = np.array(
        [[sum(map(table, of)), sum(term.written for term in of), 1.0] for of in terms], float
    )
    weights, error = relative_fit(columns, times)
    scale, written, constant = weights.tolist()
    whole = dataclasses.replace(table, scale=scale, written=written, constant=constant, error=error)
    time = lambda masks: sum(whole(site.term(gates_of(groups, masks))) for site in sites)
    return dataclasses.replace(whole, multiple_of=multiple_of(groups, time))


def multiple_of(groups: Groups, time: Callable[[Gates], float]) -> int:
    """The widest step between whose multiples nothing is gained.

    Args:
        groups: from `trace`.
        time: of a net under masks.
    """
    # Half of each group, which all the steps divide.
    half = {name: -(-size // 2 // STEPS[0]) * STEPS[0] for name, size in groups.sizes.items()}
    half = {name: width for name, width in half.items() if 0 < width < groups.sizes[name]}
    narrowed = lambda by: time(
        {name: np.arange(groups.sizes[name]) < width - by for name, width in half.items()}
    )
    for step in (16, 8, 4, 2) if half else ():
        if narrowed(step // 2) >= (1 - SAVED) * narrowed(0):
            return step
    return 1


def settings(groups: Groups, site: Contraction) -> Iterator[Gates]:
    """Gates at which a site is measured: a grid of both axes, and widths that no step divides."""
    reads = {name for count in site.inputs for name in count.groups}
    writes = {name for count in site.outputs for name in count.groups}
    grid = [(i, 0, o, 0) for i in FRACTIONS for o in FRACTIONS]
    for by in (8, 2, 1):
        ends = [(i, o) for i in FRACTIONS[::2] for o in FRACTIONS[::2]]
        grid += [(i, by, o, 0) for i, o in ends] + [(i, 0, o, by) for i, o in ends]
        grid += [(i, by, o, by) for i, o in ends]
    for i, less_i, o, less_o in grid:
        widths = {name: width(groups.sizes[name], i, less_i) for name in reads}
        widths |= {name: width(groups.sizes[name], o, less_o) for name in writes}
        yield gates_of(groups, {n: np.arange(groups.sizes[n]) < w for n, w in widths.items()})


def width(size: int, fraction: float, less: int) -> int:
    """A fraction of a group, as a multiple of the largest step that makes sense, and some less."""
    step = 16 if size >= 48 else 8 if size >= 16 else 1
    of_step = size if fraction == 1 else max(1, round(fraction * size / step)) * step
    return max(1, of_step - less)


def random_widths(groups: Groups, number: int, seed: int = 0) -> Iterator[Gates]:
    """Masks of whole nets: the dense one, then every group at a random width from a fifth on."""
    rng = np.random.default_rng(seed)
    yield {}
    for net in range(number - 1):
        step = 8 if net % 2 else 1  # every other net is one that a budget would choose
        masks = {}
        for name, size in groups.sizes.items():
            wanted = rng.uniform(0.2, 1) * size
            masks[name] = np.arange(size) < min(size, max(1, round(wanted / step)) * step)
        yield masks


def small(
    fn: Callable[..., Any], variables: Variables, groups: Groups, masks: Gates
) -> Callable[[Any], Any]:
    """The slim net under masks, its variables compiled in; what they are does not matter."""
    # Positive numbers, since some of them are variances.
    made = jax.tree.map(lambda leaf: drawn(Shape(leaf.shape, leaf.dtype)), variables)
    of_slim, held = slim(fn, groups, masks), slim_params(groups, masks, made)
    return lambda x: of_slim(held, x)


def drawn(shape: Shape) -> np.ndarray:
    """Numbers from 0.01 to 0.1: nothing that a compiler could compute in advance."""
    numbers = np.random.default_rng(0).uniform(0.01, 0.1, shape.shape)
    return numbers.astype(shape.dtype)


def alone(site: Contraction, gates: Gates) -> Call:
    """A site as a function of its data, the kernel being compiled in."""
    shapes = site.shapes(gates)
    kernel = drawn(shapes[site.kernel])
    run = (lambda x: site.run(x, kernel)) if site.kernel else (lambda x: site.run(kernel, x))
    return run, shapes[1 - site.kernel]


def signature(site: Contraction, gates: Gates) -> str:
    """What a site computes at some widths, in words: equal ones take equal times."""
    params = sorted((name, str(value)) for name, value in site.equation.params.items())
    shapes = [f"{shape.dtype}{list(shape.shape)}" for shape in site.shapes(gates)]
    return f"{site.equation.name} {params} {shapes} {site.kernel}"


def gates_of(groups: Groups, masks: Mapping[str, Any]) -> Gates:
    """Gates of all groups and branches."""
    sizes = {**groups.sizes, **{branch.name: 1 for branch in groups.branches}}
    return as_gates(sizes, masks)
