"""Scores, masks and small arrays of a net are made without a program for every leaf.

XLA compiles one for every shape, and a net has a hundred: that takes longer than all the numbers.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocate, criteria, curvature, masks, units
from jprune.graph.shrink.concrete import copied
from tests.programs import compilations

LAYERS = 9
SIZES = itertools.count(20)
"""Every net has sizes of its own: nothing is compiled for it yet."""


def net(v, x):
    for number in range(LAYERS):
        x = jnp.tanh(x @ v[f"kernel{number}"] + v[f"shift{number}"])
    return x


def loss(out, batch):
    del batch
    return (out**2).sum(1)


class Case:
    """A net of new sizes, its groups and masks."""

    def __init__(self):
        self.sizes = list(itertools.islice(SIZES, LAYERS + 1))
        random = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
        kernels = {
            f"kernel{n}": draw(*pair) for n, pair in enumerate(itertools.pairwise(self.sizes))
        }
        shifts = {f"shift{n}": draw(size) for n, size in enumerate(self.sizes[1:])}
        self.variables = {**kernels, **shifts}
        self.batch = {"image": draw(3, self.sizes[0])}
        self.groups = jprune.trace(net, self.variables, self.batch["image"])
        self.units = {name: np.arange(size) % 3 > 0 for name, size in self.groups.sizes.items()}
        self.weights = jprune.expand(self.groups, self.units)
        self.scores = {name: draw(size) for name, size in self.groups.sizes.items()}


def scored(make):
    return lambda case: jprune.run_criterion(make(case), case.variables, [case.batch])


KEY = jax.random.key(0)
WORK = {
    "L1": scored(lambda case: criteria.magnitude()),
    "L2": scored(lambda case: criteria.magnitude(2)),
    "random": scored(lambda case: criteria.random(KEY)),
    "std": scored(lambda case: criteria.std_rule({**dict.fromkeys(case.variables, 0.5)})),
    "taylor": scored(lambda case: criteria.taylor(net, loss)),
    "rounds of taylor": scored(lambda case: criteria.taylor(net, loss, momentum=0.9)),
    "gates": scored(lambda case: criteria.taylor(net, loss, case.groups, form="gate")),
    "obd": scored(lambda case: criteria.obd(net, loss, curvature.fisher(), negative="refuse")),
    "activations": scored(lambda case: criteria.activations(net, case.groups, criteria.entropy(4))),
    "masked": scored(lambda case: criteria.masked(criteria.magnitude(), case.weights)),
    "apply_masks": lambda case: jprune.apply_masks(case.variables, case.weights),
    "intersect": lambda case: masks.intersect(case.weights, case.weights),
    "lift": lambda case: masks.lift(case.groups, case.weights),
    "to_units": lambda case: jprune.to_units(case.groups, case.variables, within="l2"),
    "rows": lambda case: [units.rows(case.groups, case.variables, n) for n in case.groups.names],
    "map_units": lambda case: units.map_units(
        case.groups, case.variables, {n: np.eye(s)[1:] for n, s in case.groups.sizes.items()}
    ),
    "normalized": lambda case: allocate.normalized(case.scores),
    "global_topk": lambda case: allocate.global_topk(case.scores, jprune.Budget(density=0.5)),
    "slim_params": lambda case: jprune.slim_params(case.groups, case.units, case.variables),
    "hold": lambda case: jprune.hold(case.weights).init(case.variables),
    "cost": lambda case: jprune.cost(
        net, case.variables, case.batch["image"], groups=case.groups, masks=case.weights
    ),
    "copied": lambda case: copied(case.variables),
}


@pytest.mark.parametrize("name", WORK)
def test_work_on_leaves_compiles_no_program_for_each(name):
    case = Case()
    with compilations() as programs:
        jax.block_until_ready(WORK[name](case))
    # One pass over a batch, the draws, and a few numbers beside them: as many for any net.
    assert len(programs) < LAYERS, f"{len(programs)} programs for {2 * LAYERS} leaves"


def test_numpy_and_jax_give_the_same_scores():
    case = Case()
    for make in (criteria.magnitude, lambda: criteria.magnitude(2), lambda: criteria.std_rule(0.7)):
        score = lambda variables, make=make: make().score((), variables)
        for dtype in (jnp.float32, jnp.bfloat16):
            variables = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), case.variables)
            host, traced = score(variables), jax.jit(score)(variables)
            for name in variables:
                assert host[name].dtype == traced[name].dtype
                np.testing.assert_allclose(
                    *(np.asarray(tree[name], np.float32) for tree in (host, traced)), rtol=1e-2
                )


def test_a_map_of_units_is_that_of_jax():
    case = Case()
    random = np.random.default_rng(1)
    matrices = {
        name: jnp.asarray(random.normal(size=(size - 2, size)), jnp.float32)
        for name, size in case.groups.sizes.items()
    }
    mapped = lambda variables: units.map_units(case.groups, variables, matrices)
    host, traced = mapped(case.variables), jax.jit(mapped)(case.variables)
    for name, leaf in traced.items():
        # Sums in another order: an entry near 0 is a difference of large numbers.
        np.testing.assert_allclose(host[name], leaf, rtol=1e-4, atol=1e-6 * np.abs(leaf).max())
