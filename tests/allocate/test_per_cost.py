"""Damage per cost: prices of units are those of the net beside what is alive."""

import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import errors
from jprune.allocate import global_topk, per_cost
from jprune.base import Budget
from jprune.job.changes import global_per_cost

SIZES = {"first": (5, 8), "second": (8, 3), "third": (3, 2)}
VARIABLES = {name: jnp.ones(shape) for name, shape in SIZES.items()}


def fn(v, x):
    return jnp.maximum(jnp.maximum(x @ v["first"], 0) @ v["second"], 0) @ v["third"]


GROUPS = jprune.trace(fn, VARIABLES, jnp.ones((1, 5)))
COST = jprune.cost_model(fn, VARIABLES, jnp.ones((1, 5)), groups=GROUPS)


def scores(alive=8):
    first = np.where(np.arange(8) < alive, np.arange(8.0) + 1, -np.inf)
    return {"first": first, "second": np.array([2.0, np.inf, 6.0])}


@pytest.mark.parametrize("field", ["macs", "params"])
@pytest.mark.parametrize("alive", [8, 4])
def test_a_score_is_divided_by_what_one_unit_more_costs(field, alive):
    """A unit of the first layer: 5 in, 3 out; one of the second: those alive in, 2 out."""
    found = per_cost(scores(alive), COST, field)
    np.testing.assert_allclose(found["first"], scores(alive)["first"] / (5 + 3))
    np.testing.assert_allclose(found["second"], scores(alive)["second"] / (alive + 2))


def test_units_that_cost_much_go_first():
    """Raw damages take cheap units; damage a MAC takes those that save most for it."""
    even = {"first": np.arange(8) / 100 + 0.9, "second": np.arange(3) / 100 + 0.9}
    dear = {name: len(mask) - mask.sum() for name, mask in global_per_cost(
        even, Budget(density=9 / 11), COST).items()}  # fmt: skip
    assert dear == {"first": 0, "second": 2}
    raw = {n: len(m) - m.sum() for n, m in global_topk(even, Budget(density=9 / 11)).items()}
    assert raw == {"first": 1, "second": 1}


def test_it_needs_a_cost_model():
    with pytest.raises(errors.ArgumentError, match="needs a cost model"):
        global_per_cost(scores(), Budget(density=0.5))
