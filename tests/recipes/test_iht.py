"""Iterative hard thresholding as a recipe: supports change, and every layer ends k-sparse."""

import numpy as np
import pytest

from jprune import errors, stages
from jprune.base import Budget
from jprune.recipes.iht import iht
from jprune.stages import Goal, Train
from jprune.train.net import Net
from tests.contracts import own
from tests.stages.test_time_to_act import learnable

LONG = Train(20, 0.2, 32, schedule="constant", weight_decay=5e-4, name="finetune")


def test_it_ends_with_exactly_k_weights_a_layer_and_another_support():
    task, budget = learnable(), Budget(density=0.25)
    before, during = own.up_to(iht(budget, None, LONG, sparse=2.0, dense=0.5), task, "threshold")
    ((_, line),) = [
        (after, line) for after, (line,) in [stages.Settle(Goal(budget))(during, task, own.KEY)]
    ]
    assert line["metrics"]["settled"] == 0.0
    assert line["metrics"]["density"] == pytest.approx(0.25, abs=1e-3)
    at_once = Net(task).leaves(Goal(budget).settled(task, before.variables))
    changed = 0
    for path, mask in at_once.items():
        weight = np.asarray(Net(task).leaves(during.variables)[path])
        assert np.count_nonzero(weight) == mask.sum()
        changed += int(((weight != 0) & ~mask).sum())
    assert changed > 5


def test_phases_follow_the_length_of_the_training():
    task = learnable()
    phases = lambda epochs, **given: stages.HardThreshold(
        Train(epochs, 0.1, 32), Goal(Budget(density=0.5)), **given
    ).phases(task)
    assert phases(20) == (4, 1)  # an epoch is four steps
    assert phases(200) == (4, 1)
    assert phases(2) == (1, 1)
    assert phases(20, sparse=2.0, dense=0.75) == (8, 3)


def test_a_budget_in_macs_is_met_and_what_cannot_be_is_refused():
    task = learnable()
    pruned = own.run(iht(Budget(macs=0.3), None, LONG, first=1.0), task)
    assert np.all(Net(task).leaves(pruned.masks)["params/a/kernel"])
    for options, says in (
        ({"sparse": 0.0}, "numbers of epochs above 0"),
        ({"sparse": 11.0}, "do not fit"),
        ({"first": -1.0}, "first=-1.0"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            stages.check(iht(Budget(density=0.3), None, LONG, **options), task)
