"""HESSO: the least salient units dwindle to 0 in periods, and all others learn on."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocate, blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.hesso import hesso
from jprune.sparsify.dwindling import dwindling, saliences
from jprune.stages.dwindling import DwindleUnits
from jprune.train.net import Net
from tests.contracts import own
from tests.recipes.test_fbs import net
from tests.recipes.test_resrep import dense

KEY = jax.random.key(22)
LONG = Train(40, 0.05, 16, "cosine", name="finetune")


def two_layers():
    """Groups of three and two units with biases, random steps, and their filters."""
    rng = np.random.default_rng(4)
    shapes = {"a": (4, 3), "b": (3,), "c": (3, 2), "d": (2,), "e": (2, 2)}
    draw = lambda: {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}

    def fn(v, x):
        x = jnp.maximum(x @ v["a"] + v["b"], 0)
        return jnp.maximum(x @ v["c"] + v["d"], 0) @ v["e"]

    params, updates = draw(), draw()
    groups = jprune.trace(fn, params, jnp.ones((1, 4)))
    return groups, blocks.filters(groups, shifts=True), params, updates


def test_the_measures_by_hand():
    """Each divided by its norm over all units, at the authors' weights; the rate has no say."""
    groups, units, params, updates = two_layers()
    rows = {"a": ("a", "b"), "c": ("c", "d")}
    columns = lambda tree, names: np.concatenate([np.atleast_2d(tree[n]) for n in names], 0).T
    measured = []
    for names in rows.values():
        for x, u in zip(columns(params, names), columns(updates, names)):
            size, inner = np.linalg.norm(x), x @ -u
            cosine = inner / size / np.linalg.norm(u) + 1
            measured.append([size, size / x.size, cosine, abs(inner), inner**2 / 2])
    measured = np.array(measured)
    scaled = measured / np.linalg.norm(measured, axis=0)
    for weights in ((0.2,) * 5, (1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 1, 0, 2, 3)):
        expected = scaled @ np.array(weights)
        found = saliences(units, params, updates, weights)
        flat = np.concatenate([found[name] for name in groups.names])
        np.testing.assert_allclose(flat, expected, rtol=2e-5)
        slower = jax.tree.map(lambda u: 1e-6 * u, updates)
        again = saliences(units, params, slower, weights)
        np.testing.assert_allclose(np.concatenate([*again.values()]), expected, rtol=2e-5)
    still = saliences(units, params, jax.tree.map(jnp.zeros_like, params))
    assert all(np.isfinite(value).all() for value in still.values())


def test_a_line_down_to_0_without_steps_and_0_for_good_with_them():
    groups, units, params, _ = two_layers()
    remove = allocate.lowest_first(groups.sizes, Budget(density=0.4))
    tx = dwindling(units, remove, begin=2, period=5, periods=2)
    still = jax.tree.map(jnp.zeros_like, params)
    step = jax.jit(lambda u, state, v: tx.update(u, state, v))
    now, state, history = params, tx.init(params), []
    for _ in range(13):
        updates, state = step(still, state, now)
        now = optax.apply_updates(now, updates)
        history.append(({n: np.asarray(m) for n, m in state.alive.items()}, now))
    gone = [5 - sum(int(m.sum()) for m in alive.values()) for alive, _ in history]
    # Of the three that go, two in the first period: a density of 0.7 of five is three.
    assert gone == [0] * 2 + [2] * 5 + [3] * 6
    first, last = history[2][0], history[-1][0]
    for number, (_, at) in enumerate(history):
        for kernel, bias in (("a", "b"), ("c", "d")):
            early, late = ~first[kernel], first[kernel] & ~last[kernel]
            line = lambda begin, s=number: np.clip((begin + 5 - s - 1) / 5, 0, 1)
            factor = np.where(early, line(2), np.where(late, line(7), 1))
            np.testing.assert_allclose(at[kernel], params[kernel] * factor, rtol=1e-5)
            np.testing.assert_allclose(at[bias], params[bias] * factor, rtol=1e-5)
    np.testing.assert_array_equal(now["e"], params["e"])  # what reads a unit stays
    # With steps the others move as without, and what is 0 stays 0.
    pushed, _ = step(jax.tree.map(jnp.ones_like, params), state, now)
    after = optax.apply_updates(now, pushed)
    for kernel in ("a", "c"):
        assert not after[kernel][:, ~last[kernel]].any()
        np.testing.assert_allclose(
            after[kernel][:, last[kernel]], now[kernel][:, last[kernel]] + 1, rtol=1e-6
        )


