"""IncReg [27]: delta of the rank, strengths that rise and fall, groups that go without a jump."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.blocks import Block, Blocks, Member
from jprune.sparsify import delta, group_decay, ranked_decay, rises_for
from jprune.stages import CutGroups, Grouped, RaiseByRank, Train
from jprune.stages import check as check_all
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = own.KEY
SHORT = Train(100, 0.05, 16, schedule="constant", max_steps=60, name="finetune")
A, U = 2.5e-4, 0.25


def rows_of(size):
    """The rows of a matrix, as groups of one block."""
    return Blocks("row", "weight", {"w": Block(size, (Member("w", (1, None)),))})


@pytest.mark.parametrize(("rank", "expected"), [
    (0, 2.5e-4), (2, 1.4865089e-4), (4, 8.8388348e-5), (5, 6.8156733e-5), (6, 5.0674555e-5),
    (10, -8.5224104e-5), (12, -2.2855339e-4),
])  # fmt: skip
def test_delta_of_ranks(rank, expected):
    assert float(delta(np.array(float(rank)), 8, A, U)) == pytest.approx(expected, rel=1e-6)


def test_delta_is_symmetric_about_its_middle_and_falls(float64):
    assert abs(float(delta(np.array(8.0), 8, A, U))) < 1e-18
    alpha = np.log(2 / U) / 8
    middle = -np.log(U) / alpha
    np.testing.assert_allclose([alpha, middle], [0.25993019, 5.33333333], rtol=1e-7)
    np.testing.assert_allclose(delta(np.array(middle), 8, A, U), U * A)
    np.testing.assert_allclose(delta(np.array(2 * middle), 8, A, U), (2 * U - 1) * A)
    x = np.linspace(0, middle, 50)
    both = delta(middle + x, 8, A, U) + delta(middle - x, 8, A, U)
    np.testing.assert_allclose(both, 2 * U * A)
    assert (np.diff(delta(np.linspace(0, 20, 200), 8, A, U)) < 0).all()
    np.testing.assert_allclose(delta(jnp.asarray(x), jnp.asarray(8), A, U), delta(x, 8, A, U))


def test_the_penalty_is_l2_and_not_group_lasso(float64):
    params = {"w": jnp.array([[3.0, 4.0], [1.0, 1.0]])}
    tx = group_decay(rows_of(2), {"w": jnp.array([0.1, 0.0])})
    updates, _ = tx.update({"w": jnp.zeros((2, 2))}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [[0.3, 0.4], [0, 0]], rtol=1e-6)
    penalty = lambda w: 0.1 / 2 * (w["w"][0] ** 2).sum()
    np.testing.assert_allclose(updates["w"], jax.grad(penalty)(params)["w"], rtol=1e-12)


@pytest.mark.parametrize("removed", [1, 3, 8])
def test_how_many_rises_it_takes(removed):
    """Against the mechanism itself, on weights that do not change their order."""
    params = {"w": jnp.arange(1.0, 11)[:, None] * jnp.ones((10, 2))}
    tx = ranked_decay(optax.sgd(0.0), rows_of(10), {"w": removed}, rise=0.01, ceiling=1.0)

    def step(state, _):
        _, state = tx.update({"w": jnp.zeros((10, 2))}, state, params)
        return state, (state.left["w"], state.alive["w"])

    _, (left, alive) = jax.lax.scan(step, tx.init(params), None, 500)
    steps = int((np.asarray(left) > 0).sum())
    assert steps == pytest.approx(100 * rises_for(removed, U), abs=2 + removed)
    # The weakest go, one after the other, and nothing else.
    assert np.asarray(alive)[-1].tolist() == [False] * removed + [True] * (10 - removed)


def test_steps_by_hand():
    """A few steps in NumPy: ranks, their means, strengths, decay through momentum, the end."""
    rng = np.random.default_rng(0)
    weights = np.abs(rng.normal(size=(5, 3))).astype(np.float32)
    drift = rng.normal(size=(5, 3)).astype(np.float32) * 0.3  # so that ranks change
    tx = ranked_decay(optax.sgd(0.1, 0.9), rows_of(5), {"w": 2}, rise=0.2, ceiling=1.0)
    params = {"w": jnp.asarray(weights)}
    state = tx.init(params)
    lam, mean, alive, trace, left = np.zeros(5), np.zeros(5), np.ones(5, bool), 0.0, 2
    w = weights.astype(float)
    for turn in range(1, 13):
        updates, state = tx.update({"w": jnp.asarray(drift)}, state, params)
        params = optax.apply_updates(params, updates)
        order = np.argsort(np.where(alive, np.abs(w).sum(1), np.inf), kind="stable")
        rank = np.argsort(order)
        mean = np.where(alive, ((turn - 1) * mean + rank) / turn, mean)
        rank = np.argsort(np.argsort(np.where(alive, mean, np.inf), kind="stable"))
        if left:
            lam = np.where(alive, np.maximum(lam + delta(rank.astype(float), left, 0.2, U), 0), 0)
        goes = alive & (lam >= 1.0)
        alive, left = alive & ~goes, left - int(goes.sum())
        lam = np.where(alive & (left > 0), lam, 0)
        trace = drift + lam[:, None] * w + 0.9 * trace
        w = np.where(alive[:, None], w - 0.1 * trace, 0)
        np.testing.assert_allclose(state.strengths["w"], lam, atol=1e-5)
        np.testing.assert_allclose(params["w"], w, atol=1e-4)
    assert left == 0
    assert not lam.any()  # then the others are left alone


def test_pressure_is_withdrawn_from_a_group_that_grows():
    """Group 0 is the weakest at first; its gradient makes it the strongest, and it stays."""
    params = {"w": jnp.array([[0.5], [1.0], [1.5], [2.0]])}
    pull = {"w": jnp.array([[-1.0], [0.0], [0.0], [0.0]])}
    tx = ranked_decay(optax.sgd(0.1), rows_of(4), {"w": 1}, rise=0.02, ceiling=1.0)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(pull, state, params)
        return (optax.apply_updates(params, updates), state), state.strengths["w"]

    (params, state), seen = jax.lax.scan(step, (params, tx.init(params)), None, 150)
    first = np.asarray(seen)[:, 0]
    assert first.max() > 0.05
    assert first[-1] == 0
    assert state.alive["w"].tolist() == [True, False, True, True]
    assert float(params["w"][1, 0]) == 0.0


def test_ranks_are_means_over_time():
    """Two groups change places in every step: strengths follow the mean and not the last rank."""
    tx = ranked_decay(optax.sgd(0.0), rows_of(3), {"w": 1}, rise=0.01, ceiling=9.0)
    first, second = ({"w": jnp.array(v)[:, None]} for v in ([1.0, 2, 9], [1.5, 1, 9]))
    state = tx.init(first)
    for turn in range(20):
        still = {"w": jnp.zeros((3, 1))}
        _, state = tx.update(still, state, first if turn % 3 else second)
    # Group 0 has rank 0 in two of three steps, and 1 in the third.
    np.testing.assert_allclose(state.ranks["w"], [7 / 20, 13 / 20, 2], atol=1e-5)
    assert float(state.strengths["w"][0]) == pytest.approx(0.01 * 19, abs=0.011)


@pytest.fixture(scope="module")
def net():
    task = toy_task()
    return task, Pruned(drawn(task), None)


@pytest.fixture(scope="module")
def decayed(net):
    """The toy under regularisation of its filters; with the largest change of a step's outputs."""
    task, start = net
    start, _ = Train(10, 0.05, 16, max_steps=30)(start, task, KEY)
    stage = RaiseByRank(dataclasses.replace(SHORT, max_steps=150), Budget(macs=0.5), Grouped())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = stage.learner(start, task, KEY)
    state, left, norms = learner.init(), [], []
    of = Grouped().of(Net(task), Budget(macs=0.5))
    for _, batch in zip(range(learner.steps), learner.batches(0)):
        before = blocks.norms(of, state.params)
        alive = {name: np.asarray(mask) for name, mask in state.opt_state.alive.items()}
        state, _ = learner.step(state, batch)
        gone = {n: alive[n] & ~np.asarray(m) for n, m in state.opt_state.alive.items()}
        norms += [float(x) for n in of for x in before[n][gone[n]] / before[n].max()]
        left.append(sum(int(n) for n in state.opt_state.left.values()))
    return learner.finish(state), left, norms


