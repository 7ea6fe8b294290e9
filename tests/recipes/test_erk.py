"""Sparse from the start: random masks of Erdos-Renyi densities, and training that obeys them."""

import dataclasses

import jax
import numpy as np
import pytest

from jprune import errors, recipes, stages
from jprune.allocate import erdos_renyi_densities
from jprune.base import Budget, Pruned
from jprune.recipes.erk import erk
from jprune.stages.frame import fractions
from jprune.train.net import Net
from tests.contracts.own import by_path
from tests.toys import drawn, toy_task

KEY = jax.random.key(2)
SHORT = stages.Train(12, 0.1, 16)


def densities(pruned, task):
    masks = by_path(pruned.masks)
    return {path: masks[path].mean() for path in Net(task).groups.layers}


def test_a_sparse_net_is_trained_from_its_start_under_masks_that_stay():
    task = toy_task("lenet300")
    start = Pruned(drawn(task), None)
    pruned, records = recipes.run(erk(Budget(density=0.1), SHORT)[3:], start, task, KEY)
    layers = Net(task).groups.layers
    wanted = dict(zip(layers, erdos_renyi_densities([*layers.values()], 0.1)))
    assert densities(pruned, task) == pytest.approx(wanted, abs=1e-3)
    assert wanted["params/fc2/kernel"] < 0.1 < wanted["params/fc1/kernel"] < 1
    assert wanted["params/fc3/kernel"] == 1
    for path, mask in by_path(pruned.masks).items():
        assert not by_path(pruned.variables)[path][~mask].any()
    metrics = {record["stage"]: record["metrics"] for record in records}
    # Sparse from the start, it learns all the same.
    assert metrics["sparse"]["loss"] < 0.5 * metrics["before_finetune"]["loss"]
    assert metrics["random_masks"]["density"] == pytest.approx(0.1, abs=1e-4)


def test_a_budget_in_macs_is_met_and_other_keys_draw_other_masks():
    task = toy_task()
    stage = stages.RandomMasks(Budget(macs=0.3))
    one, two = (stage(Pruned(drawn(task), None), task, jax.random.key(n))[0] for n in (0, 1))
    for pruned in (one, two):
        assert 0.29 < fractions(task, pruned.masks)["macs"] <= 0.3 + 1e-6
    assert densities(one, task) == densities(two, task)
    same = [np.array_equal(a, b) for a, b in zip(*(by_path(p.masks).values() for p in (one, two)))]
    assert not all(same)


def test_densities_by_name_and_floors():
    task, start = toy_task(), Pruned(drawn(toy_task()), None)
    run = lambda how, **budget: stages.RandomMasks(Budget(density=0.3, **budget), how)(
        start, task, KEY
    )[0]
    assert max(abs(d - 0.3) for d in densities(run("uniform"), task).values()) < 0.02
    er, erk = densities(run("er"), task), densities(run("erk"), task)
    assert er["params/fc/kernel"] != pytest.approx(erk["params/fc/kernel"], abs=0.01)
    group = Net(task).groups.names[0]
    whole = run("erk", floors={group: Net(task).groups.sizes[group]})
    assert by_path(whole.masks).keys() < by_path(run("erk").masks).keys()


def test_the_sparse_net_may_train_longer():
    *_, sparse = erk(Budget(density=0.1), SHORT, times=5)
    assert (sparse.name, sparse.epochs) == ("sparse", 60)
    assert dataclasses.replace(sparse, name="train", epochs=12) == SHORT


def test_what_cannot_be_is_refused():
    with pytest.raises(errors.ArgumentError, match="write one of erk, er, uniform"):
        erk(Budget(density=0.5), SHORT, densities="erc")
    with pytest.raises(errors.ArgumentError, match="above 0"):
        erk(Budget(density=0.5), SHORT, times=0)
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        erk(Budget(density=0.5), None)
