"""Soft pruning as recipes: units regrow, the cut of what is 0 costs little, criteria are chosen."""

import numpy as np
import pytest

from jprune import allocate, errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes.mfp import mfp
from jprune.stages import Train
from jprune.train.net import Net
from tests.contracts import own
from tests.stages.test_time_to_act import learnable
from tests.toys import drawn, toy_task

LONG = Train(12, 0.03, 16, name="finetune")
BUDGET = Budget(macs=0.5)


def zeros_of(task, variables):
    """{group: units whose kernels are all 0}."""
    kernels = Net(task).leaves(variables)
    gone = {}
    for name, places in Net(task).groups.places.items():
        made = [p for p in places if "kernel" in p.roles]
        dead = [~np.moveaxis(np.asarray(kernels[p.leaf]), p.axis, 0).reshape(
            np.shape(kernels[p.leaf])[p.axis], -1).any(1) for p in made]  # fmt: skip
        gone[name] = np.all(dead, axis=0)
    return gone


@pytest.mark.parametrize("method", ["sfp", "asfp"])
def test_units_are_set_to_0_regrow_and_the_cut_takes_those_that_are_0(method):
    task = toy_task()
    recipe = recipes.find(method)(BUDGET, None, LONG)
    soft = next(stage for stage in recipe if stage.name == "soft")
    learner = soft.learner(Pruned(drawn(task), None), task, own.KEY)
    state, counts = learner.init(), []
    for _, batch in zip(range(learner.steps), learner.batches(0)):
        state, _ = learner.step(state, batch)
        counts.append(
            sum(
                int(z.sum())
                for z in zeros_of(task, state.params and learner.variables(state)).values()
            )
        )
    pruning = [n for n in counts if n]
    assert 0 in counts[counts.index(pruning[0]) :]  # they came back
    assert counts[-1] == max(pruning) > 0
    assert (pruning[0] < pruning[-1]) == (method == "asfp")
    before = learner.finish(state)
    dead = zeros_of(task, before.variables)
    after, (line,) = stages.Settle(soft.goal)(before, task, own.KEY)
    for name, mask in after.masks.items():
        np.testing.assert_array_equal(mask, ~dead[name])
    assert line["metrics"]["settled"] == 0
    assert allocate.price_of(after.masks, BUDGET, Net(task).cost)(after.masks) <= 0.5


def test_what_a_unit_of_zeros_still_says_is_folded_into_its_readers():
    """Dense layers with biases: the outputs do not change when such units go."""
    task = learnable()
    params = task.init(own.KEY)["params"]
    for name, gone in (("a", slice(0, 8)), ("b", slice(3, 12))):
        params[name]["kernel"] = params[name]["kernel"].at[:, gone].set(0)
        params[name]["bias"] = params[name]["bias"].at[gone].set(0.7)
    variables = {"params": params, "stats": {}}
    goal = stages.Goal(Budget(density=0.61), "unit", order=2)
    x = np.asarray(next(task.data.batches("test", 64))["image"])
    after, _ = stages.Settle(goal)(Pruned(variables, None), task, own.KEY)
    assert {name: int(m.sum()) for name, m in after.masks.items()} == {
        "params/a/kernel": 12, "params/b/kernel": 15}  # fmt: skip
    np.testing.assert_allclose(
        task.fn(after.variables, x), task.fn(variables, x), rtol=1e-4, atol=1e-5
    )


def test_the_net_chooses_at_least_two_criteria_and_each_is_logged():
    task = toy_task()
    recipe = mfp(BUDGET, None, LONG, criteria="l1:l2:distance:manhattan:cosine")
    soft = next(stage for stage in recipe if stage.name == "soft")
    after, (line,) = soft(Pruned(drawn(task), None), task, own.KEY)
    took = {n.removeprefix("took_"): v for n, v in line["metrics"].items() if n.startswith("took")}
    assert {*took} == {"l1", "l2", "distance", "manhattan", "cosine"}
    assert sum(took.values()) == 12  # once an epoch
    assert sum(times > 0 for times in took.values()) >= 2
    settled, _ = stages.Settle(soft.goal)(after, task, own.KEY)
    dead = zeros_of(task, after.variables)
    for name, mask in settled.masks.items():
        np.testing.assert_array_equal(mask, ~dead[name])


def test_by_the_sum_of_sizes_l1_is_chosen_since_it_removes_the_least():
    task = toy_task()
    recipe = mfp(BUDGET, None, Train(3, 0.03, 16), criteria="cosine:distance:l1", attribute="mass")
    soft = next(stage for stage in recipe if stage.name == "soft")
    _, (line,) = soft(Pruned(drawn(task), None), task, own.KEY)
    assert line["metrics"]["took_l1"] >= line["metrics"]["took_cosine"]
    assert line["metrics"]["took_l1"] > 0


def test_a_part_of_the_epochs_can_be_fine_tuning():
    recipe = recipes.find("sfp")(BUDGET, None, LONG, stop=0.75)
    assert [stage.epochs for stage in recipe if stage.name == "finetune"] == [3.0]
    pruned = own.run(recipe, toy_task())
    zero = [np.asarray(leaf) == 0 for leaf in Net(toy_task()).leaves(pruned.variables).values()]
    assert any(mask.any() for mask in zero)


def test_what_cannot_be_is_refused():
    for method, options, says in (
        ("sfp", {"stop": 0.0}, "stop=0.0"),
        ("sfp", {"ramp": "linear"}, "constant, asymptotic"),
        ("asfp", {"every": 0.0}, "a number of epochs above 0"),
        ("sfp", {"score": "l3"}, "score='l3'"),
        ("mfp", {"criteria": "l1:l3"}, "criteria='l1:l3'"),
        ("mfp", {"criteria": "l1:l1"}, "each once"),
        ("mfp", {"attribute": "accuracy"}, "loss, mass"),
        ("mfp", {"choose": "best"}, "nearest, lowest"),
        ("mfp", {"choose": "lowest", "attribute": "mass"}, "lowest loss"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            recipes.find(method)(BUDGET, None, LONG, **options)
