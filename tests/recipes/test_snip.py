"""SNIP: numbers of checks.md [46], exact counts, layers that say nothing, and its recipe."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import criteria, data, errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.snip import snip
from jprune.stages import PruneUntrained, Reinitialise
from jprune.stages.untrained import by_class, silent_layers
from jprune.stages.untrained_scores import BySensitivity
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_data, toy_task

KEY = jax.random.key(0)
SHORT = Train(1, 0.05, 16, max_steps=2)


def half_square(out, batch):
    return 0.5 * (out[:, 0] - batch["label"]) ** 2


def linear(v, x):
    return x @ v["w"]


W = {"w": np.array([[1.0], [-2.0], [0.5]])}


def scores_of(batches, has_aux=False):
    fn = (lambda v, x: (linear(v, x), ())) if has_aux else linear
    return jprune.run_criterion(criteria.sensitivity(fn, half_square, has_aux), W, batches)["w"]


@pytest.mark.parametrize("has_aux", [False, True])
def test_shares_of_a_linear_neuron(float64, has_aux):
    """Checks [46] P1: w.x - y = -1, so g w = -(1, -2, 1)."""
    batch = {"image": jnp.array([[1.0, 1.0, 2.0]]), "label": jnp.ones(1)}
    gradient = jax.grad(lambda w: half_square(linear({"w": w}, batch["image"]), batch)[0])(W["w"])
    np.testing.assert_allclose((gradient * W["w"])[:, 0], [-1, 2, -1])
    scores = scores_of([batch], has_aux)
    np.testing.assert_allclose(scores[:, 0], [0.25, 0.5, 0.25], rtol=1e-12)


def test_examples_that_disagree_cancel_whatever_the_batches(float64):
    x = jnp.array([[1.0, 1.0, 2.0], [1.0, -1.0, 2.0], [0.0, 3.0, 1.0], [9.0, 9.0, 9.0]])
    label, weight = jnp.array([1.0, 3.5, 0.0, 0.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    rows = {"image": x, "label": label, "weight": weight}
    part = lambda *of: jax.tree.map(lambda leaf: leaf[np.array(of)], rows)
    # By hand: residuals -1, 0.5, -5.5; g w is the mean of residual * x * w over three examples.
    residuals = np.array([1 - 2 + 1 - 1, 1 + 2 + 1 - 3.5, -6 + 0.5])
    change = np.abs((residuals[:, None] * x[:3] * W["w"][:, 0]).mean(0))
    for batches in ([rows], [part(0), part(1, 2, 3)]):
        scores = scores_of(batches)
        np.testing.assert_allclose(scores[:, 0], change / change.sum(), rtol=1e-12)


def test_it_is_the_gradient_of_a_mask_of_ones(float64):
    """Checks [46] P2, on a residual net."""
    task = own.per_pixel()
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), task.init(KEY))
    batch = jax.tree.map(
        lambda leaf: np.asarray(leaf, float), next(task.data.batches("train", 16, seed=0))
    )
    params, rest = task.split(variables)
    ones = jax.tree.map(jnp.ones_like, params)

    def loss(masks):
        masked = jax.tree.map(jnp.multiply, params, masks)
        return task.loss(task.fn(task.merge(masked, rest), batch["image"]), batch).mean()

    slopes = jax.tree.map(jnp.abs, jax.grad(loss)(ones))
    total = sum(leaf.sum() for leaf in jax.tree.leaves(slopes))
    scores = jprune.run_criterion(criteria.sensitivity(task.fn, task.loss), variables, [batch])
    for score, slope in zip(jax.tree.leaves(scores), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(score, slope / total, rtol=1e-6, atol=1e-12)


def test_counts_are_exact():
    """Checks [46] P3: LeNet-5-Caffe has 431,080 weights, of which 2 % are 8,622."""
    kept = jprune.allocate.global_topk(
        {"all": np.random.default_rng(0).uniform(size=431080)}, Budget(density=1 - 0.98)
    )
    assert int(kept["all"].sum()) == 8622


@pytest.fixture(scope="module")
def digits():
    return train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))


@pytest.mark.parametrize("density", [0.99, 0.5, 0.1, 0.03])
def test_the_largest_of_all_layers_stay(digits, density):
    start = Pruned(digits.init(KEY), None)
    stage = PruneUntrained(BySensitivity(), Budget(density=density), batch_size=100)
    pruned, (seen,) = stage(start, digits, KEY)
    (batch,) = stage.examples(digits, jax.random.split(KEY)[1])
    assert len(batch["label"]) == 100
    fixed = jprune.run_criterion(
        criteria.sensitivity(digits.fn, digits.loss), start.variables, [batch]
    )
    masks, scores = Net(digits).leaves(pruned.masks), Net(digits).leaves(fixed)
    assert set(masks) == {f"params/fc{n}/kernel" for n in (1, 2, 3)}
    kept = np.concatenate([np.asarray(scores[path])[masks[path]] for path in masks])
    gone = np.concatenate([np.asarray(scores[path])[~masks[path]] for path in masks])
    assert len(kept) == 50200 - round((1 - density) * 50200)
    assert kept.min() >= gone.max()
    assert seen["metrics"]["density"] == pytest.approx(density, abs=1e-5)
    assert seen["metrics"]["least_density"] == min(mask.mean() for mask in masks.values())
    for path, leaf in Net(digits).leaves(pruned.variables).items():
        first = Net(digits).leaves(start.variables)[path]
        np.testing.assert_array_equal(leaf, np.where(masks.get(path, True), first, 0))


def test_biases_of_0_go_first_where_they_compete(digits):
    start = Pruned(digits.init(KEY), None)
    budget = Budget(density=0.4)
    pruned, _ = PruneUntrained(BySensitivity(), budget, biases=True)(start, digits, KEY)
    masks = Net(digits).leaves(pruned.masks)
    assert sum(mask.size for mask in masks.values()) == 50200 + 410
    assert sum(int(mask.sum()) for mask in masks.values()) == 50610 - 30366
    assert [int(masks[f"params/fc{n}/bias"].sum()) for n in (1, 2, 3)] == [1, 1, 1]  # the floor


def test_rounds_score_what_is_left_anew(digits):
    start = Pruned(digits.init(KEY), None)
    one, three = (
        PruneUntrained(BySensitivity(), Budget(density=0.05), rounds)(start, digits, KEY)[0]
        for rounds in (1, 3)
    )
    counts = [sum(int(m.sum()) for m in jax.tree.leaves(each.masks)) for each in (one, three)]
    assert counts == [2510, 2510]
    pairs = zip(jax.tree.leaves(one.masks), jax.tree.leaves(three.masks))
    assert any((a != b).any() for a, b in pairs)


def narrow(weights):
    """Three dense layers of two channels: a chain whose paths can be counted by hand."""
    fn = lambda v, x: (
        jnp.maximum(jnp.maximum(x @ v["params"]["a"], 0) @ v["params"]["b"], 0) @ (v["params"]["c"])
    )
    return own.task_of(fn, {name: np.asarray(w, np.float32) for name, w in weights.items()}, (2,))


def test_a_layer_that_no_path_leads_through_is_named(caplog):
    task = narrow({"a": np.eye(2), "b": np.eye(2), "c": np.ones((2, 3))})
    whole, net = task.init(KEY), Net(task)
    masks = lambda a, b: {
        "params/a": np.array(a, bool), "params/b": np.array(b, bool),
        "params/c": np.ones((2, 3), bool),
    }  # fmt: skip
    for pattern, silent in (
        (masks([[1, 0], [0, 1]], [[1, 0], [0, 1]]), []),
        (masks([[1, 0], [0, 0]], [[1, 1], [1, 1]]), []),
        (masks([[1, 0], [0, 0]], [[0, 0], [0, 1]]), ["params/a", "params/b", "params/c"]),
    ):
        masked = apply_masks(whole, net.tree(pattern))
        assert silent_layers(net, whole, masked, pattern) == silent


class Cut:
    """Keeps one weight of each layer, none of them behind another."""

    def __call__(self, task, groups, key):
        del task, groups, key
        scores = {"a": [[2, 0], [0, 0.1]], "b": [[0.3, 0], [0, 2]], "c": [[2, 0, 0], [0.1, 0, 0]]}
        tree = {"params": {n: np.array(s, float) for n, s in scores.items()}, "stats": {}}
        return jprune.base.Criterion(lambda v: (), lambda s, v, b: s, lambda s, v: tree, False)


def test_a_net_without_a_path_is_refused_or_named(caplog):
    task = narrow({"a": np.ones((2, 2)), "b": np.ones((2, 2)), "c": np.ones((2, 3))})
    start, stage = Pruned(task.init(KEY), None), PruneUntrained(Cut(), Budget(density=3 / 14))
    with pytest.raises(errors.BudgetError, match="leaves no path of weights"):
        stage(start, task, KEY)
    with caplog.at_level(logging.WARNING):
        _, (seen,) = dataclasses.replace(stage, collapse="warn")(start, task, KEY)
    assert seen["metrics"]["silent_layers"] == 3
    assert "params/a, params/b, params/c" in caplog.text


def test_units_go_as_wholes():
    task = toy_task()
    stage = PruneUntrained(BySensitivity("batch"), Budget(macs=0.5), per="unit", batch_size=16)
    pruned, (seen,) = stage(Pruned(drawn(task), None), task, KEY)
    assert {n: m.shape for n, m in pruned.masks.items()} == {
        "params/conv1/kernel": (8,),
        "params/conv2/kernel": (12,),
    }
    assert 0.4 < seen["metrics"]["macs"] <= 0.5


def test_the_recipe_prunes_the_net_as_it_was_drawn_and_trains_it(digits):
    start = Pruned(digits.init(KEY), None)
    recipe = snip(Budget(density=0.05), dataclasses.replace(SHORT, batch_size=64), redraw=True)
    assert isinstance(recipe[6], Reinitialise)
    plain = tuple(stage for stage in recipe if not isinstance(stage, Reinitialise))
    before, after = own.up_to(plain, digits, "prune")
    jax.tree.map(np.testing.assert_array_equal, before.variables, start.variables)
    trained, records = recipes.run(plain, start, digits, KEY)
    new, _ = recipes.run(recipe, start, digits, KEY)
    for path, mask in Net(digits).leaves(trained.masks).items():
        weights = np.asarray(Net(digits).leaves(trained.variables)[path])
        assert not weights[~mask].any()
        np.testing.assert_array_equal(mask, Net(digits).leaves(after.masks)[path])
        assert (weights != Net(digits).leaves(new.variables)[path]).any()
    assert [r["stage"] for r in records] == [
        "train", "dense", "prune", "before_finetune", "finetune",
    ]  # fmt: skip


def test_it_beats_random_masks_of_the_same_densities(digits):
    """At 2 %, trained for six epochs; the mean over two keys."""
    budget, wins = Budget(density=0.02), []
    for seed in range(2):
        key = jax.random.key(seed)
        start = Pruned(digits.init(key), None)
        pruned, _ = PruneUntrained(BySensitivity(), budget)(start, digits, key)
        rng = np.random.default_rng(seed)
        shuffle = lambda m, rng=rng: rng.permutation(np.ravel(m)).reshape(m.shape)
        masks = jax.tree.map(shuffle, pruned.masks)
        random = Pruned(apply_masks(start.variables, masks), masks)
        losses = []
        for each in (pruned, random):
            trained, _ = Train(6, 0.1, 64)(each, digits, key)
            losses.append(recipes.evaluate(digits, trained.variables, "validation")["loss"])
        wins.append(losses[1] - losses[0])
    assert np.mean(wins) > 0.1


def test_a_batch_by_class_is_sorted_and_read_once():
    whole = by_class(toy_data(48), 5, 16, KEY)
    assert whole["label"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len({image.tobytes() for image in whole["image"]}) == 15
    assert len(by_class(toy_data(48), 99, 16, KEY)["label"]) == 48
    assert by_class(own.per_pixel().data, 2, 16, KEY) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"norms": "train"}, "write one of inference, batch"),
        ({"per": "filter"}, "per='weight' or 'unit'"),
        ({"collapse": "raise"}, "'refuse' or 'warn'"),
        ({"rounds": 0}, "numbers of 1 or more"),
        ({"batches": 0}, "numbers of 1 or more"),
        ({"per": "unit", "biases": True}, "Leave out biases"),
    ],
)
def test_options_that_cannot_be_are_refused(settings, says):
    with pytest.raises(errors.ArgumentError, match=says):
        snip(Budget(density=0.5), SHORT, **settings)


def test_a_net_that_is_read_is_refused():
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        snip(Budget(density=0.5), None)
