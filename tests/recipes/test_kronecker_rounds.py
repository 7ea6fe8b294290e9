"""Rounds of C-OBD to Kron-OBS: `limit` is of what is alive, and the last round meets the budget."""

import itertools

import jax
import numpy as np
import pytest

from jprune import errors, recipes
from jprune.base import Budget
from jprune.stages.kronecker import floors_of
from jprune.train import Net
from tests.contracts import own


def task(widths=(6, 16, 20, 3)):
    """Dense layers with biases, and ReLUs between."""
    shapes = {f"fc{number}": pair for number, pair in enumerate(itertools.pairwise(widths), 1)}

    def fn(v, x):
        for number, layer in enumerate(v["params"].values(), 1):
            x = x @ layer["kernel"] + layer["bias"]
            x = jax.nn.relu(x) if number < len(shapes) else x
        return x

    return own.task_of(fn, own.kernels(shapes, bias=True), (6,))


def masks_after(budget, method="kron_obd", **options):
    recipe = recipes.find(method)(budget, None, own.SHORT, recalibrate=0, **options)
    return own.run(recipe, task()).masks


@pytest.mark.parametrize(("rounds", "density"), [(2, 0.25), (3, 0.2), (4, 0.5)])
def test_rounds_meet_a_density_below_what_one_of_them_may_take(rounds, density):
    masks = masks_after(Budget(density=density), rounds=rounds)
    kept = sum(int(np.sum(mask)) for mask in masks.values())
    assert kept == 36 - round((1 - density) * 36)
    for mask in masks.values():
        assert np.sum(mask) >= floors_of({"": mask.size}, 0.5, rounds)[""]


@pytest.mark.parametrize("macs", [0.15, 0.2, 0.35])
def test_rounds_meet_a_budget_in_macs(macs):
    """From 16 and 20 units, two rounds come down to 4 and 5: 0.11 of the MACs."""
    masks = masks_after(Budget(macs=macs), rounds=2)
    cost = Net(task()).cost
    found = float(cost(masks).macs / cost({}).macs)
    assert macs - 0.06 < found <= macs + 1e-9


def test_a_budget_that_no_rounds_can_meet_is_refused_before_training():
    drawn = []
    watched = own.watched(task(), drawn, most=0)
    recipe = own.recipe_of("kron_obs", Budget(macs=0.1), rounds=2)
    with pytest.raises(errors.BudgetError, match=r"limit=0.5 of a group.*more rounds than 2"):
        own.run(recipe, watched)
    assert not drawn
