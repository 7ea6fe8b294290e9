"""Pruning with feedback as a recipe: weights and units come back, budgets are met exactly."""

import numpy as np
import pytest

from jprune import allocate, errors
from jprune.base import Budget
from jprune.recipes.dpf import dpf
from jprune.stages import Train
from jprune.stages.goal import Goal
from jprune.train.net import Net
from tests.contracts import own
from tests.stages.test_time_to_act import learnable
from tests.toys import toy_task

LONG = Train(30, 0.05, 32, weight_decay=1e-3, name="finetune")


def kept(task, masks, budget):
    scores = masks if Net(task).are_units(masks) else Net(task).prunable(None, budget)
    return allocate.price_of(scores, budget, Net(task).cost)(masks)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("per", ["weight", "unit"])
def test_what_was_pruned_comes_back_and_the_budget_is_met(per, scope):
    task = learnable()
    budget = Budget(macs=0.4)
    recipe = dpf(budget, None, LONG, per=per, scope=scope, every=4)
    before, during = own.up_to(recipe, task, "feedback")
    assert during.masks is None
    hidden = Net(task).leaves(during.extra["hidden"])
    assert any(np.any(worth) for worth in hidden.values())
    (line,) = recipe[2](before, task, own.KEY)[1]
    assert line["metrics"]["back"] > 10
    pruned = own.run(recipe, task)
    assert (pruned.extra, Net(task).are_units(pruned.masks)) == (None, per == "unit")
    fraction = kept(task, pruned.masks, budget)
    assert 0.35 < fraction <= 0.4 + 1e-9
    if per == "weight":  # the last layer is whole
        assert np.all(Net(task).leaves(pruned.masks)["params/c/kernel"])


def test_masks_in_the_end_are_not_those_of_the_dense_net_and_serve_better():
    """The net under masks taken at once, before training, is what feedback has to beat."""
    task, budget = learnable(), Budget(density=0.2)
    before, during = own.up_to(dpf(budget, None, LONG, every=4), task, "feedback")
    at_once = Goal(budget, scope="global", last=1.0).settled(task, before.variables)
    moved = Net(task).leaves(Goal(budget, scope="global", last=1.0).settled(
        task, during.variables
    ))  # fmt: skip
    new = [np.mean(moved[path] & ~mask) for path, mask in Net(task).leaves(at_once).items()]
    assert max(new) > 0.03
    loss = lambda variables: float(np.mean(task.loss(task.fn(variables, BATCH["image"]), BATCH)))
    BATCH = next(task.data.batches("train", 128))
    assert loss(during.variables) < loss(before.variables)


def test_the_last_density_is_reached_where_the_ramp_ends_and_counts_are_exact():
    task = learnable()
    recipe = dpf(Budget(density=0.3), None, LONG, every=7, last=0.0, scope="layer")
    learner = recipe[2].learner(own.Pruned(task.init(own.KEY), None), task, own.KEY)
    state, densities = learner.init(), []
    for _, batch in zip(range(learner.steps), learner.batches(0)):
        state, _ = learner.step(state, batch)
        masks = Net(task).leaves(task.merge(state.opt_state.masks, {}))
        densities.append(sum(int(m.sum()) for m in masks.values()) / 712)
    assert densities[5] == 1.0
    assert all(np.diff(densities) <= 1e-9)
    end = round(2 / 3 * learner.steps)
    assert densities[end] == densities[-1]
    assert densities[-1] == pytest.approx(0.3, abs=0.002)
    zeros = [np.mean(np.asarray(leaf) == 0) for leaf in Net(task).leaves(
        learner.variables(state)
    ).values() if leaf.shape[-1:] != leaf.shape]  # fmt: skip
    np.testing.assert_allclose(zeros, 0.7, atol=0.02)


def test_units_of_a_residual_net_with_norms_meet_a_budget_with_multiples():
    task = toy_task()
    train = Train(4, 0.05, 16, name="finetune")
    budget = Budget(macs=0.5, multiple_of=4)
    pruned = own.run(dpf(budget, None, train, per="unit", scope="layer"), task)
    assert kept(task, pruned.masks, budget) <= 0.5
    assert all(mask.sum() % 4 == 0 for mask in pruned.masks.values())


def test_what_cannot_be_is_refused():
    for options, says in (
        ({"stop": 1.0}, "stop is in"),
        ({"ramp": 0.9}, r"ramp in \[0, stop\]"),
        ({"every": 0}, "every=0"),
        ({"per": "filter"}, "per='weight' or 'unit'"),
        ({"scope": "all"}, "scope='layer' or 'global'"),
        ({"last": 2.0}, "last=2.0"),
        ({"per": "unit", "last": 0.5}, "they are of single"),
        ({"order": 3}, "order=3"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            dpf(Budget(density=0.3), None, LONG, **options)
    task, drawn = learnable(), []
    with pytest.raises(errors.BudgetError, match=r"first=0\.0 and last=1\.0"):
        own.run(dpf(Budget(density=0.05), None, LONG), own.watched(task, drawn))
    assert not drawn
