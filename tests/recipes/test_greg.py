"""Growing regularisation (B15): decay that grows, what it shows of the loss, what it takes away."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.blocks import Block, Blocks, Member
from jprune.sparsify import growing_decay
from jprune.stages import ChooseGroups, CutGroups, Grouped, Grow, Train
from jprune.stages import check as check_all
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = own.KEY
SHORT = Train(100, 0.05, 16, schedule="constant", max_steps=60, name="finetune")
PAIR = Blocks("row", "weight", {"w": Block(2, (Member("w", (1, None)),))})


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("lam", "expected"), [(1, (0.5, 0.666667)), (10, (0.090909, 0.166667))])
def test_where_weights_come_to_rest(lam, expected, momentum, float64):
    """0.5 h (w - 1)^2 + 0.5 lambda w^2 with h = 1 and 2: at h / (h + lambda)."""
    h = jnp.array([[1.0], [2.0]])
    grow = growing_decay(PAIR, lam / 50, lam, every=2)
    tx = optax.chain(grow, optax.sgd(0.05 * (1 - momentum), momentum))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update({"w": h * (params["w"] - 1)}, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.ones((2, 1))}
    (found, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, 2000)
    np.testing.assert_allclose(found["w"][:, 0], expected, rtol=1e-5)


def test_the_ratio_goes_to_that_of_the_curvatures():
    ratios = [(2 / (2 + lam)) / (1 / (1 + lam)) for lam in (1, 10, 1e4)]
    np.testing.assert_allclose(ratios, [4 / 3, 1.8333333, 2], rtol=1e-4)


def test_decay_grows_every_so_many_steps_up_to_the_ceiling(float64):
    chosen = {"w": np.array([True, False])}
    tx = growing_decay(PAIR, 0.1, 0.35, every=3, start=0.1, chosen=chosen, others=-0.01)
    params = {"w": jnp.array([[2.0], [3.0]])}
    state, seen = tx.init(params), []
    for _ in range(9):
        updates, state = jax.jit(tx.update)({"w": jnp.zeros((2, 1))}, state, params)
        seen.append(updates["w"][:, 0] / params["w"][:, 0])
    np.testing.assert_allclose([s[0] for s in seen], [0.2] * 3 + [0.3] * 3 + [0.35] * 3)
    np.testing.assert_allclose([s[1] for s in seen], [-0.01] * 9)


@pytest.fixture(scope="module")
def net():
    task = toy_task()
    start, _ = Train(10, 0.05, 16, max_steps=30)(Pruned(drawn(task), None), task, KEY)
    return task, start


BUDGET = Budget(macs=0.5)


def test_the_smallest_mean_weights_of_every_group_are_chosen(net):
    task, start = net
    after, (record,) = ChooseGroups(BUDGET)(start, task, KEY)
    params = jax.tree.map(np.asarray, start.variables["params"])
    mean = {
        "params/conv2/kernel": np.abs(params["conv2"]["kernel"]).mean((0, 1, 2)),
        "params/conv1/kernel": np.concatenate(
            [np.abs(params[n]["kernel"]).reshape(-1, 8) for n in ("conv1", "conv3")]
        ).mean(0),
    }
    for name, alive in after.extra["alive"].items():
        assert 1 <= alive.sum() < alive.size
        assert mean[name][alive].min() >= mean[name][~alive].max()
    gone = sum(int((~alive).sum()) for alive in after.extra["alive"].values())
    assert record["metrics"]["chosen"] == gone


def test_chosen_groups_vanish_and_the_others_do_not(net):
    """And with them, scales and shifts: the cut changes nothing."""
    task, start = net
    chosen, _ = ChooseGroups(BUDGET)(start, task, KEY)
    stage = Grow(dataclasses.replace(SHORT, max_steps=120), BUDGET, Grouped())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after, _ = stage(chosen, task, KEY)
    norms = blocks.norms(Grouped().of(Net(task), BUDGET), after.variables)
    for name, alive in chosen.extra["alive"].items():
        assert norms[name][~alive].max() < 1e-2 * norms[name][alive].min()
    _, (at_once,) = CutGroups(BUDGET)(chosen, task, KEY)
    pruned, (record,) = CutGroups(BUDGET)(after, task, KEY)
    assert record["metrics"]["drift"] < 1e-2 < 0.1 < at_once["metrics"]["drift"]
    assert record["metrics"]["decayed"] < 5e-3
    assert 0.4 < record["metrics"]["macs"] <= 0.5
    assert pruned.extra is None


def two_curvatures():
    """Units of equal size whose second half the loss hardly holds: inputs are a tenth there."""
    params = {"a": np.eye(8, dtype=np.float32), "b": np.eye(8, dtype=np.float32)}
    scale = np.where(np.arange(8) % 2 == 0, 1.0, 0.1).astype(np.float32)

    def fn(v, x):
        return jax.nn.relu(x @ v["params"]["a"]) @ v["params"]["b"]

    images = np.abs(np.random.default_rng(0).normal(size=(64, 8))).astype(np.float32) * scale
    squares = lambda out, batch: ((out - batch["label"]) ** 2).sum(-1)
    return own.task_of(fn, params, (8,), images=images, labels=images, loss=squares,
                       metrics=lambda out, batch: {"loss": squares(out, batch)})  # fmt: skip


def test_the_response_tells_apart_what_size_does_not():
    """All units are equal in size; those in flat directions give way, and are chosen."""
    task = two_curvatures()
    start = Pruned(task.init(KEY), None)
    budget = Budget(density=0.5)
    by_size, _ = ChooseGroups(budget)(start, task, KEY)
    assert by_size.extra["alive"]["params/a"].tolist() != [True, False] * 4
    train = dataclasses.replace(SHORT, weight_decay=0.0, batch_size=32)
    after, _ = Grow(train, budget, Grouped(), ceiling=0.1, of_all=True)(start, task, KEY)
    by_response, _ = ChooseGroups(budget)(after, task, KEY)
    assert by_response.extra["alive"]["params/a"].tolist() == [True, False] * 4


def test_both_variants_end_within_the_budget(net):
    task, start = net
    short = dataclasses.replace(SHORT, max_steps=2)
    for pick, names in (
        ("l1", ["choose", "grow", "prune", "before_finetune", "finetune"]),
        ("response", ["respond", "choose", "grow", "prune", "before_finetune", "finetune"]),
    ):
        recipe = recipes.find("greg")(BUDGET, None, short, pick=pick)
        assert [stage.name for stage in recipe][2:] == names
        push = next(stage for stage in recipe if stage.name == "grow")
        assert (push.start, push.others) == ((0.01, -1e-4) if pick == "response" else (0, 0))
        done, records = recipes.run(recipe, start, task, KEY)
        (cut,) = (r["metrics"] for r in records if r["stage"] == "prune")
        assert 0.4 < cut["macs"] <= 0.5
        for path, mask in Net(task).leaves(Net(task).weight_masks(done.masks)).items():
            assert not np.asarray(Net(task).leaves(done.variables)[path])[~np.asarray(mask)].any()


def test_a_growth_that_does_not_come_to_the_ceiling_is_said(net):
    task, start = net
    chosen, _ = ChooseGroups(BUDGET)(start, task, KEY)
    with pytest.warns(UserWarning, match="and not to ceiling=1"):
        Grow(SHORT, BUDGET, Grouped(), growth=1e-4).learner(chosen, task, KEY)


@pytest.mark.parametrize(("options", "says"), [
    ({"pick": "l2"}, "pick is 'l1' or 'response'"),
    ({"stop": 0.0}, r"stop in \(0, 1\)"),
    ({"group": "row"}, "group='row'"),
    ({"ceiling": 0.0}, "ceiling above the start"),
    ({"growth": -1.0}, "growth is above 0"),
    ({"every": 0}, "every 1 or more"),
    ({"ceiling": 50.0}, "more than a whole weight"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(net, options, says):
    check = lambda: check_all(recipes.find("greg")(BUDGET, None, SHORT, **options), net[0])
    with pytest.raises(errors.ArgumentError, match=says):
        check()


def test_stages_in_another_order_say_what_is_missing(net):
    task, start = net
    for stage in (Grow(SHORT, BUDGET, Grouped()), CutGroups(BUDGET)):
        with pytest.raises(errors.ArgumentError, match=r"Put ChooseGroups\(budget\) before Grow"):
            stage(start, task, KEY)


@pytest.mark.parametrize(("settings", "says"), [
    ({"ceiling": -1.0}, "ceiling at least the start"),
    ({"chosen": {"w": np.ones(3, bool)}}, "bool .groups. for each of w"),
])  # fmt: skip
def test_transformations_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(errors.ArgumentError, match=says):
        growing_decay(PAIR, **({"growth": 0.1, "ceiling": 1.0} | settings))
