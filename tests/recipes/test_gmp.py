"""Gradual magnitude pruning: the ramp is followed, what is masked is gone, budgets are met."""

import numpy as np
import pytest

from jprune import errors, schedules, stages
from jprune.base import Budget, Pruned
from jprune.recipes.gmp import gmp
from jprune.stages import Goal, PruneGradually, Settle, Train
from jprune.train.net import Net
from tests.contracts import own
from tests.stages.test_time_to_act import learnable

LONG = Train(10, 0.05, 32, weight_decay=1e-3, name="finetune")
SIZES = {"params/a/kernel": 160, "params/b/kernel": 480, "params/c/kernel": 72}


def test_every_layer_follows_the_ramp_and_what_is_masked_never_comes_back():
    """Checks B10, on a net: the fractions removed are those of the cubic rule at every cut."""
    task = learnable()
    stage = PruneGradually(LONG, Goal(Budget(density=0.1)), every=4, begin=0.2, end=0.8)
    learner = stage.learner(Pruned(task.init(own.KEY), None), task, own.KEY)
    ramp, gone = schedules.cubic(0.1, 8, 32), {}
    state = learner.init()
    for number, batch in zip(range(learner.steps), learner.batches(0)):
        state, _ = learner.step(state, batch)
        density = float(ramp(number - number % 4))
        for path, weight in Net(task).leaves(learner.variables(state)).items():
            if path not in SIZES:
                continue
            zero = np.asarray(weight) == 0
            # Counts are rounded, and the last density is that of the rounded counts.
            assert abs(zero.sum() - (1 - density) * SIZES[path]) <= 1
            assert not (gone.get(path, zero) & ~zero).any()
            gone[path] = zero
    _, (line,) = Settle(stage.goal)(learner.finish(state), task, own.KEY)
    assert line["metrics"]["settled"] == 0.0
    assert line["metrics"]["density"] == pytest.approx(0.1, abs=1e-3)


def test_the_first_layer_stays_dense_and_the_last_keeps_a_fifth_while_the_sum_meets_the_budget():
    """As Gale, Elsen and Hooker have it."""
    task, goal = learnable(), Goal(Budget(density=0.4), first=1.0, last=0.5)
    counts = goal.counts(Net(task))
    assert counts["params/a/kernel"] == 160
    assert counts["params/c/kernel"] == 36
    assert sum(counts.values()) == pytest.approx(0.4 * 712, abs=1)
    pruned = own.run(gmp(Budget(density=0.4), None, LONG, first=1.0, last=0.5), task)
    kept = {path: int(np.sum(m)) for path, m in Net(task).leaves(pruned.masks).items()}
    assert kept == counts


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_units_go_at_all_places_and_a_net_that_was_pruned_before_stays_so(scope):
    task = learnable()
    before = {"params/a/kernel": np.arange(20) > 3, "params/b/kernel": np.ones(24, bool)}
    start = Pruned(task.init(own.KEY), before)
    recipe = gmp(Budget(macs=0.5), None, LONG, per="unit", scope=scope)
    pruned, records = stages.run(recipe, start, task, own.KEY)
    assert not pruned.masks["params/a/kernel"][:4].any()
    (line,) = [record for record in records if record["stage"] == "prune"]
    assert 0.2 < line["metrics"]["macs"] <= 0.5
    gone = ~np.asarray(pruned.masks["params/b/kernel"])
    params = pruned.variables["params"]
    assert gone.any()
    for array in (
        params["b"]["kernel"][:, gone],
        params["b"]["bias"][gone],
        params["c"]["kernel"][gone],
    ):
        assert not np.any(array)


def test_what_cannot_be_is_refused():
    for options, says in (
        ({"stop": 1.0}, "stop is in"),
        ({"begin": 0.8}, r"begin in \[0, stop\)"),
        ({"every": 0}, "every=0"),
        ({"first": 2.0}, "first=2.0"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            gmp(Budget(density=0.3), None, LONG, **options)
    task, drawn = learnable(), []
    nan = task.init(own.KEY)
    nan["params"]["a"]["kernel"] = nan["params"]["a"]["kernel"] * np.nan
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        stages.run(
            gmp(Budget(density=0.3), None, LONG),
            Pruned(nan, None),
            own.watched(task, drawn),
            own.KEY,
        )
    assert not drawn
