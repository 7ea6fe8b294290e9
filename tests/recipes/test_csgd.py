"""C-SGD: numbers of checks.md [41], exact contraction, merging without loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from experiments.claims import p41
from experiments.claims.claim import run as run_claim
from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.csgd import csgd
from jprune.sparsify import centripetal, cluster, contraction, memberships, strength_for
from jprune.sparsify.centripetal import cluster_means
from jprune.stages.centripetal import Cluster, MergeClusters, Pull, deviation, first_of, merge_map
from jprune.train.net import Net
from jprune.units import expand, map_units
from tests.nets import FIRST_CUT, draw
from tests.toys import drawn, toy_task

KEY = jax.random.key(4)
ROLES = ("kernel", "shift", "scale", "mean", "var")
LONG = Train(40, 0.1, 16, name="pull")
NETS = [net for net in FIRST_CUT if net.name != "vgg"]


@pytest.fixture(scope="module")
def tiny():
    task = toy_task()
    return task, Pruned(drawn(task), None)


def test_one_step_of_the_paper(float64):
    """Checks [41] P1."""
    params = {"w": jnp.array([[1.0, 0], [3, 2], [5, 5]])}
    gradient = {"w": jnp.array([[0.2, 0], [0.4, 1], [1, 1]])}
    tx = optax.chain(
        centripetal({"w": (jnp.array([0, 0, 1]), None)}, 0.1),
        optax.add_decayed_weights(0.01),
        optax.sgd(0.5),
    )
    updates, _ = tx.update(gradient, tx.init(params), params)
    expected = [[0.895, -0.2], [2.785, 1.69], [4.475, 4.475]]
    np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], expected, rtol=1e-12)


def test_differences_contract_whatever_the_loss_is(float64):
    """Checks [41] P2; the mean takes plain SGD steps with the mean gradient."""
    rng = np.random.default_rng(0)
    ids = jnp.array([0, 1, 2, 0, 2, 2])
    start = {"w": jnp.asarray(rng.normal(size=(6, 5)))}
    gradients = rng.normal(size=(100, 6, 5))

    def run(strength):
        tx = optax.chain(
            centripetal({"w": (ids, None)}, strength),
            optax.add_decayed_weights(1e-3),
            optax.sgd(0.1),
        )
        params, state = start, tx.init(start)
        for gradient in gradients:
            updates, state = tx.update({"w": jnp.asarray(gradient)}, state, params)
            params = optax.apply_updates(params, updates)
        return params["w"]

    done, unpulled = run(0.05), run(0.0)
    factor = 0.5997124799620397
    before = start["w"]
    np.testing.assert_allclose(done[2] - done[4], factor * (before[2] - before[4]), atol=1e-9)
    np.testing.assert_allclose(done[0] - done[3], factor * (before[0] - before[3]), atol=1e-9)
    means = lambda w: cluster_means(w, (ids, None))
    np.testing.assert_allclose(means(done), means(unpulled), atol=1e-12)
    plain = before
    for gradient in gradients:
        plain = plain - 0.1 * (gradient + 1e-3 * plain)
    np.testing.assert_allclose(means(done), means(plain), atol=1e-12)
    np.testing.assert_allclose(done[1], plain[1], atol=1e-12)  # alone in its cluster


def test_contraction_is_that_of_optax(float64):
    """A quadratic of one weight, whose curvature is the pull."""
    pulls, rates = np.geomspace(1e-3, 2, 7), np.linspace(0.3, 0.01, 90)
    for momentum in (0.0, 0.9):
        tx = optax.trace(momentum, nesterov=True)

        def step(carry, rate, tx=tx):
            left, state = carry
            update, state = tx.update(jnp.asarray(pulls) * left, state)
            return (left - rate * update, state), jnp.abs(left - rate * update)

        start = jnp.ones(7)
        _, seen = jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(rates))
        found = contraction(rates, momentum, pulls)
        np.testing.assert_allclose(found, seen[-9:].max(axis=0), rtol=1e-9)


def test_the_budget_of_contraction():
    """Checks [41], the sheet's (f) 3: exp(-sum tau pull / (1 - m)) while that is small."""
    rates = np.full(2000, 0.03)
    left = contraction(rates, 0.9, np.array([3e-3, 3e-2, 0.3, 3.0]))
    np.testing.assert_allclose(np.log(left[0]), -1.8 * 0.9, rtol=0.02)  # of nine tenths of it
    assert left[1] == pytest.approx(0.0, abs=1e-7)
    # Beyond the limit, whatever the strength, a step leaves about sqrt(momentum).
    expected = 1800 * np.log(0.9 * (1 - 0.03 * 0.3)) / 2
    np.testing.assert_allclose(np.log(left[2]), expected, rtol=0.02)
    with pytest.raises(errors.ArgumentError, match="strength=-1"):
        centripetal({}, -1.0)
    gentlest = strength_for(rates, 0.9, 1e-6, 1.0)
    assert contraction(rates, 0.9, gentlest) <= 1e-6 < contraction(rates, 0.9, gentlest / 1.1)
    few = strength_for(np.full(3, 1e-3), 0.9, 1e-6, 0.1)
    assert few == pytest.approx(10)  # nothing is enough: as strong as may be


