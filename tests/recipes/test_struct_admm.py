"""StructADMM [33]: projections, the analytic case, residuals that fall, duals that diverge."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.blocks import Block, Blocks, Member
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.sparsify import admm, projection
from jprune.stages.admm import Admm, Cut
from jprune.stages.splitting import Sets
from jprune.train.net import Net
from jprune.units import leaves_by_path
from tests.nets import FIRST_CUT, draw
from tests.recipes.test_ssl import one_kernel, rows_of
from tests.toys import drawn, toy_task

KEY = jax.random.key(5)
SINGLE = Blocks("weight", "weight", {"w": Block(2, (Member("w", (1,)),))})


@pytest.mark.parametrize(("kind", "keep"), [("filter", 2), ("channel", 1), ("shape", 3)])
def test_the_projection_is_the_nearest_point_of_all_supports(kind, keep, float64):
    kernel = np.random.default_rng(0).normal(size=(2, 2, 2, 3))
    groups = one_kernel(kernel.shape, kind)
    near = np.asarray(projection(groups, {"w": keep})({"w": jnp.asarray(kernel)})["w"])
    block = groups["w"]
    number = blocks.members.along(block.members[0], kernel.shape, np.arange(block.size), -1)
    points = [
        kernel * np.isin(number, support)
        for support in itertools.combinations(range(block.size), keep)
    ]
    distances = [((kernel - point) ** 2).sum() for point in points]
    np.testing.assert_array_equal(near, points[int(np.argmin(distances))])
    assert ((kernel - near) ** 2).sum() == pytest.approx(min(distances), abs=1e-10)


def test_rows_and_columns_of_a_matrix():
    w = jnp.array([[3.0, 0, 1], [0, 2, 2]])
    rows = rows_of(2)
    columns = Blocks("column", "weight", {"w": Block(3, (Member("w", (None, 1)),))})
    assert blocks.squares(columns, {"w": w})["w"].tolist() == [9, 4, 5]
    row = projection(rows, {"w": 1})({"w": w})["w"]
    both = projection([rows, columns], {"row": {"w": 1}, "column": {"w": 1}})({"w": w})["w"]
    column = projection(columns, {"w": 2})({"w": w})["w"]
    assert row.tolist() == [[3, 0, 1], [0, 0, 0]]
    assert ((w - row) ** 2).sum() == 8
    assert column.tolist() == [[3, 0, 1], [0, 0, 2]]
    assert ((w - column) ** 2).sum() == 4
    assert both.tolist() == [[3, 0, 0], [0, 0, 0]]


def test_coupled_units_are_projected_together():
    net = next(net for net in FIRST_CUT if net.name == "resnet_identity")
    variables, (x,) = draw(net)
    groups = jprune.trace(net.fn, variables, x)
    leaves = leaves_by_path(groups, variables)
    near = projection(blocks.filters(groups, ["stem"], scales=False), {"stem": 3})(leaves)
    after = {path: leaf for path, leaf in near.items() if leaf is not None}
    assert set(after) == {"stem", "conv2a", "conv2b"}
    total = sum((np.asarray(leaves[path]) ** 2).sum((0, 1, 2)) for path in after)
    kept = np.isin(np.arange(8), np.argsort(total)[-3:])
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, np.asarray(leaves[path]) * kept)


def analytic(rho, rounds, growth=1.0):
    """0.5 ||w - a||^2, one of two kept; a step of size 1 / (1 + rho) is the exact W-step."""
    goal = jnp.array([2.0, 1.9])
    project = projection(SINGLE, {"w": 1})
    tx = admm(optax.sgd(1 / (1 + rho)), project, rho=rho, every=1, growth=growth)
    params, found = {"w": goal}, []
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update({"w": params["w"] - goal}, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(rounds):
        params, state = step(params, state)
        found.append([np.asarray(v) for v in (params["w"], state.target["w"], state.duals["w"])])
    return found, state


def test_the_analytic_case(float64):
    found, state = analytic(1.0, 60)
    for got, expected in zip(
        found, [([2, 0.95], [2, 0], [0, 0.95]), ([2, 0.475], [2, 0], [0, 1.425])]
    ):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(found[-1], [[2, 0], [2, 0], [0, 1.9]], atol=1e-9)
    assert state.primal < 1e-9
    assert state.change == 0
    assert state.stopped == 0


def test_rounds_settle_above_the_least_rho_and_cycle_below(float64):
    """1.9 / rho <= 2: at rest from 0.95 on."""
    supports = lambda rho: {tuple(z != 0) for _, z, _ in analytic(rho, 400)[0][-100:]}
    assert supports(0.96) == {(True, False)}
    assert len(supports(0.9)) == 2


def test_scaled_duals_shrink_as_rho_grows(float64):
    """The multipliers rho U are what they were; the limit of them is the same."""
    found, state = analytic(1.0, 3, growth=1.5)
    assert state.rho == pytest.approx(1.5**3)
    np.testing.assert_allclose(found[0][2], [0, 0.95 / 1.5], atol=1e-12)


@pytest.fixture(scope="module")
def net():
    task = toy_task()
    return task, Pruned(drawn(task), None)


def stage(kinds, part=0.5, steps=100, **settings):
    sets = Sets(Budget(macs=part), kinds)
    given = dict(rho=2.0, rounds=4, growth=1.0, adam=None) | settings
    return Admm(Train(40, 0.01, 16, schedule="constant", max_steps=steps), sets, **given), sets


@pytest.mark.parametrize("kinds", [("filter",), ("filter", "column")])
def test_the_primal_residual_falls_and_the_cut_costs_little(net, kinds):
    task, start = net
    split, sets = stage(kinds)
    learner = split.learner(start, task, KEY)
    state = learner.init()
    dense, gaps = float(state.opt_state.primal), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, seen = learner.step(state, batch)
        gaps.append(float(seen["primal"]))
    gaps = gaps[24::25]
    assert dense > 0.3
    assert gaps[-1] < 0.2 * dense
    assert gaps[-1] < gaps[0]
    done = learner.finish(state)
    assert done.masks is None
    kernels = [w for w in jax.tree.leaves(done.variables["params"]) if w.ndim > 1]
    assert all((np.asarray(w) != 0).all() for w in kernels)  # W is dense until the cut
    pruned, (record,) = Cut(sets)(done, task, KEY)
    metrics = record["metrics"]
    assert 0.3 < metrics["macs"] <= 0.5
    assert metrics["gap"] < 0.25 * dense
    one_shot = start._replace(extra=done.extra)
    assert Cut(sets)(one_shot, task, KEY)[1][0]["metrics"]["gap"] > 2 * metrics["gap"]
    Net(task).slim(pruned)


def test_behind_batch_norms_a_cut_is_free_only_if_scales_and_shifts_fall_too(net):
    """A norm divides by the size of a filter: kernels near 0 say what they said."""
    task, start = net
    dense, _ = Train(40, 0.05, 16, max_steps=100)(start, task, KEY)
    image = next(task.data.batches("test", 12))["image"]
    outputs = lambda variables: np.asarray(task.fn(variables, image))
    changes = {}
    for affine in (True, False):
        split, _ = stage(("filter",), steps=300)
        sets = dataclasses.replace(split.sets, affine=affine)
        done, _ = dataclasses.replace(split, sets=sets)(dense, task, KEY)
        cut, _ = Cut(sets)(done, task, KEY)
        whole = outputs(done.variables)
        changes[affine] = np.abs(outputs(cut.variables) - whole).max() / np.abs(whole).max()
    assert changes[True] < 0.1
    assert changes[False] > 0.4


def test_the_cut_keeps_the_support_of_the_projection(net):
    """Columns are ranked by the filters that stay."""
    task, start = net
    sets = Sets(Budget(macs=1.0), ("filter", "column"), 0.5)
    pruned, _ = Cut(sets)(
        start._replace(extra={"counts": sets.counts(task, start), "stopped": 0}), task, KEY
    )
    leaves = leaves_by_path(Net(task).groups, start.variables)
    near = projection(sets.families(task), sets.counts(task, start))(leaves)
    masks = leaves_by_path(Net(task).groups, pruned.masks)
    for before, here in (("conv1", "conv2"), ("conv2", "conv3")):
        read = np.asarray(near[f"params/{before}/kernel"]).any((0, 1, 2))
        expected = (np.asarray(near[f"params/{here}/kernel"]) != 0) & read[:, None]
        np.testing.assert_array_equal(masks[f"params/{here}/kernel"], expected)
        assert 0 < expected.mean() < 0.25


def test_distillation_is_a_part_of_the_loss_under_admm(net):
    task, start = net
    split, _ = stage(("filter",), steps=4)
    alone, _ = split(start, task, KEY)
    taught = dataclasses.replace(split, train=dataclasses.replace(split.train, distill=1.0))
    with pytest.raises(errors.ArgumentError, match="distill"):
        taught.learner(start, task, KEY)
    other = start._replace(saved={"dense": task.init(jax.random.key(77))})
    done, _ = taught(other, task, KEY)
    leaf = lambda pruned: np.asarray(pruned.variables["params"]["fc"]["kernel"])
    assert np.abs(leaf(done) - leaf(alone)).max() > 1e-4


def test_what_was_masked_before_stays_so(net):
    """As in progressive pruning: the next ADMM begins under the last masks."""
    task, start = net
    names = Net(task).groups.sizes
    masks = {name: np.arange(size) % 4 != 1 for name, size in names.items()}
    weights = Net(task).weight_masks(masks)
    begun = start._replace(variables=apply_masks(start.variables, weights), masks=masks)
    split, sets = stage(("filter",), 0.3, 3, rounds=1)
    done, _ = split(begun, task, KEY)
    for leaf, mask in zip(jax.tree.leaves(done.variables), jax.tree.leaves(weights)):
        assert not np.asarray(leaf)[~np.asarray(mask)].any()
    pruned, (record,) = Cut(sets)(done, task, KEY)
    assert record["metrics"]["macs"] <= 0.3
    assert all(not pruned.masks[name][~mask].any() for name, mask in masks.items())


def test_duals_that_diverge_stop_at_the_last_good_round(net):
    """rho is far above what the step takes: weights and duals grow by leaps."""
    task, start = net
    split, sets = stage(("filter",), steps=8, rounds=4, rho=600.0, limit=1e3)
    learner = split.learner(start, task, KEY)
    state, stopped = learner.init(), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, _ = learner.step(state, batch)
        stopped.append(int(state.opt_state.stopped))
        if not stopped[-1]:
            good = jax.tree.map(np.asarray, state.opt_state.good)
    assert stopped[-1] > 1  # after a good round
    done = learner.finish(state)
    jax.tree.map(np.testing.assert_array_equal, done.variables["params"], good)
    with pytest.raises(errors.DivergenceError) as caught:
        Cut(sets)(done, task, KEY)
    assert f"its duals diverged in round {stopped[-1]}" in str(caught.value)
    assert f"The net after round {stopped[-1] - 1}, the last good one, is kept" in str(caught.value)


def test_a_dual_that_is_not_finite_is_undone_too():
    tx = admm(optax.sgd(1.0), projection(SINGLE, 0.5), rho=1.0, every=1)
    params = {"w": jnp.array([2.0, 1.9])}
    state = tx.init(params)
    updates, state = tx.update({"w": jnp.array([jnp.inf, 0.0])}, state, params)
    assert state.stopped == 1
    assert jnp.isfinite(state.duals["w"]).all()
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["w"], params["w"])


def test_fractions_by_hand_and_purification(net):
    task, start = net
    sets = Sets(Budget(macs=0.9), ("filter", "column"), ((0.5, 0.75), (1.0, 0.25, 1.0, 1.0)))
    counts = sets.counts(task, start)
    assert list(counts["filter"].values()) == [4, 9]
    assert list(counts["column"].values())[1] == 18  # 3 x 3 taps of 8 inputs
    with pytest.raises(errors.BudgetError, match=r"keeps macs=0.* and macs=0.1 was asked for"):
        Sets(Budget(macs=0.1), ("filter",), 0.9).counts(task, start)
    with pytest.raises(errors.ArgumentError, match=r"in \(0, 1\]"):
        Sets(Budget(macs=0.5), ("filter",), 1.5).counts(task, start)
    pure = Cut(sets, purify=0.5).pure(np.array([4.0, 1.0, 5.0, 0.1]), np.array([1, 1, 1, 0], bool))
    assert pure.tolist() == [True, False, True, False]


def test_a_frozen_group_is_refused_before_anything_is_trained(net):
    task, _ = net
    split = Admm(Train(1, 0.1, 16), Sets(Budget(macs=0.5), names=("params/fc/kernel",)))
    with pytest.raises(errors.FrozenError, match="'params/fc/kernel' is frozen: axis 1"):
        split.check(task)
    for keep in ((0.1, 0.2, 0.3), {"filter": {"conv1": 0.5}}, 1.5):
        split = Admm(Train(1, 0.1, 16), Sets(Budget(macs=0.5), keep=keep))
        with pytest.raises(errors.ArgumentError, match="keep"):
            split.check(task)


@pytest.mark.parametrize(("options", "message"), [
    ({"groups": "row"}, "groups='row'; write one of filter, channel"),
    ({"groups": ("filter", "channel")}, "kept twice"),
    ({"optimizer": "lion"}, "one of adam, sgd"),
    ({"progressive": 0}, "progressive is 1 or more"),
    ({"rho": -1.0}, r"rho=-1.0\); rho is above 0"),
    ({"growth": 0.5}, "growth is 1 or more"),
    ({"limit": 0.0}, "limit is above 0"),
    ({"rate": 0.0}, "rate is above 0"),
    ({"weight_decay": -1e-4}, "weight_decay is 0 or more"),
    ({"keep": 0.5, "progressive": 2}, "Leave one of the two out"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        recipes.find("struct_admm")(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_numbers_of_the_transformation_are_checked(net):
    task, start = net
    with pytest.raises(errors.ArgumentError, match="rho and limit are above 0"):
        admm(optax.sgd(0.1), projection([], 0.5), rho=0.0, every=1)
    for keep in (0.0, {"w": 3}, {"v": 1}):
        with pytest.raises(errors.ArgumentError, match=r"projection\(keep="):
            projection(SINGLE, keep)
    split, _ = stage(("filter",), steps=3, rounds=5)
    with pytest.raises(errors.ArgumentError, match="rounds=5 in 3 steps"):
        split.learner(start, task, KEY)
    split, _ = stage(("filter",), steps=59, rounds=30)  # rounds of one step would be 59
    with pytest.raises(errors.ArgumentError, match="rounds=30 in 59 steps"):
        split.learner(start, task, KEY)


def test_the_progressive_recipe_cuts_twice(net):
    task, start = net
    short = Train(4, 0.02, 16, max_steps=2, name="finetune")
    recipe = recipes.find("struct_admm")(Budget(macs=0.25), None, short, progressive=2)
    _, records = recipes.run(recipe, start, task, KEY)
    cuts = [r["metrics"]["macs"] for r in records if r["stage"] == "prune"]
    assert 0.3 < cuts[0] <= 0.5
    assert 0.08 < cuts[1] <= 0.25
