"""Cold starts: what is made of a net's arrays without data takes at most three XLA programs.

XLA compiles a program for every shape, and a net has a hundred shapes: compiling them takes
seconds where the numbers take milliseconds.
"""

import functools

import jax
import numpy as np
import optax
import pytest

import jprune
from jprune import allocate, blocks, criteria, masks, schedules, sparsify, units
from jprune.base import Budget
from jprune.job.changes import global_per_cost
from jprune.train import optimizers
from tests import programs
from tests.contracts import test_tables as tables

MOST = 3
"""Programs for a score, a mask or a state of any net."""
NETS = {"residual": programs.residual, "equinox": programs.equinox}
KEY = jax.random.key(0)


class Case:
    """A net of which everything that the rows need is made, before anything is counted."""

    def __init__(self, make):
        net = make()
        self.fn, self.variables, self.x, self.groups = net
        self.params = self.variables["params"]
        random = np.random.default_rng(0)
        self.draw = lambda size: jax.device_put(random.normal(size=size).astype(np.float32))
        self.units = {n: np.arange(size) % 3 > 0 for n, size in self.groups.sizes.items()}
        self.weights = jax.device_put(jprune.expand(self.groups, self.units))
        self.scores = {name: self.draw(size) for name, size in self.groups.sizes.items()}
        self.counts = {name: max(1, size // 2) for name, size in self.groups.sizes.items()}
        self.kernels = jprune.run_criterion(criteria.magnitude(), self.variables, ())
        self.of_kernels = sparsify.rules.kernels_of(self.groups, self.kernels)
        self.layers = blocks.filters(self.groups)

    @functools.cached_property
    def cost(self):
        """The cost model."""
        return jprune.cost_model(self.fn, self.variables, self.x, groups=self.groups)


@functools.cache
def case_of(net):
    """The case of a net, made once."""
    return Case(NETS[net])


def scored(make):
    """A row: the scores of a criterion, and what units get of them."""

    def of(case):
        scores = jprune.run_criterion(make(case), case.variables, ())
        if jprune.units.are_units(case.groups, scores):
            return scores
        return scores, jprune.to_units(case.groups, scores)

    return of


CRITERIA = {
    "magnitude": lambda c: criteria.magnitude(1),
    "magnitude squared": lambda c: criteria.magnitude(2),
    **{
        f"distance {metric}": lambda c, metric=metric: criteria.distance(c.groups, metric)
        for metric in ("l2", "manhattan", "cosine")
    },
    "layer_adaptive": lambda c: criteria.layer_adaptive(),
    "random": lambda c: criteria.random(KEY),
    "random of units": lambda c: criteria.random(KEY, c.groups),
    "coupled_norm": lambda c: criteria.coupled_norm(c.groups),
    "scales": lambda c: criteria.scales(c.groups),
    "std_rule": lambda c: criteria.std_rule(),
    "synaptic_flow": lambda c: criteria.synaptic_flow(c.fn, c.x),
    "masked": lambda c: criteria.masked(criteria.magnitude(), c.weights),
}
"""Every criterion that looks at no data."""


def allocated(allocator, kind="density", of="units"):
    """A row: the masks of an allocator at 0.6 of the net."""

    def row(case):
        scores = case.scores if of == "units" else case.of_kernels
        return allocator(case)(scores, Budget(**{kind: 0.6}), case.cost)

    return row


ALLOCATORS = {
    **{
        f"{name} {kind} {of}": allocated(make, kind, of)
        for name, make in {
            "uniform": lambda c: allocate.uniform,
            "global_topk": lambda c: allocate.global_topk,
        }.items()
        for kind in ("density", "params", "macs")
        for of in ("units", "weights")
    },
    "global_per_cost": allocated(lambda c: global_per_cost, "macs"),
    "erdos_renyi": allocated(lambda c: allocate.erdos_renyi(c.groups), of="weights"),
    "toward": allocated(lambda c: allocate.toward(c.counts)),
    "normalized": lambda c: allocate.normalized(c.scores),
    "outliers": lambda c: allocate.Outliers(allocate.global_topk)(
        {name: np.asarray(score) for name, score in c.scores.items()}, Budget(density=0.5)
    ),
    "deviations": lambda c: allocate.deviations(c.scores),
    "keep_best": lambda c: [allocate.keep_best(s, 2) for s in c.scores.values()],
    "jointly": lambda c: allocate.jointly(
        [c.layers], {c.layers.kind: c.scores}, Budget(macs=0.6), c.cost, allocate.uniform
    ),
    "smallest": lambda c: allocate.smallest(c.scores, Budget(macs=0.6), c.cost),
}

MASKS = {
    "expand": lambda c: jprune.expand(c.groups, c.units),
    "expand of arrays": lambda c: jprune.expand(c.groups, jax.device_put(c.units)),
    "expand of gates": lambda c: jprune.expand(c.groups, c.scores, ("in",)),
    "ones": lambda c: units.ones(c.groups),
    "apply_masks": lambda c: jprune.apply_masks(c.variables, c.weights),
    "as_masks": lambda c: masks.as_masks(c.weights, c.variables),
    "as_masks of bools": lambda c: masks.as_masks(jax.tree.map(np.asarray, c.weights), c.variables),
    "best": lambda c: [masks.best(s, 2) for s in c.scores.values()],
    "density": lambda c: masks.density(c.weights),
    "hold": lambda c: masks.hold(c.weights).init(c.variables),
    "held": lambda c: masks.held(c.variables, c.variables, c.weights),
    "intersect": lambda c: masks.intersect(c.weights, c.weights),
    "keep_best": lambda c: jax.tree.map(lambda leaf: masks.keep_best(leaf, 2), c.kernels),
    "lift": lambda c: masks.lift(c.groups, c.weights),
    "map_parameters": lambda c: masks.map_parameters(np.shape, c.variables),
    "pack": lambda c: masks.unpack(masks.pack(c.weights)),
    "with_masks": lambda c: masks.masks_of(
        masks.with_masks((masks.HoldState(c.weights),), c.weights)
    ),
    "to_units": lambda c: jprune.to_units(c.groups, c.variables, within="l2"),
    "rows": lambda c: [units.rows(c.groups, c.variables, name) for name in c.groups.names],
    "map_units": lambda c: units.map_units(
        c.groups, c.variables, {n: np.eye(s)[1:] for n, s in c.groups.sizes.items()}
    ),
    "slim_params": lambda c: jprune.slim_params(c.groups, c.units, c.variables),
    "cost": lambda c: c.cost(c.weights),
    "blocks.alive": lambda c: blocks.alive(c.layers, c.variables),
    "blocks.masks": lambda c: blocks.masks(c.layers, blocks.alive(c.layers, c.variables)),
    "blocks.norms": lambda c: blocks.norms(c.layers, c.variables),
    "blocks.squares": lambda c: blocks.squares(c.layers, c.variables),
    "blocks.pool": lambda c: blocks.pool(c.layers, c.kernels),
    "blocks.scale": lambda c: blocks.scale(c.layers, c.variables, c.scores),
    "n_of_m": lambda c: blocks.n_of_m(c.groups, c.kernels, 1, 2),
}


def steady(step):
    """A learning rate."""
    return 0.05


def rule(criterion, per="unit", allocator=allocate.uniform):
    """Masks of a criterion, at a density that falls."""
    return lambda c: sparsify.masks_by(
        criterion(c), allocator, schedules.cubic(0.5, 0, 4), c.groups, per
    )


def of_rows(transformation):
    """A transformation of {name: rows}, for parameters in a tree."""
    flat = lambda tree: {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(tree))}
    update = lambda updates, state, params: transformation.update(
        flat(updates), state, flat(params)
    )
    return optax.GradientTransformation(lambda p: transformation.init(flat(p)), update)


SGD = optax.sgd(0.1, 0.9)
by_weight = rule(lambda c: criteria.magnitude(), "weight", allocate.global_topk)
by_unit = rule(lambda c: criteria.magnitude(2))
prunable = lambda c: jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), c.of_kernels["params"])
halves = lambda c: {name: np.arange(size) // 2 for name, size in c.groups.sizes.items()}
SPARSIFIERS = {
    "active_gradients": lambda c: sparsify.active_gradients(blocks.weights(c.groups), 30),
    "hold": lambda c: sparsify.hold(c.weights["params"]),
    "l1_gradient": lambda c: sparsify.l1_gradient(blocks.weights(c.groups), 0.1),
    "l1_decay": lambda c: sparsify.l1_decay(blocks.weights(c.groups), 0.1, steady),
    "group_lasso": lambda c: sparsify.group_lasso(c.layers, 0.1, steady),
    "admm": lambda c: sparsify.admm(SGD, sparsify.projection(c.layers, c.counts), rho=0.1, every=2),
    "centripetal": lambda c: sparsify.centripetal(
        sparsify.memberships(c.groups, halves(c))["params"], 0.1
    ),
    **{
        f"drop_and_grow {grow}": lambda c, grow=grow: sparsify.drop_and_grow(
            SGD, prunable(c), KEY, every=2, stop=9, grow=grow
        )
        for grow in ("gradient", "random")
    },
    "dynamic_surgery": lambda c: sparsify.dynamic_surgery(SGD, prunable(c), 0.0, KEY, stop=10),
    "feedback": lambda c: sparsify.feedback(SGD, by_weight(c), every=2),
    "feedback of units": lambda c: sparsify.feedback(SGD, by_unit(c), every=2),
    "hard_threshold": lambda c: sparsify.hard_threshold(
        SGD, by_weight(c), sparse_steps=2, dense_steps=1, steps=5
    ),
    "soft_prune": lambda c: sparsify.soft_prune(
        rule(lambda c: criteria.distance(c.groups))(c), every=2
    ),
    "forgetting": lambda c: of_rows(
        sparsify.forgetting(steady, 0.01, lambda lengths, step, masks: masks, momentum=0.9)
    ),
    "dwindling": lambda c: sparsify.dwindling(
        blocks.filters(c.groups, shifts=True),
        allocate.lowest_first(c.groups.sizes, Budget(density=0.5)),
        begin=0,
        period=2,
    ),
    "fista": lambda c: sparsify.fista(steady, lambda step: 0.1, restart=2),
    "movement": lambda c: sparsify.movement(
        SGD,
        optax.sgd(0.01),
        lambda scores, step: allocate.uniform(scores, Budget(density=0.5)),
        prunable(c),
    ),
    "within_range": lambda c: sparsify.within_range(
        SGD,
        jax.tree.map(lambda mask: np.array([0.3, 0.8]), prunable(c)),
        steady,
        strength=0.1,
        every=2,
    ),
    "refined_ste": lambda c: sparsify.refined_ste(
        SGD,
        lambda weights: blocks.n_of_m(
            c.groups,
            sparsify.rules.as_variables(c.groups, criteria.magnitude().score((), weights)),
            1,
            2,
        )["params"],
    ),
    "candidate_decay": lambda c: sparsify.candidate_decay(c.layers, 0.4, 0.1, steady),
    "relative_decay": lambda c: sparsify.relative_decay(blocks.coupled(c.groups), 0.1),
    "group_decay": lambda c: sparsify.group_decay(c.layers, 0.1),
    "growing_decay": lambda c: sparsify.growing_decay(c.layers, 0.1, 0.3, every=2),
    "ranked_decay": lambda c: sparsify.ranked_decay(SGD, c.layers, c.counts, 0.2, 0.5),
    "box": lambda c: sparsify.box(-0.5, 0.5),
    "guarded": lambda c: sparsify.guarded(SGD),
    "one_by_one": lambda c: sparsify.one_by_one(
        criteria.magnitude(),
        c.groups,
        allocate.lowest_first(c.groups.sizes, Budget(density=0.7)),
        every=2,
    ),
    "low_rank": lambda c: sparsify.low_rank(c.groups, 0.1, steady, every=2),
    "truncated_lasso": lambda c: sparsify.truncated_lasso(
        blocks.columns(c.groups), 0.1, {n: 1 for n in blocks.columns(c.groups)}, steady
    ),
    "scheduled_prune": lambda c: sparsify.scheduled_prune(
        criteria.magnitude(), allocate.global_topk, schedules.cubic(0.5, 0, 4), every=2
    ),
    "scheduled_prune of units": lambda c: sparsify.scheduled_prune(
        criteria.magnitude(), allocate.uniform, schedules.cubic(0.5, 0, 4), 2, c.groups
    ),
}
chosen = lambda name, **settings: optimizers.Chosen(name, 0.1, "constant", 10, 1e-4, **settings)
OPTIMIZERS = {
    "sgd": lambda: optimizers.Sgd(0.1, "constant", 10, 0.9, 1e-4),
    "amsgrad": lambda: optimizers.Adam(0.1, 10, 1e-4),
    **{name: lambda name=name: chosen(name) for name in ("adam", "adamw", "lion", "lamb")},
}
STATES = {
    **{f"state of {name}": make for name, make in SPARSIFIERS.items()},
    **{
        f"optimizer {name}": lambda c, make=make: make().transformation(True, c.weights["params"])
        for name, make in OPTIMIZERS.items()
    },
}
MADE = {
    **{f"score {name}": scored(make) for name, make in CRITERIA.items()},
    **{f"allocate {name}": row for name, row in ALLOCATORS.items()},
    **{f"masks {name}": row for name, row in MASKS.items()},
    **{name: lambda c, make=make: make(c).init(c.params) for name, make in STATES.items()},
}
each_net = pytest.mark.parametrize("net", NETS)


def programs_of(work):
    """How many programs XLA compiles for it, in a process that has compiled nothing yet."""
    jax.clear_caches()
    with programs.compilations() as compiled:
        jax.block_until_ready(work())
    return len(compiled)


@each_net
@pytest.mark.parametrize("row", MADE)
def test_what_looks_at_no_data_takes_three_programs_at_most(net, row):
    case = case_of(net)
    assert programs_of(lambda: MADE[row](case)) <= MOST


@pytest.mark.parametrize("row", STATES)
def test_a_step_is_one_program(row):
    """Nothing is compiled on the way to it: what a transformation holds is there already."""
    case = case_of("equinox")
    transformation = optax.with_extra_args_support(STATES[row](case))
    state, params = transformation.init(case.params), case.params
    assert programs_of(lambda: jax.jit(transformation.update).lower(params, state, params)) == 0


def test_every_criterion_without_data_and_every_transformation_has_a_row():
    names = lambda table: {row.partition(" ")[0] for row in table}
    without = {name for name, make in tables.CRITERIA.items() if not make().needs_data}
    assert names(without) <= names(CRITERIA)
    assert names(tables.SPARSIFIERS) == names(SPARSIFIERS)
    assert names(tables.ALLOCATORS) <= names(ALLOCATORS)
    functions = {name for name in masks.__all__ if not isinstance(getattr(masks, name), type)}
    # `ste` and `straight_through` are for steps that are compiled anyway.
    whole = {*MASKS, "masks_of", "unpack", "ste", "straight_through"}
    assert functions <= whole
