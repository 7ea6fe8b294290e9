"""AMC: numbers of checks.md B17, a policy for one budget, its other reward."""

import jax
import numpy as np
import pytest

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.amc import amc
from jprune.search import bound
from jprune.stages import SearchRatios
from jprune.train.net import Net
from tests.search_problems import chain, read_by_inputs
from tests.toys import drawn, toy_task

FINE = Train(1, 0.01, 16, max_steps=2, name="finetune")
SMALL = {"episodes": 3, "warmup": 1, "hidden": 8, "batches": 1, "examples": 32}


def test_bounds_of_actions():
    """Checks B17: shares of inputs, without buffers; an agent that always wants all."""
    lowest, actions, bounds = np.full(3, 0.2), np.zeros(0), []
    for _ in range(3):
        bounds.append(bound(read_by_inputs, actions, lowest, 0.5))
        actions = np.append(actions, max(min(1.0, bounds[-1]), 0.2))
    np.testing.assert_allclose(bounds, [8.6, 9 / 7, 1 / 3])
    np.testing.assert_allclose(actions, [1, 1, 1 / 3])
    assert 40 * read_by_inputs(actions[None])[0] == pytest.approx(20)


def test_the_bound_uses_the_budget_up_and_that_of_cacp_is_on_the_safe_side():
    """An agent that always wants all: what is left of the budget is less than a unit's cost."""
    exact, safe = (chain([10, 20, 10], [400] * 3, (0.5,), own=own) for own in (False, True))
    genes = np.zeros(0, int)
    for _ in range(3):
        assert min(1, safe.bound(genes, 0)) <= min(1, exact.bound(genes, 0)) + 1e-9
        genes = np.append(genes, exact.decide(genes, 0, 1.0))
    assert 0.495 < exact.price(genes[None])[0] <= 0.5 + 1e-6
    assert safe.bound(np.array([300]), 0) < exact.bound(np.array([300]), 0) - 0.01


def test_the_policy_does_not_see_the_budget():
    environment = chain([10, 20, 10], [16] * 3, (0.3, 0.7), shown=False)
    low, high = (environment.look(np.array([8]), goal) for goal in (0, 1))
    np.testing.assert_array_equal(low, high)


def test_a_recipe_meets_its_budget_by_either_reward():
    task = toy_task("tiny", validation_size=20)
    dense, net = Pruned(drawn(task), None), Net(task)
    scores = {}
    for reward in ("quality", "error_macs"):
        recipe = amc(Budget(macs=0.5), None, FINE, reward=reward, **SMALL)
        done, _ = recipes.run(recipe, dense, task, jax.random.key(1))
        macs = float(net.cost(done.masks).macs)
        assert macs <= 0.5 * float(net.cost({}).macs)
        assert {*done.extra["masks"]} == {"macs 0.5"}
        scores[reward] = float(done.extra["scores"]["macs 0.5"])
        if reward == "error_macs":
            # -error log(FLOPs), of the best net
            error = -scores[reward] / np.log(macs)
            assert 0 <= error <= 1
            assert round(20 * (1 - error), 3) == pytest.approx(round(20 * (1 - error)), abs=1e-2)
    assert 0 <= scores["quality"] <= 1


def test_other_words_are_refused():
    with pytest.raises(errors.ArgumentError, match="quality, error_macs"):
        amc(Budget(macs=0.5), None, FINE, reward="flops")
    (search,) = [s for s in amc(Budget(macs=0.5), None, FINE) if isinstance(s, SearchRatios)]
    assert (search.episodes, search.agent.warmup, search.agent.replay) == (800, 100, 100)
    assert (search.repair.batches, search.repair.points, search.shown) == (60, 10, False)
