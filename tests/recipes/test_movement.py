"""Movement pruning as a recipe: a density that falls, budgets, both forms."""

import dataclasses

import jax
import numpy as np
import pytest

from jprune import errors, masks_of, recipes, stages
from jprune.base import Budget, Pruned
from jprune.masks import density
from jprune.recipes.movement import movement
from jprune.stages.frame import fractions
from jprune.stages.movement import Movement
from jprune.train.net import Net
from tests.contracts.own import by_path
from tests.toys import drawn, toy_task

KEY = jax.random.key(2)
SHORT = stages.Train(10, 0.05, 16, name="finetune")
TASK = toy_task("lenet300")
START = Pruned(drawn(TASK), None)


def test_the_density_falls_by_a_cubic_and_masks_are_not_those_of_size():
    stage = Movement(dataclasses.replace(SHORT, max_steps=20), Budget(density=0.2))
    learner = stage.learner(START, TASK, KEY)
    state, kept = learner.init(), []
    for _, batch in zip(range(20), learner.batches(0)):
        kept.append(density(masks_of(state.opt_state)))
        state, _ = learner.step(state, batch)
    ramp = lambda t: 0.2 + 0.8 * (1 - np.clip((t - 2) / 18, 0, 1)) ** 3
    np.testing.assert_allclose(kept, [ramp(t) for t in range(20)], atol=2e-3)
    pruned = learner.finish(state)
    by_size = {path: abs(by_path(START.variables)[path]) for path in by_path(pruned.masks)}
    for path, mask in by_path(pruned.masks).items():
        assert mask.mean() == pytest.approx(0.2, abs=1e-3)
        assert not by_path(pruned.variables)[path][~mask].any()
        best = by_size[path] > np.quantile(by_size[path], 0.8)
        assert (mask & best).sum() < 0.8 * mask.sum()


@pytest.mark.parametrize(
    "how", [{}, {"scope": "global"}, {"form": "soft"}, {"form": "soft", "scope": "global"}]
)
def test_a_budget_is_met_in_both_forms_and_scopes(how):
    budget = Budget(params=0.3)
    stage = Movement(dataclasses.replace(SHORT, max_steps=8), budget, **how)
    pruned, (line,) = stage(START, TASK, KEY)
    assert 0.29 < fractions(TASK, pruned.masks)["params"] <= 0.3 + 1e-6
    densities = [mask.mean() for mask in by_path(pruned.masks).values()]
    assert (np.ptp(densities) < 1e-2) == (how.get("scope") != "global")
    assert line["metrics"]["params"] <= 0.3 + 1e-6


def test_a_penalty_masks_more_softly():
    kept = {}
    for strength in (0.0, 2e4):
        stage = Movement(
            dataclasses.replace(SHORT, max_steps=25), Budget(density=0.2), "soft", rate=0.1,
            warmup=0.0, strength=strength,
        )  # fmt: skip
        learner = stage.learner(START, TASK, KEY)
        state = learner.init()
        for _, batch in zip(range(25), learner.batches(0)):
            state, _ = learner.step(state, batch)
        kept[strength] = density(masks_of(state.opt_state))
    assert kept[2e4] < 0.5 * kept[0.0]


def test_the_recipe_trains_on_under_the_last_masks():
    pruned, records = recipes.run(movement(Budget(density=0.2), None, SHORT), START, TASK, KEY)
    metrics = {record["stage"]: record["metrics"] for record in records}
    assert metrics["finetune"]["loss"] < metrics["before_finetune"]["loss"]
    assert metrics["movement"]["density"] == pytest.approx(0.2, abs=1e-3)
    for path, mask in by_path(pruned.masks).items():
        assert not by_path(pruned.variables)[path][~mask].any()


def test_what_cannot_be_is_refused_before_training():
    for how in ({"form": "firm"}, {"scope": "net"}, {"score_rate": 0.0}, {"warmup": 1.0},
                {"cooldown": 0.0}, {"threshold": 0.5}, {"strength": -1.0}):  # fmt: skip
        with pytest.raises(errors.ArgumentError):
            movement(Budget(density=0.5), None, SHORT, **how)
    masks = Net(TASK).prunable(None, Budget(density=1.0))
    with pytest.raises(errors.ArgumentError, match="this one has masks"):
        Movement(SHORT, Budget(density=0.5))(START._replace(masks=masks), TASK, KEY)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, START.variables)
    with pytest.raises(errors.ArgumentError, match="NaN"):
        Movement(SHORT, Budget(density=0.5))(START._replace(variables=broken), TASK, KEY)
