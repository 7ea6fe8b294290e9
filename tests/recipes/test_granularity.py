"""Granularity: one option says what a group is; counts, densities of layers, bits, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import blocks, errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.granularity import granularity
from jprune.stages.grains import GRAINS, PruneGrains
from jprune.train.net import Net
from tests.toys import drawn, toy_task

KEY, HALF = jax.random.key(0), Budget(density=0.5)
SHORT = Train(1, 0.05, 16, max_steps=2, name="finetune")


@pytest.fixture(scope="module")
def task():
    return toy_task("tiny")


@pytest.fixture(scope="module")
def start(task):
    return Pruned(drawn(task), None)


def pruned_by(task, start, budget=HALF, **settings):
    after, (line,) = PruneGrains(budget, **settings)(start, task, KEY)
    return after, line["metrics"]


def weights_of(task, pruned):
    return Net(task).leaves(pruned.masks)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("density", [0.25, 0.5])
def test_every_layer_loses_exactly_its_share_of_groups_and_they_are_the_smallest(
    task, start, grain, density
):
    stage = PruneGrains(Budget(density=density), grain, lengths=(3, 1, 2, 2))
    made = stage.grains_of(task)
    after, (line,) = stage(start, task, KEY)
    masks = weights_of(task, after)
    assert {*masks} == {*made}
    sums = blocks.pool(made, jax.tree.map(jnp.abs, start.variables))
    for name, block in made.items():
        alive = blocks.pool(made, Net(task).tree({name: masks[name].astype(float)}))[name]
        sizes = blocks.pool(made, Net(task).tree({name: np.ones(masks[name].shape)}))[name]
        np.testing.assert_array_equal(alive, np.where(alive > 0, sizes, 0))  # whole groups
        gone = int((alive == 0).sum())
        if grain == "n_of_m":
            sets = Net(task).groups.layers[name].matrix(masks[name])
            sets = sets.reshape(-1, 4, *sets.shape[1:]).sum(axis=1)
            assert (sets == 4 * density).all()
        else:
            assert gone == round((1 - density) * block.size)
            assert sums[name][alive == 0].max() <= sums[name][alive > 0].min()
    if grain in ("fine", "vector", "kernel"):
        assert line["metrics"]["density"] == pytest.approx(density, abs=0.02)
    kept = jax.tree.leaves(jax.tree.map(lambda leaf: np.asarray(leaf), after.variables))
    assert all(np.isfinite(leaf).all() for leaf in kept)


def test_a_row_is_a_filter_and_the_last_layer_keeps_its_outputs(task, start):
    one, _ = pruned_by(task, start, grain="filter")
    two, _ = pruned_by(task, start, grain="row")
    masks, others = weights_of(task, one), weights_of(task, two)
    assert "params/fc/kernel" not in masks
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, others[name])
        assert {*mask.reshape(-1, mask.shape[-1]).mean(axis=0).tolist()} == {0.0, 1.0}
    # Nothing that is coupled goes along: both producers of the stream choose for themselves.
    first, third = (np.asarray(masks[f"params/conv{n}/kernel"]) for n in (1, 3))
    assert (first.any((0, 1, 2)) != third.any((0, 1, 2))).any()


def test_vectors_lie_along_the_axis_that_is_asked_for(task, start):
    for axis, number in (("h", 0), ("w", 1), ("in", 2), ("out", 3)):
        after, _ = pruned_by(task, start, grain="vector", axis=axis)
        mask = np.asarray(weights_of(task, after)["params/conv2/kernel"])
        assert {*np.unique(mask.mean(axis=number))} == {0.0, 1.0}


def test_coarser_groups_take_fewer_bits_at_equal_density(task, start):
    found = {
        grain: pruned_by(task, start, Budget(density=0.25), grain=grain)[1]["storage"]
        for grain in ("fine", "vector", "kernel")
    }
    assert found["kernel"] < found["vector"] < found["fine"]
    # 8 of 72 values of conv1 are kernels of 9; without fillers 0.25 (1 + 4 / 8) for single weights
    assert found["fine"] == pytest.approx(0.375, abs=0.01)
    _, two_of_four = pruned_by(task, start, Budget(density=0.5), grain="n_of_m")
    assert two_of_four["storage"] == pytest.approx(0.5 * (8 + 2) / 8)


def test_ratios_are_densities_relative_to_each_other(task, start):
    ratios = {"params/conv1/kernel": 3.0, "params/conv2/kernel": 1.0, "params/conv3/kernel": 2.0}
    ratios["params/fc/kernel"] = 100.0
    for grain in ("fine", "kernel"):
        after, metrics = pruned_by(task, start, Budget(density=0.3), grain=grain, ratios=ratios)
        kept = {name: float(np.mean(mask)) for name, mask in weights_of(task, after).items()}
        assert kept["params/fc/kernel"] == 1.0
        t = kept["params/conv2/kernel"]
        assert kept["params/conv3/kernel"] == pytest.approx(2 * t, abs=0.02)
        assert kept["params/conv1/kernel"] == pytest.approx(min(1, 3 * t), abs=0.1)
        assert metrics["density"] == pytest.approx(0.3, abs=0.01)


def test_the_scan_gives_all_grains_the_same_densities(task, start):
    q = {
        "params/conv1/kernel": 0.25,
        "params/conv2/kernel": 1.0,
        "params/conv3/kernel": 0.5,
        "params/fc/kernel": 0.5,
    }
    ready = start._replace(extra=Net(task).tree(q), saved={"dense": start.variables})
    kept = {}
    for grain in ("fine", "vector", "kernel"):
        after, _ = pruned_by(task, ready, Budget(density=0.4), grain=grain, ratios="scan")
        kept[grain] = {name: np.mean(mask) for name, mask in weights_of(task, after).items()}
    for name, fraction in kept["fine"].items():
        for grain in ("vector", "kernel"):
            assert kept[grain][name] == pytest.approx(fraction, abs=0.07)
    fine = kept["fine"]
    assert fine["params/conv1/kernel"] > fine["params/conv3/kernel"] > fine["params/conv2/kernel"]
    # |w| > q std keeps 2 (1 - Phi(q)) of normal weights: 0.617 at 0.5, 0.317 at 1
    ratio = fine["params/conv3/kernel"] / fine["params/conv2/kernel"]
    assert ratio == pytest.approx(0.617 / 0.317, rel=0.15)


@pytest.mark.parametrize("grain", GRAINS)
def test_a_budget_in_macs_is_met_and_nearly_filled(task, start, grain):
    _, metrics = pruned_by(task, start, Budget(macs=0.5), grain=grain)
    assert metrics["macs"] <= 0.5 + 1e-9
    # 2 of 4 and conv1, whose inputs make no four, are above the half; filters are wide steps.
    assert metrics["macs"] > {"n_of_m": 0.25, "filter": 0.4, "row": 0.4}.get(grain, 0.47)


def test_rounds_keep_within_earlier_masks(task, start):
    recipe = granularity(Budget(density=0.2), None, SHORT, grain="vector", ratios=1, rounds=2)
    begun = start._replace(saved={})
    between, lines = recipes.run(recipe[:3], begun, task, KEY)
    after, line = recipes.run(recipe[3:5], between, task, KEY)
    assert lines[-1]["metrics"]["density"] == pytest.approx(0.2**0.5, abs=0.02)
    assert line[-1]["metrics"]["density"] == pytest.approx(0.2, abs=0.02)
    for name, mask in weights_of(task, after).items():
        assert not (mask & ~np.asarray(weights_of(task, between)[name])).any()


def test_the_whole_recipe_scans_prunes_and_removes_what_is_dead(task):
    recipe = granularity(
        Budget(density=0.3), dataclasses.replace(SHORT, name="train"), SHORT, grain="filter",
        rounds=2,
    )  # fmt: skip
    pruned, records = recipes.run(recipe, Pruned(drawn(task), None), task, KEY)
    by_stage = {line["stage"]: line["metrics"] for line in records}
    assert [*by_stage["scan"]] == [f"params/{n}/kernel" for n in ("conv1", "conv2", "conv3", "fc")]
    assert by_stage["remove_dead"]["removed"] > 0
    assert by_stage["prune"]["grains_kept"] < by_stage["prune"]["grains"] == 28
    fn, small = Net(task).slim(pruned)
    (batch,) = task.data.batches("test", 12)
    expected = jax.jit(task.fn)(pruned.variables, batch["image"])
    np.testing.assert_allclose(jax.jit(fn)(small, batch["image"]), expected, atol=1e-5)


def test_what_cannot_be_met_is_refused_before_training(task):
    refused = lambda recipe: stages.check(recipe, task)
    with pytest.raises(errors.BudgetError, match="1 of 4 in every layer"):
        refused(granularity(Budget(density=0.2), SHORT, SHORT, grain="n_of_m", ratios=1))
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        refused(granularity(Budget(macs=0.01), SHORT, SHORT, grain="filter", ratios=1))
    with pytest.raises(errors.ArgumentError, match="has a n_of_m to prune at m=7"):
        refused(granularity(Budget(density=0.5), SHORT, SHORT, grain="n_of_m", m=7))
    with pytest.raises(errors.ArgumentError, match="ratios has 2 numbers"):
        refused(granularity(Budget(density=0.5), SHORT, SHORT, ratios=(1.0, 2.0)))
    with pytest.raises(errors.ArgumentError, match="each is above 0"):
        refused(granularity(Budget(density=0.5), SHORT, SHORT, ratios=(1.0, 2.0, -1.0, 1.0)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grain": "kernels"}, "did you mean kernel"),
        ({"axis": "x"}, "axis='x'"),
        ({"lengths": (1, 1, 2)}, "four whole numbers"),
        ({"lengths": (1, 1, 2, 1.5)}, "four whole numbers"),
        ({"m": 0}, "m is 1 or more"),
        ({"ratios": "equal"}, "write 'scan'"),
        ({"index_bits": 0}, "each is 1 or more"),
        ({"rounds": 0}, "rounds=0"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(errors.ArgumentError, match=says):
        granularity(Budget(density=0.5), None, SHORT, **options)


def test_weights_that_are_not_finite_are_refused(task, start):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, start.variables)
    with pytest.raises(errors.ArgumentError, match="NaN"):
        PruneGrains(Budget(density=0.5))(start._replace(variables=broken), task, KEY)
