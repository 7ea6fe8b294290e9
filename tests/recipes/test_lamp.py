"""LAMP as a recipe: rounds, budgets, and a layer that magnitude would empty."""

import jax
import numpy as np
import pytest

from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes.lamp import lamp
from jprune.stages.frame import fractions
from tests.contracts.own import by_path
from tests.toys import drawn, toy_task

KEY = jax.random.key(2)
SHORT = stages.Train(2, 0.05, 16, name="finetune")


def test_rounds_take_a_fifth_each_and_score_what_is_left():
    task = toy_task("lenet300")
    start = Pruned(drawn(task), None)
    prunings = [s for s in lamp(Budget(density=0.5), None, SHORT) if s.name == "prune"]
    assert [s.budget.density for s in prunings] == pytest.approx(
        [0.5 ** (n / 4) for n in range(1, 5)]
    )
    first, _ = prunings[0](start, task, KEY)
    second, _ = prunings[1](first, task, KEY)
    for path, mask in by_path(second.masks).items():
        before = by_path(first.masks)[path]
        assert not (mask & ~before).any()
        # By hand: the scores of what is left, one threshold for all.
    scores = {}
    for path, before in by_path(first.masks).items():
        squares = np.where(before, by_path(first.variables)[path].astype(float), 0).ravel() ** 2
        order = np.argsort(-squares, kind="stable")
        score = np.empty_like(squares)
        score[order] = squares[order] / np.cumsum(squares[order])
        scores[path] = np.where(before.ravel(), score, -1)
    count = sum(mask.sum() for mask in by_path(second.masks).values())
    threshold = np.sort(np.concatenate([*scores.values()]))[-count]
    for path, mask in by_path(second.masks).items():
        close = np.abs(scores[path] / threshold - 1) < 1e-5
        np.testing.assert_array_equal((scores[path] > threshold)[~close], mask.ravel()[~close])


def test_a_budget_in_macs_is_met_and_no_layer_is_emptied():
    task = toy_task()
    variables = drawn(task)
    kernel = variables["params"]["conv2"]
    kernel["kernel"] = kernel["kernel"] * 1e-3
    recipe = lamp(Budget(macs=0.1), None, SHORT, rounds=1)
    pruned, records = recipes.run(recipe, Pruned(variables, None), task, KEY)
    assert 0.095 < fractions(task, pruned.masks)["macs"] <= 0.1 + 1e-6
    assert by_path(pruned.masks)["params/conv2/kernel"].mean() > 0.02
    for path, mask in by_path(pruned.masks).items():
        assert not by_path(pruned.variables)[path][~mask].any()
    assert records[-1]["stage"] == "finetune"


def test_less_than_a_round_is_refused():
    with pytest.raises(errors.ArgumentError, match="rounds=0"):
        lamp(Budget(density=0.5), None, SHORT, rounds=0)
