"""entropy, hrank and chip: what goes, layer by layer, and which options are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import allocate, criteria, errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes.three_step import three_step
from jprune.train.net import Net
from tests.toys import drawn, toy_task

FINE = recipes.Train(1, 0.01, 16, max_steps=2, name="finetune")
SHORT = {"batches": 2, "batch_size": 16}
KEY = jax.random.key(0)
METHODS = {
    "entropy": criteria.entropy,
    "hrank": criteria.map_rank,
    "chip": criteria.independence,
}


def group_of(task, layer):
    return next(name for name in Net(task).groups.names if layer in name)


def planted():
    """The residual net; of its middle layer's units some are dull, to each method in its way.

    Units 0 and 1 are the same (less independent), 2 says the same of every image and position:
    an entropy of 0, maps of rank 1.
    """
    task = toy_task()
    variables = drawn(task)
    params = variables["params"]
    kernel = params["conv2"]["kernel"]
    kernel = kernel.at[..., 1].set(kernel[..., 0]).at[..., 2].set(0)
    params["conv2"]["kernel"] = kernel
    params["norm2"]["bias"] = (params["norm2"]["bias"] + 1).at[2].set(0.5)
    return task, Pruned(variables, None)


def scores(method, task, pruned):
    prune = next(
        stage
        for stage in recipes.find(method)(Budget(density=0.5), None, FINE, **SHORT)
        if isinstance(stage, stages.Prune)
    )
    return {n: np.asarray(s) for n, s in prune.scores(pruned.variables, task, KEY).items()}


@pytest.mark.parametrize("method", METHODS)
def test_dull_units_are_told(method):
    task, start = planted()
    score = scores(method, task, start)[group_of(task, "conv2")]
    if method == "chip":
        # Beside its copy a unit is worth less than beside one that says the same of all images.
        alone = start.variables["params"]["conv2"]["kernel"].at[..., 1].set(0)
        params = {**start.variables["params"], "conv2": {"kernel": alone}}
        without = scores(method, task, Pruned({**start.variables, "params": params}, None))
        assert score[0] == pytest.approx(score[1], rel=1e-3)
        assert score[0] < 0.8 * without[group_of(task, "conv2")][0]
    else:
        assert score[0] == score[1]
        assert score[2] == score.min()
        assert score[2] == (0 if method == "entropy" else 1)
        assert score[2] < np.median(score[3:])


def test_a_layer_at_a_time_meets_the_budget_in_the_end():
    """Round after round prunes its own layers, by scores of the net as it is then."""
    task, start = planted()
    recipe = recipes.find("entropy")(Budget(macs=0.5), None, FINE, rounds=3, **SHORT)
    pruned, widths = start, []
    for number, stage in enumerate(recipe):
        pruned, records = stage(pruned, task, jax.random.fold_in(KEY, number))
        if isinstance(stage, stages.Prune):
            widths.append([int(np.sum(mask)) for mask in pruned.masks.values()])
            kept = records[0]["metrics"]["macs"]
    # Three rounds for two groups: floor(3 n / 2) is 0 and 1, and the last one changes nothing.
    assert widths[0][0] < 8
    assert widths[0][1] == 12
    assert widths[1][0] == widths[0][0]
    assert widths[1][1] < 12
    assert widths[2] == widths[1]
    # Both layers keep the share that they keep where all go at once.
    (at_once,) = (
        stage
        for stage in recipes.find("entropy")(Budget(macs=0.5), None, FINE, rounds=1, **SHORT)
        if isinstance(stage, stages.Prune)
    )
    whole = at_once(start, task, KEY)[0].masks
    assert np.abs(np.array(widths[2]) - [int(mask.sum()) for mask in whole.values()]).max() <= 1
    assert 0.4 < kept <= 0.5 + 1e-9


def test_streams_stay_whole_where_that_is_asked_for():
    task, start = planted()
    recipe = recipes.find("chip")(Budget(macs=0.6), None, FINE, stream="whole", **SHORT)
    prune = next(stage for stage in recipe if isinstance(stage, stages.Prune))
    pruned, (record,) = prune(start, task, KEY)
    assert pruned.masks[group_of(task, "conv1")].all()
    assert 0.4 < record["metrics"]["macs"] <= 0.6
    # Without the stream's units so few MACs cannot be reached: refused before anything is trained.
    impossible = recipes.find("chip")(Budget(macs=0.05), None, FINE, stream="whole", **SHORT)
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        stages.check(impossible, task)


@pytest.mark.parametrize("statistic", [criteria.zeros, *METHODS.values()])
def test_all_are_criteria_of_the_classic_recipe(statistic):
    task, start = planted()
    criterion = stages.ByActivations(statistic)
    recipe = three_step(Budget(density=0.5), None, FINE, criterion=criterion)
    (prune,) = (stage for stage in recipe if isinstance(stage, stages.Prune))
    score = prune.scores(start.variables, task, KEY)
    masks = prune(start, task, KEY)[0].masks
    right = allocate.uniform({n: np.asarray(s, float) for n, s in score.items()}, prune.budget)
    jax.tree.map(np.testing.assert_array_equal, dict(masks), dict(right))


def test_single_weights_are_refused_before_training():
    criterion = stages.ByActivations(criteria.map_rank)
    recipe = three_step(Budget(density=0.5), None, FINE, criterion=criterion, per="weight")
    with pytest.raises(errors.ArgumentError, match="scores units; write per='unit'"):
        stages.check(recipe, toy_task())


def test_options_out_of_range_are_refused():
    for method, options, says in (
        ("entropy", {"bins": 0}, "bins=0"),
        ("entropy", {"rounds": 0}, "rounds=0"),
        ("hrank", {"tolerance": 1.5}, "tolerance=1.5"),
        ("hrank", {"batch_size": 0}, "batch_size=0"),
        ("chip", {"stream": "sampler"}, "joint, whole"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            recipes.find(method)(Budget(density=0.5), None, FINE, **options)


def test_activations_that_are_not_numbers_are_refused():
    task, start = planted()
    broken = jax.tree.map(lambda leaf: leaf, start.variables)
    broken["params"]["conv1"]["kernel"] = broken["params"]["conv1"]["kernel"].at[0].set(jnp.nan)
    prune = stages.Prune(
        stages.ByActivations(criteria.entropy), allocate.uniform, Budget(density=0.5), 1, 16
    )
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        prune(Pruned(broken, None), task, KEY)
