"""Edge-popup: masks that are learned while no weight moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from experiments.claims import e10
from experiments.claims.claim import run as run_claim
from jprune import errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.learners import draw_scores, draw_weights, kept_of, popup_task, top_masks
from jprune.learners.popup import learned_masks
from jprune.recipes import Train
from jprune.recipes.edge_popup import edge_popup
from jprune.stages.frame import fractions
from jprune.stages.popup import Popup, Redraw, shared_fraction
from jprune.train.net import Net
from tests.nets import conv
from tests.toys import CLASSES, SHAPE, drawn, equal, toy_data, toy_task

KEY = jax.random.key(6)
SHORT = Train(50, 0.1, 16, max_steps=50, schedule="cosine", name="popup")


@pytest.fixture(scope="module")
def lenet():
    task = train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data())
    return task, Pruned(drawn(task), None)


def test_counts_are_truncated_and_ties_go_by_index():
    """Checks [10] P1."""
    for size, k, kept in ((10, 0.3, 3), (7, 0.5, 4), (100, 0.29, 29), (5, 1e-9, 1), (5, 1.0, 5)):
        assert kept_of(size, k) == kept
        assert top_masks({"w": np.ones(size)}, k)["w"].sum() == kept
        np.testing.assert_array_equal(
            top_masks({"w": np.ones(size)}, k)["w"], np.arange(size) < kept
        )
    scores = jnp.array([0.3, -0.9, 0.1, 0.5])
    expected = [False, True, False, True]
    np.testing.assert_array_equal(top_masks({"w": scores}, 0.5)["w"], expected)
    np.testing.assert_array_equal(
        jax.jit(lambda s: top_masks({"w": s}, 0.5))(scores)["w"], expected
    )


def test_every_score_gets_the_gradient_of_its_weight():
    """Checks [10] P2: sign(s) w x g, masked ones too."""
    rng = np.random.default_rng(0)
    s, w, x, g = (rng.normal(size=shape) for shape in ((5, 3), (5, 3), 5, 3))
    out = lambda s: jnp.asarray(x) @ (jnp.asarray(w) * learned_masks({"w": s}, 0.4)["w"]) @ g
    gradient = jax.grad(out)(jnp.asarray(s))
    np.testing.assert_allclose(gradient, np.sign(s) * w * np.outer(x, g), rtol=1e-5)


def test_weights_stay_bit_for_bit_while_masks_learn(lenet):
    task, start = lenet
    begun, _ = Redraw(Budget(density=0.3), "signed_constant")(start, task, KEY)
    learner = Popup(Budget(density=0.3), SHORT).learner(begun, task, KEY)
    state = learner.init()
    first = jax.tree.map(np.array, state.params)
    losses = []
    for _, batch in zip(range(50), learner.batches(0)):
        state, seen = learner.step(state, batch)
        losses.append(float(seen["loss"]))
    assert equal(state.rest, begun.variables)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    masks = top_masks(first, 0.3)
    for name in ("fc1", "fc2", "fc3"):
        mask, before = masks["params"][name]["kernel"], first["params"][name]["kernel"]
        after = state.params["params"][name]["kernel"]
        moved = before != np.asarray(after)
        # A score without gradient (pixels and units that are 0) is decayed all the same.
        assert moved[~np.asarray(mask)].mean() > 0.99
    pruned = learner.finish(state)
    for name, size in (("fc1", 19200), ("fc2", 30000), ("fc3", 300)):
        mask = np.asarray(pruned.masks["params"][name]["kernel"])
        weights = np.asarray(begun.variables["params"][name]["kernel"])
        np.testing.assert_array_equal(
            pruned.variables["params"][name]["kernel"], np.where(mask, weights, 0)
        )
        assert mask.sum() == kept_of(size, 0.3)
        assert pruned.masks["params"][name]["bias"] is None
        assert not np.any(pruned.variables["params"][name]["bias"])
    assert equal(pruned.extra, jax.tree.map(jnp.asarray, state.params))


def test_norms_learn_statistics_and_nothing_else():
    task = toy_task()
    fixed = drawn(task)
    scores = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else None, fixed)
    popup = popup_task(task, 0.5)
    x = next(task.data.batches("train", 4))["image"]
    _, new = popup.train_fn({"scores": scores, "fixed": fixed}, x, KEY)
    after = popup.update({"scores": scores, "fixed": fixed}, new)
    learned, rest = popup.split(after)
    assert {leaf.ndim for leaf in jax.tree.leaves(learned)} == {2, 4}
    assert equal(rest["params"], fixed["params"])
    for name in ("norm1", "norm2", "norm3"):
        assert np.all(rest["stats"][name]["mean"] != fixed["stats"][name]["mean"])


def test_budgets_are_met_by_one_fraction_of_every_layer():
    task = toy_task()
    scores = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else None, drawn(task))
    for kind in ("params", "macs"):
        k = shared_fraction(task, Budget(**{kind: 0.4}))
        seen = fractions(task, top_masks(scores, k))
        assert seen[kind] == pytest.approx(0.4, abs=2e-3)
        assert seen[kind] <= 0.4 + 1e-6
    stage = Popup(Budget(density=0.4, floors={"params/conv2/kernel": 12}), SHORT)
    learner = stage.learner(Pruned(drawn(task), None), task, KEY)
    assert learner.init().params["params"]["conv2"]["kernel"] is None


def test_weights_are_drawn_as_in_the_paper():
    like = {"w": jnp.zeros((5, 5, 20, 50)), "v": jnp.zeros((30, 400)), "b": None}
    fn = lambda v, x, y: (conv(x, v["w"]), v["v"] @ y)
    layers = jprune.trace(fn, like, jnp.ones((1, 5, 5, 20)), jnp.ones(400)).layers
    for how, k in (("signed_constant", None), ("kaiming_normal", 0.3)):
        drawn_ = draw_weights(KEY, like, layers, how, k)
        assert drawn_["b"] is None
        for name, fan in (("w", 500), ("v", 400)):
            std = np.sqrt(2 / (fan * (k or 1.0)))
            assert np.std(drawn_[name]) == pytest.approx(std, rel=0.02)
            if how == "signed_constant":
                np.testing.assert_allclose(np.abs(drawn_[name]), std, rtol=1e-6)
    scores = draw_scores(KEY, like, layers)
    assert np.abs(scores["v"]).max() <= 1 / 20
    assert np.std(scores["v"]) == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
    with pytest.raises(errors.StructureError, match="b has no fan-in"):
        draw_scores(KEY, {**like, "b": jnp.zeros((3, 3))}, layers)


def test_the_recipe_draws_trains_and_slims(lenet):
    task, start = lenet
    recipe = edge_popup(Budget(density=0.5), dataclasses.replace(SHORT, max_steps=2), scaled=True)
    pruned, records = recipes.run(recipe, start, task, KEY)
    assert [r["stage"] for r in records] == ["popup", "dense", "popup", "before_finetune"]
    kernel = np.asarray(pruned.variables["params"]["fc2"]["kernel"])
    np.testing.assert_allclose(np.unique(np.abs(kernel)), [0, np.sqrt(2 / 150)], rtol=1e-6)
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(KEY, (5, *SHAPE))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())


def test_what_cannot_be_is_refused(lenet):
    task, start = lenet
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        edge_popup(Budget(density=0.5), None)
    with pytest.raises(errors.ArgumentError, match="write one of signed_constant, kaiming_normal"):
        edge_popup(Budget(density=0.5), SHORT, init="xavier")
    with pytest.raises(errors.ArgumentError, match=r"k=0 is outside \(0, 1\]"):
        top_masks({"w": np.ones(3)}, 0)
    with pytest.raises(errors.ArgumentError, match="the scores hold NaN"):
        top_masks({"w": np.array([1.0, np.nan])}, 0.5)
    with pytest.raises(errors.BudgetError, match="one weight in every layer"):
        Popup(Budget(params=1e-7), SHORT).learner(start, task, KEY)
    linear = lambda v, x: x.reshape(x.shape[0], -1)[:, :3] + v["params"]["b"]
    bare = popup_task(task, 0.5)._replace(
        fn=linear, init=lambda key: {"params": {"b": jnp.zeros(3)}, "stats": {}},
        split=task.split, merge=task.merge,
    )  # fmt: skip
    with pytest.raises(errors.ArgumentError, match="nothing of lenet300 is prunable"):
        Popup(Budget(density=0.5), SHORT).learner(Pruned(bare.init(KEY), None), bare, KEY)


@pytest.mark.slow
def test_e10_has_a_row_an_arm():
    found = run_claim(e10.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["signed_constant", "target", "subset_sum"]
    assert [row["moved"] for row in found] == [0, None, None]
    assert 0 < found[2]["within"] < 1
