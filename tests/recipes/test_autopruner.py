"""Codes that are read off a batch: their numbers, their controller, and how they end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import errors, recipes, trace
from jprune.base import Budget, Pruned
from jprune.learners import (
    Sharpening,
    batch_codes,
    gated_start,
    gated_task,
    majority,
    mean_pull,
    seen_shapes,
)
from jprune.learners.batch_codes import pooled
from jprune.learners.sharpening import alpha_at
from jprune.recipes import Train
from jprune.recipes.autopruner import autopruner
from jprune.stages.batch_codes import ByCodes
from jprune.stages.unit_gates import CutGates, Gated, TrainGates
from jprune.train.net import Net
from tests.contracts import own

KEY = jax.random.key(44)
UNITS = "params/first"


def small(examples=64):
    """A dense net of twelve units whose labels are those of three directions."""
    rng = np.random.default_rng(2)
    images = rng.uniform(size=(examples, 6)).astype(np.float32)
    labels = images[:, :3].argmax(-1).astype(np.int32)
    fn = lambda v, x: jax.nn.relu(x @ v["params"]["first"]) @ v["params"]["second"]
    params = own.draw({"first": (6, 12), "second": (12, 3)}, seed=1)
    return own.task_of(fn, params, (6,), images=images, labels=labels)


@functools.cache
def trained():
    """Forty epochs under codes that keep half."""
    task = small()
    stage = TrainGates(
        Train(40, 0.05, 16, "constant"), Budget(density=0.5), Gated(), ByCodes(Sharpening())
    )
    learner = stage.learner(Pruned(task.init(KEY), None), task, KEY)
    state, seen = learner.init(), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, metrics = learner.step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    carried = jax.tree.map(np.array, state.rest["carried"])
    return task, learner.finish(state), carried, seen


def test_codes_sharpen_with_alpha():
    """Checks [44] P1."""
    with jax.enable_x64(True):
        v = jnp.array([0.5, -0.2, 0.1, -1.0])
        gating = batch_codes({"a": (4,)}, {"a": 0.5}, 10)
        trained = {"a": {"kernel": jnp.zeros((4, 4)), "bias": v}}
        for alpha, codes, mean in (
            (1.0, [0.622459, 0.450166, 0.524979, 0.268941], 0.466636),
            (100.0, [1, 0, 0.999955, 0], 0.499989),
        ):
            found = gating.read("a", trained, {"alpha": {"a": alpha}}, jnp.ones(4))
            np.testing.assert_allclose(found, codes, atol=6e-7)
            np.testing.assert_allclose(found.mean(), mean, atol=6e-7)


def test_the_pull_is_as_strong_as_the_vote_is_off():
    """Checks [44] P2; and the vote against counting by hand."""
    for ones, strength in ((1, 25), (2, 0), (3, 25)):
        votes = np.tile(np.arange(4) < ones, (20, 1)) * 0.8 + 0.1
        code, gone, found = majority(votes, 0.5)
        assert (code.sum(), gone, round(float(found), 9)) == (ones, 1 - ones / 4, strength)
    votes = np.random.default_rng(0).uniform(size=(7, 50))
    counted = [sum(column > 0.5) > 3.5 for column in votes.T]
    np.testing.assert_array_equal(majority(votes, 0.5)[0], counted)


def test_the_penalty_and_its_slope():
    """Checks [44] P3."""
    with jax.enable_x64(True):
        v = jnp.array([0.5, -0.2, 0.1, -1.0])
        of = lambda v: mean_pull(jax.nn.sigmoid(v), 0.5, 10)
        np.testing.assert_allclose(of(v), 0.01113124, rtol=1e-6)
        expected = [-0.039203, -0.041290, -0.041600, -0.032798]
        np.testing.assert_allclose(jax.grad(of)(v), expected, atol=6e-7)


def test_alpha_rises_in_steps_and_windows_are_pooled():
    sharp = Sharpening(0.1, 2.0, every=3)
    found = [alpha_at(sharp, step, 12) for step in range(12)]
    np.testing.assert_allclose(found, np.repeat(0.1 + 1.9 * np.arange(4) / 4, 3))
    seen = np.random.default_rng(0).uniform(size=(2, 9, 8)).astype(np.float32)
    windows = [[[m[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max() for j in range(4)] for i in range(4)]
               for m in seen]  # fmt: skip
    np.testing.assert_array_equal(pooled(jnp.array(seen)), np.ravel(windows))
    np.testing.assert_array_equal(pooled(jnp.array(seen[0])), np.ravel(seen[0]))


def test_one_code_for_the_batch_whatever_the_layout():
    """Channels first and last, and behind a flattening: the same codes, outputs and slopes."""
    conv = own.conv
    kernels = own.draw({"a": (3, 3, 1, 4), "out": (64, 3)})
    x = np.random.default_rng(0).uniform(size=(5, 4, 4, 1)).astype(np.float32)

    def last(v, x):
        return jax.nn.relu(conv(x, v["params"]["a"])).reshape(len(x), -1) @ v["params"]["out"]

    def first(v, x):
        x = jax.nn.relu(conv(x.transpose(0, 3, 1, 2), v["params"]["a"], layout="NCHW"))
        return x.reshape(len(x), -1) @ v["params"]["out"]

    outs = kernels["out"].reshape(4, 4, 4, 3)  # [h, w, c, classes]
    turned = {
        "a": kernels["a"].transpose(3, 2, 0, 1), "out": outs.transpose(2, 0, 1, 3).reshape(64, 3)
    }  # fmt: skip
    results = []
    for fn, params in ((last, kernels), (first, turned)):
        task = own.task_of(fn, params, (4, 4, 1))
        groups, variables = Net(task).groups, task.init(KEY)
        seen = seen_shapes(fn, groups, ["params/a"], variables, x)
        assert seen == {"params/a": (4, 16)}
        gating = batch_codes(seen, {"params/a": 0.5}, 10)
        begun = gated_start(gating, variables, KEY)
        run = jax.jit(gated_task(task, groups, gating).train_fn)
        (out, _, _), (_, gates) = run(begun, x, KEY)
        results.append((out, gates["params/a"]))
        # By hand: the mean of the batch through the coder, and gates on what is read.
        v = begun["gates"]["params/a"]
        maps = jax.nn.relu(conv(x, kernels["a"]))
        flat = maps.mean(0).transpose(2, 0, 1).reshape(-1)
        code = jax.nn.sigmoid(flat @ v["kernel"] + v["bias"])
        np.testing.assert_allclose(gates["params/a"], code, atol=1e-5)
        expected = (maps * code).reshape(5, -1) @ kernels["out"]
        np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-5)


def test_guards_raise_alpha_where_too_much_is_closed_or_too_little_decided():
    sharp = Sharpening(1.0, 2.0, every=5, vote=2, settle=3)
    gating = batch_codes({"a": (20,), "b": (20,)}, {"a": 0.5, "b": 0.5}, 100, sharp)
    carried, after = gating.start, jax.jit(gating.after)
    closed, soft = jnp.full(20, 0.01), jnp.full(20, 0.55)
    raised = []
    for _ in range(6):
        _, carried = after({}, carried, {"a": closed, "b": soft})
        raised.append([float(carried["raised"][name]) for name in "ab"])
    # Votes after 2, 4 and 6 steps see all of a closed; b is not decided at step 3.
    assert raised == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 1], [3, 1]]
    np.testing.assert_allclose(carried["threshold"]["a"], 0.80, atol=1e-6)
    np.testing.assert_allclose(carried["threshold"]["b"], 0.95, atol=1e-6)
    assert float(carried["strength"]["a"]) == 50
    assert float(carried["alpha"]["a"]) == pytest.approx(1 + 5 / 100 + 3)


def test_codes_end_at_0_and_1_and_keep_the_ratio():
    """What the method must show: decided in the end, agreed on, and as many as were asked for."""
    task, _, carried, seen = trained()
    assert seen[0]["decided"] < 0.9
    assert np.mean([entry["decided"] for entry in seen[-10:]]) > 0.95
    assert np.mean([entry["agree"] for entry in seen[-10:]]) > 0.95
    assert abs(carried["code"][UNITS].mean() - 0.5) <= 1 / 12 + 1e-6
    assert {*np.unique(carried["code"][UNITS])} == {0.0, 1.0}
    # Of three classes. Which units the codes choose hangs on the last bits of sums, and so does
    # what a batch of sixteen says.
    assert np.mean([entry["accuracy"] for entry in seen[-10:]]) > 0.5
    del task


def test_what_is_evaluated_has_the_vote_and_not_the_code_of_its_batch():
    task, net, carried, _ = trained()
    pruned, records = CutGates(Budget(density=0.5), Gated(), "layer")(net, task, KEY)
    assert int(pruned.masks[UNITS].sum()) == 6
    assert records[0]["metrics"]["settled"] <= 1 / 12 + 1e-6
    x = np.random.default_rng(3).uniform(size=(4, 6)).astype(np.float32)
    weights = pruned.variables["params"]
    by_hand = jax.nn.relu(x @ weights["first"]) * pruned.masks[UNITS] @ weights["second"]
    np.testing.assert_allclose(task.fn(pruned.variables, x), by_hand, atol=1e-5)
    kept = carried["code"][UNITS] > 0.5
    agree = (pruned.masks[UNITS] == kept).mean()
    assert agree >= 11 / 12 - 1e-6


def test_parts_are_pruned_one_after_another():
    fn = lambda v, x: (
        jax.nn.relu(jax.nn.relu(x @ v["params"]["a"]) @ v["params"]["b"]) @ (v["params"]["c"])
    )
    task = own.task_of(fn, own.draw({"a": (5, 8), "b": (8, 6), "c": (6, 3)}), (5,))
    short = Train(2, 0.05, 16)
    recipe = autopruner(Budget(density=0.5), None, short, parts=2)
    begun, after = Pruned(task.init(KEY), None), []
    for stage in recipe:
        begun, _ = stage(begun, task, KEY)
        if stage.name == "prune":
            after.append({name: int(mask.sum()) for name, mask in begun.masks.items()})
    assert after == [{"params/a": 4, "params/b": 6}, {"params/a": 4, "params/b": 3}]
    assert not np.asarray(begun.variables["params"]["a"])[:, ~begun.masks["params/a"]].any()
    with pytest.raises(errors.ArgumentError, match="Write parts=2 or less"):
        recipes.run(autopruner(Budget(density=0.5), None, short, parts=3), begun, task, KEY)


def test_what_cannot_be_is_refused():
    for options, says in (
        ({"alpha": 0.0}, "0 < start <= stop"),
        ({"spread": -1.0}, "all of them are 0 or more"),
        ({"parts": 0}, "parts is 1 or more"),
        ({"share": 1.0}, r"share is in \(0, 1\)"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            autopruner(Budget(macs=0.5), None, Train(1, 0.1), **options)
    with pytest.raises(errors.ArgumentError, match=r"the fraction kept, in \(0, 1\]"):
        batch_codes({"a": (3,)}, {"a": 0.0}, 10)

    def looped(v, x):
        hidden = jnp.maximum(x @ v["first"], 0)
        turn = lambda h, _: (h, h @ v["second"])
        return jax.lax.scan(turn, hidden, None, length=2)[1][-1]

    variables, x = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}, jnp.ones((1, 3))
    groups = trace(looped, variables, x)
    if groups.sizes:
        with pytest.raises(errors.StructureError, match="no code can be read there"):
            seen_shapes(looped, groups, groups.names, variables, x)