@functools.cache
def trained():
    task = dense()
    start, _ = Train(20, 0.1, 16)(Pruned(task.init(KEY), None), task, KEY)
    return task, start, *DwindleUnits(LONG, Budget(density=0.5))(start, task, KEY)


def test_a_run_ends_at_its_budget_without_a_loss():
    task, start, last, _ = trained()
    (mask,) = last.masks.values()
    assert mask.sum() == 6
    assert not last.variables["params"]["first"][:, ~mask].any()
    assert not last.variables["params"]["second"][~mask].any()
    batch = next(task.data.batches("train", 64))
    right = lambda fn, v: float((fn(v, batch["image"]).argmax(-1) == batch["label"]).mean())
    fn, small = Net(task).slim(last)
    assert right(fn, small) >= right(task.fn, start.variables) - 0.05
    # The dense net cut at once, by the same choice, is worse.
    cut = jax.tree.map(np.array, start.variables)
    cut["params"]["first"][:, ~mask] = 0
    cut["params"]["bias"][~mask] = 0
    loss = lambda v: float(task.loss(task.fn(v, batch["image"]), batch).mean())
    assert loss(last.variables) < loss(cut)


def test_units_are_0_by_then_and_what_is_masked_stays_so():
    task = dense()
    (name,) = Net(task).groups.names
    masks = {name: np.arange(12) % 6 > 0}
    stage = DwindleUnits(dataclasses.replace(LONG, epochs=10), Budget(density=0.5), 0.25, 0.5, 4)
    learner = stage.learner(Pruned(task.init(KEY), masks), task, KEY)
    state, alive = learner.init(), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, _ = learner.step(state, batch)
        first = np.asarray(state.params["first"])
        assert not first[:, ~masks[name]].any()
        alive.append(int((np.abs(first).max(0) > 0).sum()))
    # Forty steps: periods are 10..11, 12..13, ... and a unit is 0 at the end of its own.
    assert alive[10] == 10
    assert alive[19] == alive[-1] == 6
    assert (np.diff(alive) <= 0).all()
    after = learner.finish(state)
    assert np.array_equal(np.asarray(after.masks[name]) & ~masks[name], np.zeros(12, bool))


def test_what_a_unit_of_0_still_says_is_folded():
    """sigmoid(0) = 1/2 is in the bias of what read the unit."""
    rng = np.random.default_rng(6)
    params = own.draw({"first": (6, 8), "second": (8, 3)}, seed=1) | {"b": np.zeros(3, np.float32)}

    def fn(v, x):
        p = v["params"]
        return jax.nn.sigmoid(x @ p["first"]) @ p["second"] + p["b"]

    images = rng.uniform(size=(32, 6)).astype(np.float32)
    task = own.task_of(fn, params, (6,), images=images)
    stage = DwindleUnits(Train(5, 0.05, 16), Budget(density=0.5))
    learner = stage.learner(Pruned(task.init(KEY), None), task, KEY)
    state = learner.init()
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, _ = learner.step(state, batch)
    said = task.fn(learner.variables(state), images)
    after = learner.finish(state)
    (mask,) = after.masks.values()
    assert mask.sum() == 4
    np.testing.assert_allclose(task.fn(after.variables, images), said, atol=1e-5)
    assert not after.variables["params"]["second"][~mask].any()


def test_a_run_by_name_meets_its_budget_on_a_residual_net():
    task, _ = net()
    train = Train(1, 0.05, 16, name="train", max_steps=2)
    recipe = recipes.find("hesso")(Budget(macs=0.6), train, dataclasses.replace(LONG, max_steps=3))
    pruned, records = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    assert [record["stage"] for record in records] == ["train", "dense", "dwindle",
                                                       "before_finetune"]  # fmt: skip
    cost = Net(task).cost
    assert 0.4 < float(cost(pruned.masks).macs) / float(cost({}).macs) <= 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 1.0}, r"begin is in \[0, 1\)"),
        ({"begin": 0.3}, "until is above begin"),
        ({"periods": 0}, "periods is 1 or more"),
        ({"weights": 0.0}, "not all 0"),
        ({"weights": (1.0, -1.0, 0.0, 0.0, 0.0)}, "0 or more for each of"),
        ({"weights": (1.0, 1.0)}, "weights has 2 numbers"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        hesso(Budget(macs=0.5), None, LONG, **options)


def test_budgets_out_of_reach_are_refused_before_training():
    with pytest.raises(errors.BudgetError):
        DwindleUnits(LONG, Budget(macs=0.01)).check(dense())
    with pytest.raises(errors.ArgumentError, match=r"dwindling\(period=0\)"):
        dwindling(two_layers()[1], None, begin=0, period=0)
