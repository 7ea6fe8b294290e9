"""Network trimming: which units go, in how many rounds, and which nets are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import allocate, criteria, errors, recipes, run_criterion, stages, train, zoo
from jprune.base import Budget, Pruned
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import CLASSES, SHAPE, drawn, toy_data, toy_task

FINE = recipes.Train(1, 0.01, 16, max_steps=2, name="finetune")
SHORT = {"batches": 3, "batch_size": 16}
KEY = jax.random.key(0)


def started(silent=()):
    """The residual net; units `silent` of its middle layer say nothing behind their ReLU."""
    task = toy_task()
    variables = drawn(task)
    bias = variables["params"]["norm2"]["bias"]
    # The others are shifted up, so that none of them is silent by chance.
    variables["params"]["norm2"]["bias"] = (bias + 1).at[jnp.array(silent, int)].set(-1e3)
    return task, Pruned(variables, None)


def rounds(recipe, task, start):
    """Masks behind every round, and the share of units that were not 0 before it."""
    pruned, after, shares = start, [], []
    for number, stage in enumerate(recipe):
        key = jax.random.fold_in(KEY, number)
        if isinstance(stage, stages.Prune):
            shares.append(stage.scores(pruned.variables, task, key))
        pruned, _ = stage(pruned, task, key)
        if isinstance(stage, stages.Prune):
            after.append(pruned.masks)
    return after, shares


def test_rounds_prune_by_the_papers_rule_and_the_last_one_meets_the_budget():
    task, start = started(silent=(3, 7))
    budget = Budget(density=0.5)
    recipe = recipes.find("apoz")(budget, None, FINE, rounds=2, **SHORT)
    (first, last), (share, later) = rounds(recipe, task, start)
    for name, score in share.items():
        zeros = 1 - np.asarray(score, float)
        np.testing.assert_array_equal(first[name], zeros <= zeros.mean() + zeros.std())
    assert not first[task_group(task, "conv2")][[3, 7]].any()
    assert sum(int(mask.sum()) for mask in last.values()) == 10  # of 8 + 12
    for name, mask in last.items():
        assert not (mask & ~first[name]).any()
        gone = first[name] & ~mask
        if gone.any():
            assert np.max(later[name][gone]) <= np.min(later[name][mask])


def task_group(task, layer):
    return next(name for name in Net(task).groups.names if layer in name)


def test_layers_go_one_at_a_time_where_that_is_asked_for():
    task, start = started(silent=(3, 7))
    recipe = recipes.find("apoz")(
        Budget(density=0.5), None, FINE, rounds=2, at_once=1, stream="whole", **SHORT
    )
    (first, last), (share, _) = rounds(recipe, task, start)
    stream, middle = task_group(task, "conv1"), task_group(task, "conv2")
    assert set(share) == {middle}
    assert first[stream].all()
    assert last[stream].all()
    assert last[middle].sum() == 6


def test_the_rule_of_the_budget_keeps_the_most_active_units():
    task, start = started()
    recipe = recipes.find("apoz")(Budget(density=0.5), None, FINE, rule="budget", rounds=1, **SHORT)
    (masks,), (share,) = rounds(recipe, task, start)
    for name, mask in masks.items():
        assert mask.sum() == mask.size / 2
        assert np.min(share[name][mask]) >= np.max(share[name][~mask])


def test_silent_units_go_without_a_trace_and_before_all_others():
    """What the method is for: outputs do not change while silent units are removed."""
    task, start = started(silent=(1, 4, 5))
    criterion = stages.ByActivations(criteria.zeros)
    prune = lambda density: stages.Prune(criterion, allocate.uniform, Budget(density=density))
    stream = task_group(task, "conv1")
    keep = Budget(density=0.75, floors={stream: 8})
    pruned, _ = dataclasses.replace(prune(0.75), budget=keep)(start, task, KEY)
    assert np.flatnonzero(~pruned.masks[task_group(task, "conv2")]).tolist() == [1, 4, 5]
    x = next(task.data.batches("test", 8))["image"]
    fn, small = Net(task).slim(pruned)
    np.testing.assert_allclose(fn(small, x), task.fn(start.variables, x), rtol=1e-5, atol=1e-5)
    share = run_criterion(criterion(task, Net(task).groups, KEY), start.variables, [{"image": x}])
    assert (np.asarray(share[task_group(task, "conv2")]) == 0).sum() == 3


def leaky():
    """Two dense layers with a function between that is never 0."""
    sizes = {"first": (64, 16), "second": (16, CLASSES)}
    init = lambda key: {"params": {n: jnp.ones(s) for n, s in sizes.items()}, "stats": {}}

    def fn(v, x):
        hidden = jax.nn.leaky_relu(x.reshape(len(x), -1) @ v["params"]["first"])
        return hidden @ v["params"]["second"]

    example = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    return zoo.Net("leaky", init, fn, lambda v, x, key: (fn(v, x), v["stats"]), example)


REFUSED = {
    "leaky": (leaky, "no group of leaky can be scored by zeros"),
    "ReLUs behind the dense layer alone": (
        lambda: zoo.build("lenet5", own.CLASSES, (28, 28, 1)),
        "cannot be met",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nets_without_zeros_are_refused_before_training(name):
    make, says = REFUSED[name]
    net = make()
    data = (
        toy_data()
        if name == "leaky"
        else own.data_of(np.zeros((32, 28, 28, 1), np.float32), np.zeros(32, np.int32))
    )
    task, seen = train.task(net, data), []
    recipe = recipes.find("apoz")(Budget(macs=0.5), FINE, FINE, **SHORT)
    with pytest.raises(errors.JpruneError, match=says):
        own.run(recipe, own.watched(task, seen, most=0))
    assert not seen


def test_options_out_of_range_are_refused():
    for options, says in (
        ({"rule": "median"}, "'std' or 'budget'"),
        ({"rounds": 0}, "rounds=0"),
        ({"q": -1.0}, "q is 0 or more"),
        ({"at_once": 0}, "None or 1 or more"),
        ({"below": -0.1}, "below=-0.1"),
        ({"stream": "sampler"}, "joint, whole"),
        ({"batches": 0}, "batches=0"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            recipes.find("apoz")(Budget(density=0.5), None, FINE, **options)
