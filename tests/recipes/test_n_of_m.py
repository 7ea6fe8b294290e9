"""N:M as a recipe: patterns along inputs in every layout, budgets, from a start and by size."""

import jax
import numpy as np
import pytest

from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes.n_of_m import n_of_m
from jprune.stages.frame import fractions
from jprune.stages.n_of_m import Pattern, PruneNOfM, RefineNOfM
from jprune.train.net import Net
from tests.contracts import own
from tests.contracts.own import by_path
from tests.toys import drawn, toy_task

KEY = jax.random.key(2)
SHORT = stages.Train(8, 0.1, 16, name="finetune")


def of_sets(groups, path, array, m=4):
    """[sets, m]: consecutive inputs of every output and tap."""
    axis = groups.layers[path].inputs[0]
    return np.moveaxis(np.asarray(array), axis, -1).reshape(-1, m)


def test_the_net_is_trained_from_its_start_and_every_four_inputs_keep_two():
    task = toy_task("lenet300")
    recipe = n_of_m(Budget(density=0.5), SHORT, SHORT)[3:]  # without the dense net
    pruned, records = recipes.run(recipe, Pruned(drawn(task), None), task, KEY)
    groups, masks = Net(task).groups, by_path(pruned.masks)
    assert {*masks} == {*groups.layers}
    for path, mask in masks.items():
        assert (of_sets(groups, path, mask).sum(axis=1) == 2).all()
        assert not by_path(pruned.variables)[path][~mask].any()
    metrics = {record["stage"]: record["metrics"] for record in records}
    assert metrics["refine"]["density"] == 0.5
    assert metrics["refine"]["loss"] < 0.7


def test_by_size_the_two_largest_of_every_four_inputs_stay():
    task = toy_task()
    pruned, (line,) = PruneNOfM(Pattern(Budget(density=0.5)))(Pruned(drawn(task), None), task, KEY)
    groups, masks, before = Net(task).groups, by_path(pruned.masks), by_path(drawn(task))
    # The first layer sees one channel: no pattern, no mask.
    assert {*masks} == {*groups.layers} - {"params/conv1/kernel"}
    for path, mask in masks.items():
        sizes, kept = of_sets(groups, path, abs(before[path])), of_sets(groups, path, mask)
        assert (kept.sum(axis=1) == 2).all()
        np.testing.assert_array_equal(kept, sizes >= np.sort(sizes, axis=1)[:, [2]])
    assert (line["metrics"]["n"], line["metrics"]["m"]) == (2, 4)


def test_channels_first_have_the_pattern_of_channels_last():
    """Kernels HWIO and OIHW: the same weights, the same masks."""
    masks = []
    for first in (False, True):
        task = own.channels_first(first)
        stage = PruneNOfM(Pattern(Budget(density=0.5), m=2))
        pruned, _ = stage(Pruned(task.init(KEY), None), task, KEY)
        masks.append(by_path(pruned.masks))
    for path, last in masks[0].items():
        turned = masks[1][path]
        back = turned.transpose(2, 3, 1, 0) if turned.ndim > 2 else turned.T
        np.testing.assert_array_equal(back, last)


@pytest.mark.parametrize(
    ("budget", "m", "n"),
    [({"density": 0.5}, 4, 2), ({"density": 0.6}, 4, 2), ({"density": 0.25}, 4, 1),
     ({"density": 0.99}, 8, 7), ({"density": 1.0}, 4, 4)],
)  # fmt: skip
def test_n_is_what_the_budget_allows(budget, m, n):
    assert Pattern(Budget(**budget), m=m).kept(toy_task("lenet300")) == n


def test_macs_are_those_of_the_whole_net():
    task = toy_task()
    for goal in (0.9, 0.6, 0.45):
        stage = PruneNOfM(Pattern(Budget(macs=goal)))
        pruned, (line,) = stage(Pruned(drawn(task), None), task, KEY)
        assert fractions(task, pruned.masks)["macs"] <= goal + 1e-6
        n = int(line["metrics"]["n"])
        with pytest.raises(errors.BudgetError, match=f"by {n + 1} of 4"):
            Pattern(Budget(macs=goal), n=n + 1).kept(task)


def test_a_floor_leaves_a_group_whole():
    task = toy_task()
    name = "params/conv2/kernel"
    budget = Budget(density=0.5, floors={name: Net(task).groups.sizes[name]})
    assert name not in Pattern(budget).paths(task)


def test_what_cannot_be_is_refused_before_training():
    task = toy_task()
    by_size = {"how": "magnitude"}
    for how in (
        {"n": 5}, {"n": 0}, {"m": 0}, {"how": "size"}, {"begin": "old"}, {"strength": -1.0},
        {**by_size, "strength": 1.0}, {**by_size, "begin": "dense"},
    ):  # fmt: skip
        with pytest.raises(errors.ArgumentError):
            n_of_m(Budget(density=0.5), SHORT, SHORT, **how)
    with pytest.raises(errors.ArgumentError, match="begin=dense"):
        n_of_m(Budget(density=0.5), None, SHORT)
    with pytest.raises(errors.ArgumentError, match="multiple of m=5"):
        stages.check(n_of_m(Budget(density=0.5), SHORT, SHORT, m=5), task)
    with pytest.raises(errors.BudgetError, match="by 1 of 4"):
        stages.check(n_of_m(Budget(density=0.2), SHORT, SHORT), task)
    masked, _ = PruneNOfM(Pattern(Budget(density=0.5)))(Pruned(drawn(task), None), task, KEY)
    with pytest.raises(errors.ArgumentError, match="this one has masks"):
        RefineNOfM(SHORT, Pattern(Budget(density=0.5)))(masked, task, KEY)