def test_a_stream_has_one_clustering(tiny):
    task, _ = tiny
    groups = Net(task).groups
    stream = groups.names[0]
    members = memberships(groups, {stream: np.array([5, 5, 0, 1, 0, 2, 3, 4])})["params"]
    numbers = [0, 0, 1, 2, 1, 3, 4, 5]
    for name in ("conv1", "conv3"):
        *others, ids = members[name]["kernel"]
        assert others == [None] * 3
        np.testing.assert_array_equal(ids, numbers)
    for name in ("norm1", "norm3"):
        np.testing.assert_array_equal(members[name]["scale"][0], numbers)
        np.testing.assert_array_equal(members[name]["bias"][0], numbers)
    assert members["conv2"]["kernel"] == (None,) * 4  # reads the stream, and is not of it
    assert members["fc"]["kernel"] == (None,) * 2


def averaged(groups, variables, clusters):
    """The units of a cluster made equal at all places but `in`."""
    means = {}
    for name, labels in clusters.items():
        same = (labels[:, None] == labels).astype(float)
        means[name] = same / same.sum(axis=1, keepdims=True)
    return map_units(groups, variables, means, ROLES)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_equal_units_are_merged_without_loss(net, float64):
    """Checks [41] P3: plain, flattened into a dense layer, residual streams of all kinds."""
    variables, (x,) = draw(net, dtype=jnp.float64)
    groups = jprune.trace(net.fn, variables, x)
    rng = np.random.default_rng(0)
    clusters = {name: rng.integers(0, size // 2 + 1, size) for name, size in groups.sizes.items()}
    variables = averaged(groups, variables, clusters)
    masks = {name: first_of(labels) for name, labels in clusters.items()}
    mapped = {name: merge_map(labels) for name, labels in clusters.items()}
    merged = map_units(groups, variables, mapped, ("in",))
    before = jax.jit(net.fn)(variables, x)
    small = jax.jit(jprune.slim(net.fn, groups, masks))
    off = lambda tree: float(
        jnp.abs(before - small(jprune.slim_params(groups, masks, tree), x)).max()
        / jnp.abs(before).max()
    )
    assert sum(int(mask.sum()) for mask in masks.values()) < sum(groups.sizes.values())
    assert off(merged) < 1e-10
    assert off(variables) > 1e-3  # dropped without the sum


def test_clusters():
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(4, 6))
    points = centres[[0, 1, 2, 3, 3, 2, 0, 0, 1]] + 0.01 * rng.normal(size=(9, 6))
    assert cluster(points, 4, KEY).tolist() == [0, 1, 2, 3, 3, 2, 0, 0, 1]
    assert cluster(points, 4, KEY, "even").tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert cluster(points, 4, KEY, "imbalanced").tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    same = np.ones((5, 2))
    assert cluster(same, 3, KEY).tolist() == [0, 0, 0, 1, 2]  # none is empty
    for how in ("kmeans", "even", "imbalanced"):
        assert cluster(points, 9, KEY, how).tolist() == [*range(9)]
        assert not np.any(cluster(points, 1, KEY, how))
    with pytest.raises(errors.ArgumentError, match="write one of kmeans, even, imbalanced"):
        cluster(points, 2, KEY, "median")
    with pytest.raises(errors.ArgumentError, match="a number from 1 to 9"):
        cluster(points, 10, KEY)
    with pytest.raises(errors.ArgumentError, match="hold NaN or infinity"):
        cluster(np.full((3, 2), np.nan), 2, KEY)


@pytest.fixture(scope="module")
def pulled(tiny):
    """A net whose clusters have contracted, with what was seen on the way."""
    task, start = tiny
    begun, (first,) = Cluster(Budget(density=0.5))(start, task, KEY)
    learner = Pull(LONG).learner(begun, task, KEY)
    state, seen = learner.init(), []
    for _, batch in zip(range(learner.steps), learner.batches(0)):
        state, metrics = learner.step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return begun, first["metrics"], seen, learner.finish(state)


def test_training_makes_filters_equal_and_merging_changes_nothing(tiny, pulled):
    task, _ = tiny
    begun, first, seen, done = pulled
    clusters = begun.extra["clusters"]
    assert [len(np.unique(labels)) for labels in clusters.values()] == [4, 6]
    assert first["density"] == 0.5
    assert first["deviation"] > 1  # k-means of random kernels: far apart
    assert seen[0]["deviation"] == pytest.approx(first["deviation"], rel=1e-4)
    assert deviation(task, done.variables, clusters) < 1e-9
    assert np.mean([m["loss"] for m in seen[-5:]]) < 0.5 * np.mean([m["loss"] for m in seen[:5]])
    merged, (said,) = MergeClusters()(done, task, KEY)
    assert said["metrics"]["merged"] == 4 + 6
    assert said["metrics"]["drift"] < 1e-5
    fn, small = Net(task).slim(merged)
    x = next(task.data.batches("test", 12))["image"]
    before, after = jax.jit(task.fn)(done.variables, x), jax.jit(fn)(small, x)
    np.testing.assert_allclose(after, before, atol=1e-5 * float(jnp.abs(before).max()))
    plain = apply_masks(done.variables, expand(Net(task).groups, merged.masks))
    gap = np.abs(jax.jit(task.fn)(plain, x) - before).max() / np.abs(before).max()
    assert gap > 1e-2  # masked, and the readers not summed


def test_a_second_round_merges_what_is_left(tiny, pulled):
    task, _ = tiny
    once, _ = MergeClusters()(pulled[3], task, KEY)
    begun, (seen,) = Cluster(Budget(density=0.3), producers="all")(once, task, KEY)
    for name, labels in begun.extra["clusters"].items():
        gone = ~np.asarray(once.masks[name])
        assert len(np.unique(labels[gone])) == gone.sum()  # alone, each of them
        assert not np.isin(labels[~gone], labels[gone]).any()
    twice, (said,) = MergeClusters()(begun, task, KEY)
    assert said["metrics"]["density"] == pytest.approx(seen["metrics"]["density"])
    assert [int(mask.sum()) for mask in twice.masks.values()] == [2, 4]
    assert said["metrics"]["merged"] == 2 + 2


def test_the_recipe_in_rounds(tiny):
    task, start = tiny
    short = dataclasses.replace(LONG, max_steps=2, distill=0.5)
    recipe = csgd(Budget(macs=0.4), None, short, rounds=2, clusters="even", strength=0.05)
    done, records = recipes.run(recipe, start, task, KEY)
    stages = [r["stage"] for r in records]
    assert stages == ["dense", *["cluster", "pull", "merge"] * 2, "before_finetune"]
    macs = [r["metrics"]["macs"] for r in records if r["stage"] == "merge"]
    assert 0.4 < macs[0] <= 0.4**0.5
    assert macs[1] <= 0.4
    assert done.extra is None
    whole = {name: size for name, size in Net(task).groups.sizes.items()}
    floors = Budget(density=0.45, floors={next(iter(whole)): 8})
    kept, _ = Cluster(floors)(start, task, KEY)
    assert [len(np.unique(labels)) for labels in kept.extra["clusters"].values()] == [8, 5]


def test_what_cannot_be_is_refused(tiny):
    task, start = tiny
    groups = Net(task).groups
    with pytest.raises(errors.FrozenError, match="'params/fc/kernel' is frozen: tied to a network"):
        memberships(groups, {"params/fc/kernel": np.zeros(3, int)})
    with pytest.raises(errors.StructureError, match="there is no group 'conv9'"):
        memberships(groups, {"conv9": np.zeros(3, int)})
    with pytest.raises(errors.StructureError, match="has 8 units"):
        memberships(groups, {groups.names[0]: np.zeros(3, int)})
    with pytest.raises(errors.BudgetError, match=r"the smallest net allowed costs 0\.0"):
        Cluster(Budget(macs=0.001))(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match="clusters='median'"):
        csgd(Budget(macs=0.5), None, LONG, clusters="median")
    with pytest.raises(errors.ArgumentError, match="producers='last'"):
        csgd(Budget(macs=0.5), None, LONG, producers="last")
    with pytest.raises(errors.ArgumentError, match="goal=2"):
        csgd(Budget(macs=0.5), None, LONG, goal=2.0)
    with pytest.raises(errors.ArgumentError, match="rounds=0"):
        csgd(Budget(macs=0.5), None, LONG, rounds=0)
    for stage in (Pull(LONG).learner, MergeClusters()):
        with pytest.raises(errors.ArgumentError, match=r"Put Cluster\(budget\) before"):
            stage(start, task, KEY)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), start.variables)
    with pytest.raises(errors.ArgumentError, match="single weights are masked"):
        Cluster(Budget(macs=0.5))(start._replace(masks=masks), task, KEY)
    with pytest.raises(errors.ArgumentError, match="needs the parameters"):
        centripetal({}, 0.1).update({}, None)


@pytest.mark.slow
def test_p41_has_a_row_an_arm():
    found = run_claim(p41.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", "csgd", "l1", "scratch"]
    assert [round(row["density"], 3) for row in found] == [1, 0.625, 0.625, 0.625]
    assert 0 <= found[1]["same"] <= 1
    assert found[1]["deviation"] > 0
