"""Data-free merging: numbers of checks.md [5], duplicates without loss, norms, residual streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jprune
from experiments.claims import e05
from experiments.claims.claim import run as run_claim
from jprune import errors
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.data_free import data_free
from jprune.reconstruct.folded import affines, weight_sets
from jprune.reconstruct.merge import cutoff, distances, matrix, merges
from jprune.stages.merge import MergeUnits
from jprune.train.net import Net
from jprune.units import expand
from tests.nets import FIRST_CUT, conv, draw, head, norm, norm_shapes
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)


def test_three_neurons():
    """Checks [5] P2: s_ij, the order, and what a merge does to the saliencies."""
    weights = np.array([[1, 0], [1, 0.1], [0, 1.0]])
    outgoing = np.array([[1.0], [2.0], [0.5]])
    found = distances(weights)[0] * (outgoing**2).mean(axis=1)[None]
    expected = np.array([[0, 0.04, 0.5], [0.01, 0, 0.4525], [2, 7.24, 0]])
    np.testing.assert_allclose(found, expected)
    steps = list(merges(weights, outgoing))
    assert [(step.gone, step.into) for step in steps] == [(0, 1), (2, 1)]
    np.testing.assert_allclose([step.saliency for step in steps], [0.01, 0.4525])
    np.testing.assert_allclose(matrix(3, steps[:1]) @ outgoing, [[0], [3], [0.5]])
    np.testing.assert_allclose(matrix(3, steps) @ outgoing, [[0], [3.5], [0]])
    # With unit 2 kept, s_21 would by now be 3^2 1.81, not the stale 7.24.
    heavy = np.array([[1.0], [2.0], [10.0]])
    second = list(merges(weights, heavy))[1]
    assert (second.into, second.gone) == (2, 1)
    np.testing.assert_allclose(second.saliency, 16.29)


@given(st.integers(0, 10**6), st.booleans())
def test_every_merge_is_the_least_salient_one(seed, normalize):
    """Against saliencies computed anew from the weights after every merge."""
    rng = np.random.default_rng(seed)
    weights, outgoing = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    left = list(range(6))
    for step in merges(weights, outgoing.copy(), normalize):
        length = lambda unit: np.linalg.norm(weights[unit])
        fresh = {}
        for i in left:
            for j in left:
                factor = length(j) / length(i) if normalize else 1.0
                gap = ((factor * weights[i] - weights[j]) ** 2).sum()
                fresh[i, j] = np.inf if i == j else gap * (outgoing[j] ** 2).mean()
        assert step.saliency == pytest.approx(min(fresh.values()))
        assert fresh[step.into, step.gone] == pytest.approx(step.saliency)
        outgoing[step.into] += step.factor * outgoing[step.gone]
        left.remove(step.gone)
    assert len(left) == 1


def test_units_nearer_to_nothing_than_to_each_other_are_dropped():
    """Orthogonal units: merging costs |W_i|^2 + |W_j|^2, dropping |W_j|^2; twins are merged."""
    weights = np.array([[3.0, 0, 0], [0, 1, 0], [0, 0, 2], [3.0, 0, 0]])
    outgoing = np.ones((4, 2))
    first, second, third = merges(weights, outgoing, drop=True)
    assert {first.into, first.gone} == {0, 3}
    assert first.saliency == 0
    assert second == (1, 1, 0.0, 1.0)
    assert third == (2, 2, 0.0, 4.0)
    moved = matrix(4, [first, second]) @ outgoing
    assert sorted(moved[:, 0].tolist()) == [0, 0, 1, 2]


def test_equal_sets_are_at_zero_exactly():
    """The Gram matrix alone leaves 1e-10 of a set whose squares sum to a million."""
    sets = 1e3 + np.random.default_rng(0).normal(size=(7, 33))
    sets[5] = sets[2]
    found = distances(sets)[0]
    assert found[5, 2] == found[2, 5] == 0
    assert np.count_nonzero(found) == 7 * 6 - 2
    assert next(merges(sets, np.ones((7, 2)))).saliency == 0


def test_the_cutoff_lies_at_the_crowd():
    rng = np.random.default_rng(0)
    crowd, far = np.exp(rng.normal(0, 0.3, 400)), np.exp(rng.normal(4, 0.3, 100))
    assert 0.6 < cutoff(np.concatenate([crowd, far, [0.0, np.inf]])) < 1.6
    assert cutoff(np.array([0.0, np.inf])) == 0


def test_what_stands_behind_a_layer():
    """Scale and shift of norms and biases are read without data; a norm on a stream is none."""
    (net,) = (net for net in FIRST_CUT if net.name == "resnet_identity")
    variables, (x,) = draw(net)
    groups = jprune.trace(net.fn, variables, x)
    found, made_of = affines(net.fn, groups, variables, x)
    p = variables["norm1b"]
    scale = p["scale"] / np.sqrt(p["var"] + 1e-3)
    np.testing.assert_allclose(found["conv1b"].scale, scale, rtol=1e-5)
    np.testing.assert_allclose(found["conv1b"].shift, p["shift"] - p["mean"] * scale, rtol=1e-4)
    assert made_of == {
        f"norm{n}/{part}" for n in ("0", "1a", "2a", "1b", "2b") for part in norm_shapes(1)
    } | {"head/bias"}
    sets = weight_sets(groups, variables, found, made_of)
    fans = {name: value.shape for name, value in sets.items()}
    assert fans == {"stem": (8, 9 * 3 + 9 * 5 + 9 * 6 + 3), "conv1a": (5, 73), "conv1b": (6, 73)}


def preactivation(v, x):
    """The stream's norm follows the sum: it is no layer's own."""
    x = conv(x, v["stem"]) + conv(jnp.tanh(conv(x, v["other"])), v["conv"])
    return head(jax.nn.relu(norm(x, v["norm"])), v)


def test_a_norm_on_a_stream_is_a_part_of_the_set():
    shapes = {"stem": (3, 3, 3, 5), "other": (3, 3, 3, 4), "conv": (3, 3, 4, 5)}
    shapes |= {"norm": norm_shapes(5), "head": {"kernel": (5, 4), "bias": (4,)}}
    variables, x = draw(FIRST_CUT[0]._replace(shapes=shapes, inputs=((2, 5, 6, 3),)))
    groups = jprune.trace(preactivation, variables, *x)
    found, made_of = affines(preactivation, groups, variables, x[0])
    sets = weight_sets(groups, variables, found, made_of)
    assert sets["stem"].shape == (5, 9 * 3 + 1 + 9 * 4 + 1 + 4)


@functools.cache
def task_of():
    return toy_task()


def with_norms(task):
    """Variables with norms that do something."""
    variables = jax.tree.map(lambda leaf: np.array(leaf, np.float64), drawn(task))
    rng = np.random.default_rng(1)
    for name in ("norm1", "norm2", "norm3"):
        norms, stats = variables["params"][name], variables["stats"][name]
        width = len(norms["scale"])
        norms["scale"], norms["bias"] = rng.normal(size=(2, width))
        stats["mean"], stats["var"] = rng.normal(size=width), rng.uniform(0.5, 2, width)
    return variables


def copy_unit(groups, tree, group, source, target):
    """Makes one unit the twin of another at every place but `in`."""
    leaves = dict(zip(groups.leaves, groups.treedef.flatten_up_to(tree)))
    for place in groups.places[group]:
        if "in" not in place.roles:
            along = np.moveaxis(leaves[place.leaf], place.axis, 0)
            along[place.units == target] = along[place.units == source]


def test_twins_are_merged_without_loss(float64):
    """Checks [5] P1, on convolutions with norms and on a residual stream."""
    task = toy_task(dtype=jnp.float64)
    groups, variables = Net(task).groups, with_norms(task)
    for group, source, target in zip(groups.names, (1, 3), (6, 9)):
        copy_unit(groups, variables, group, source, target)
    # One twin has other parameters of its norm, and is the same function.
    norms, stats = variables["params"]["norm2"], variables["stats"]["norm2"]
    variables["params"]["conv2"]["kernel"][..., 9] *= 3
    stats["mean"][9] *= 3
    stats["var"][9] = 9 * (stats["var"][9] + 1e-5) - 1e-5
    assert norms["scale"][9] == norms["scale"][3]
    variables = jax.tree.map(jnp.asarray, variables)
    done, (seen,) = MergeUnits(Budget(density=18 / 20))(Pruned(variables, None), task, KEY)
    assert seen["metrics"]["merged"] == 2
    assert seen["metrics"]["saliency"] < 1e-20
    gone = {name: np.flatnonzero(~mask).tolist() for name, mask in done.masks.items()}
    assert [units[0] in pair for units, pair in zip(gone.values(), ((1, 6), (3, 9)))] == [True] * 2
    x = jax.random.normal(KEY, (100, *task.example.shape[1:]))
    fn = jax.jit(task.fn)
    before = fn(variables, x)
    near = lambda other: float(jnp.abs(before - other).max() / jnp.abs(before).max())
    assert near(fn(done.variables, x)) < 1e-6  # the zoo hands float32 out
    small_fn, small = Net(task).slim(done)
    assert near(jax.jit(small_fn)(small, x)) < 1e-6
    plain = apply_masks(variables, expand(groups, done.masks))
    assert near(fn(plain, x)) > 1e-2  # deleted without the sum


def test_twins_of_a_dense_net_to_the_last_digit(float64):
    """In float64 from end to end, with a flattened input."""
    (net,) = (net for net in FIRST_CUT if net.name == "lenet")
    variables, (x,) = draw(net, dtype=jnp.float64)
    variables = jax.tree.map(np.array, variables)
    groups = jprune.trace(net.fn, variables, x)
    pairs = {"conv1/kernel": (4, 0), "conv2/kernel": (2, 5), "dense1/kernel": (7, 8)}
    for group, (source, target) in pairs.items():
        copy_unit(groups, variables, group, source, target)
    variables = jax.tree.map(jnp.asarray, variables)
    behind = affines(net.fn, groups, variables, x)
    masks, merged = {}, variables
    for group, pair in pairs.items():
        sets = weight_sets(groups, merged, *behind)[group]
        outgoing = np.asarray(jprune.rows(groups, merged, group, ("in",)))
        step = next(merges(sets, outgoing))
        assert {step.into, step.gone} == set(pair)
        assert step.saliency < 1e-28
        mapped = {group: matrix(groups.sizes[group], [step])}
        merged = jprune.map_units(groups, merged, mapped, ("in",))
        masks[group] = np.arange(groups.sizes[group]) != step.gone
    small = jprune.slim_params(groups, masks, merged)
    before = jax.jit(net.fn)(variables, x)
    after = jax.jit(jprune.slim(net.fn, groups, masks))(small, x)
    assert float(jnp.abs(before - after).max() / jnp.abs(before).max()) < 1e-12


def test_multiples_are_found_where_they_are_asked_for():
    """W_j = 3 W_i, biases included: ReLU makes them one, and so does `normalize`."""
    rng = np.random.default_rng(0)
    weights, outgoing = rng.normal(size=(6, 5)), rng.normal(size=(6, 3))
    weights[4] = 3 * weights[1]
    assert next(merges(weights, outgoing)).saliency > 1e-3
    step = next(merges(weights, outgoing, normalize=True))
    assert {step.into, step.gone} == {1, 4}
    assert step.saliency < 1e-28
    x = np.hstack([rng.normal(size=(50, 4)), np.ones((50, 1))])
    hidden = np.maximum(x @ weights.T, 0)
    moved = matrix(6, [step]) @ outgoing
    np.testing.assert_allclose(hidden @ moved, hidden @ outgoing, atol=1e-12)


def test_a_group_of_one_unit_and_an_empty_budget():
    task = task_of()
    start = Pruned(drawn(task), None)
    done, _ = MergeUnits(Budget(density=0.01))(start, task, KEY)
    assert [int(mask.sum()) for mask in done.masks.values()] == [1, 1]
    again, (seen,) = MergeUnits(Budget(density=0.01))(done, task, KEY)
    assert seen["metrics"]["merged"] == 0
    jax.tree.map(np.testing.assert_array_equal, again.variables, done.variables)
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        MergeUnits(Budget(macs=0.001))(start, task, KEY)


def test_global_and_cutoff():
    task = task_of()
    start = Pruned(drawn(task), None)
    free, (by_budget,) = MergeUnits(Budget(macs=0.4), "global_topk")(start, task, KEY)
    assert by_budget["metrics"]["macs"] <= 0.4
    cut, (by_rule,) = MergeUnits(Budget(density=0.1), stop="cutoff")(start, task, KEY)
    assert 0 < by_rule["metrics"]["merged"] < 20 - 2
    whole, _ = MergeUnits(Budget(density=0.1))(start, task, KEY)
    for name, mask in cut.masks.items():
        assert mask.sum() >= whole.masks[name].sum()
    assert set(free.masks) == set(cut.masks)


def test_bad_words_and_weights():
    with pytest.raises(errors.ArgumentError, match="stop='mode'"):
        data_free(Budget(density=0.5), None, Train(1, 0.1), stop="mode")
    with pytest.raises(errors.ArgumentError, match="allocator='best'"):
        data_free(Budget(density=0.5), None, Train(1, 0.1), allocator="best")
    with pytest.raises(errors.ArgumentError, match="weights that are not finite"):
        next(merges(np.full((2, 3), np.nan), np.ones((2, 1))))


def test_masked_weights_are_not_filled_again():
    task = task_of()
    variables = drawn(task)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), variables)
    with pytest.raises(errors.ArgumentError, match="single weights are masked"):
        MergeUnits(Budget(density=0.5))(Pruned(variables, masks), task, KEY)


def test_nothing_mergeable():
    task = task_of()
    alone = task._replace(
        fn=lambda v, x: (x * v["w"]).sum((1, 2, 3))[:, None],
        init=lambda key: {"w": jnp.ones((8, 8, 1))},
    )
    with pytest.raises(errors.ArgumentError, match="is prunable by this method"):
        MergeUnits(Budget(density=0.5))(Pruned({"w": jnp.ones((8, 8, 1))}, None), alone, KEY)


def test_the_claim_runs_through():
    found = run_claim(e05.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == [
        "dense",
        "merge",
        "delete",
        "random",
        "cutoff",
        "twins",
    ]
    dense, merged, deleted, _, _, twins = found
    assert merged["kept"] == deleted["kept"] == 0.5
    assert merged["drift"] != deleted["drift"]
    assert twins["found"] == 50
    assert twins["drift"] < 1e-5
    assert dense["drift"] == 0