def test_nothing_jumps_when_a_group_goes(net, decayed):
    task, _ = net
    after, left, norms = decayed
    assert len(norms) > 3
    assert max(norms) < 0.05  # measured: 0.028; 0.004 in 400 steps
    assert left[-1] == 0
    assert len({*left}) > 2  # one after the other
    pruned, (record,) = CutGroups(Budget(macs=0.5), Grouped())(after, task, KEY)
    metrics = record["metrics"]
    assert metrics["decayed"] == 0
    assert metrics["drift"] < 1e-5
    assert metrics["late"] == 0
    assert 0.4 < metrics["macs"] <= 0.5
    image = next(task.data.batches("test", 12))["image"]
    small_fn, small = Net(task).slim(pruned)
    dense = task.fn(after.variables, image)
    np.testing.assert_allclose(
        small_fn(small, image), dense, atol=1e-5 * float(np.abs(dense).max())
    )


def test_columns_become_masks_of_weights(net):
    task, start = net
    columns = Grouped("column")
    stage = RaiseByRank(dataclasses.replace(SHORT, max_steps=4), Budget(macs=0.6), columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few steps alone
        after, _ = stage(start, task, KEY)
    pruned, (record,) = CutGroups(Budget(macs=0.6), columns)(after, task, KEY)
    assert record["metrics"]["macs"] <= 0.6
    mask = np.asarray(pruned.masks["params"]["conv2"]["kernel"])
    np.testing.assert_array_equal(mask.all(-1), mask.any(-1))
    assert 0.4 < mask.mean() < 0.8


def test_what_has_not_gone_in_time_is_cut_and_said(net):
    task, start = net
    stage = RaiseByRank(dataclasses.replace(SHORT, max_steps=3), Budget(macs=0.5), Grouped(),
                        rise=2.5e-4, ceiling=2.5)  # fmt: skip
    with pytest.warns(UserWarning, match="the cut does a part of the work"):
        after, _ = stage(start, task, KEY)
    pruned, (record,) = CutGroups(Budget(macs=0.5), Grouped())(after, task, KEY)
    assert record["metrics"]["late"] > 0
    assert 0.4 < record["metrics"]["macs"] <= 0.5
    assert record["metrics"]["decayed"] > 0.3
    # By mean ranks: those with the smallest norms.
    sizes = Grouped().sizes(Net(task), Budget(macs=0.5), start.variables)
    kept = pruned.masks["params/conv2/kernel"]
    assert sizes["params/conv2/kernel"][kept].mean() > sizes["params/conv2/kernel"][~kept].mean()


def test_what_is_gone_already_is_not_counted(net):
    task, start = net
    masks = {"params/conv2/kernel": np.arange(12) > 2, "params/conv1/kernel": np.arange(8) > 0}
    begun = start._replace(
        variables=jprune.apply_masks(start.variables, Net(task).weight_masks(masks)), masks=masks
    )
    stage = RaiseByRank(dataclasses.replace(SHORT, max_steps=2), Budget(density=0.5), Grouped())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = stage.learner(begun, task, KEY).init().opt_state
    assert {n: int(k) for n, k in state.left.items()} == {
        "params/conv1/kernel": 3, "params/conv2/kernel": 3
    }  # fmt: skip
    assert state.alive["params/conv2/kernel"].tolist() == [False] * 3 + [True] * 9


def test_the_pace_follows_from_the_steps(net):
    """However long it is trained: groups decay enough, and all have the time to go."""
    task, _ = net
    for steps in (100, 1000, 100_000):
        train = dataclasses.replace(SHORT, epochs=steps, max_steps=steps)
        stage = RaiseByRank(train, Budget(macs=0.5), Grouped())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rise, ceiling = stage.pace(train.sgd(task), 8)
        assert rises_for(8) * ceiling / rise == pytest.approx(0.75 * steps)
        assert 0.05 / (1 - 0.9) * ceiling**2 / (2 * rise) >= 5


@pytest.mark.parametrize(("options", "says"), [
    ({"group": "row"}, "group='row'"),
    ({"u": 1.0}, r"u in \(0, 1\)"),
    ({"rise": -1.0}, "above 0"),
    ({"stop": 1.0}, r"it is in \(0, 1\)"),
    ({"ceiling": 50.0}, "more than a whole weight"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(net, options, says):
    check = lambda: check_all(
        recipes.find("increg")(Budget(macs=0.5), None, SHORT, **options), net[0]
    )
    with pytest.raises(errors.ArgumentError, match=says):
        check()


@pytest.mark.parametrize(("removed", "more", "says"), [
    ({"w": 4}, {}, "fewer than there are"),
    ({"v": 1}, {}, "for each of w"),
    ({"w": 1}, {"every": 0}, "every 1 or more"),
])  # fmt: skip
def test_groups_that_mean_nothing_are_refused(removed, more, says):
    with pytest.raises(errors.ArgumentError, match=says):
        ranked_decay(optax.sgd(0.1), rows_of(4), removed, 0.1, 1.0, **more)
