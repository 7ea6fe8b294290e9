"""Training from scratch: how long, from which values, under which masks."""

import dataclasses

import jax
import numpy as np
import pytest

from jprune import allocate, errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Prune, Train
from jprune.recipes.scratch import METHODS, BeginAnew, l1_of
from jprune.stages.reinitialise import TrainAnew, epochs_of
from jprune.train.net import Net
from jprune.train.optimizers import LEARNING_RATES
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(5)
TRAIN = Train(4, 0.05, 16)
FINETUNE = Train(2, 0.01, 16, name="finetune")


@pytest.fixture(scope="module")
def halved():
    task = toy_task("tiny")
    prune = Prune(l1_of, allocate.uniform, Budget(macs=0.5, multiple_of=2))
    return task, prune(Pruned(drawn(task), None), task, KEY)[0]


@pytest.mark.parametrize(
    ("cut", "epochs"),
    [(0.342, 243), (0.104, 178), (0.276, 220), (0.159, 190), (0.386, 260), (0.5, 320)],
)
def test_scratch_b_trains_as_long_as_in_the_paper(cut, epochs):
    """Checks [49] P1; with one step an epoch, the rate falls at int(.5 E) and int(.75 E)."""
    assert epochs_of(160, 1 / (1 - cut)) == epochs
    rate = np.array([LEARNING_RATES["step"](1.0, epochs)(step) for step in range(epochs)])
    falls = 1 + np.flatnonzero(np.diff(rate))
    assert falls.tolist() == [int(0.5 * epochs), int(0.75 * epochs)]
    np.testing.assert_allclose(rate[[0, *falls]], [1, 0.1, 0.01], rtol=1e-6)


def test_scratch_e_keeps_the_dense_nets_schedule(halved):
    """Checks [49] P2: 160 epochs, milestones 80 and 120."""
    train = Train(160, 0.1, 16, schedule="step")
    last = METHODS["scratch_e"](Budget(macs=0.5), train, FINETUNE)[-1]
    assert isinstance(last, TrainAnew)
    settled = last.settled(halved[1], halved[0])
    assert settled == dataclasses.replace(train, name="scratch")
    steps = settled.steps(48)
    rate = LEARNING_RATES["step"](0.1, steps)
    assert [step for step in range(1, steps) if rate(step) != rate(step - 1)] == [240, 360]


def test_the_ratio_is_that_of_the_compact_nets_macs(halved):
    task, pruned = halved
    dense = float(Net(task).cost({}).macs)
    _, variables = Net(task).slim(pruned)
    # 8 x 8 images, stride 2 at first: what the compact kernels cost, by hand.
    kernels = {
        name: np.size(leaf["kernel"])
        for name, leaf in variables["params"].items()
        if "kernel" in leaf
    }
    small = 16 * sum(kernels[name] for name in ("conv1", "conv2", "conv3")) + kernels["fc"]
    last = METHODS["scratch_b"](Budget(macs=0.5), TRAIN, FINETUNE)[-1]
    assert last.settled(pruned, task).epochs == int(4 * dense / small) > 4
    capped = METHODS["scratch_b"](Budget(macs=0.5), TRAIN, FINETUNE, cap=1.5)[-1]
    assert capped.settled(pruned, task).epochs == 6


def test_part_epochs_are_not_rounded_to_nothing():
    assert epochs_of(0.5, 1.7) == pytest.approx(0.85)


def test_new_values_are_drawn_for_the_small_nets_fan_in(halved):
    task, pruned = halved
    masks = {name: np.asarray(mask).copy() for name, mask in pruned.masks.items()}
    anew, _ = BeginAnew()(pruned, task, KEY)
    fresh = task.init(KEY)["params"]
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    outer, inner = kept["params/conv1/kernel"], kept["params/conv2/kernel"]
    for layer, factor in {
        "conv1": 1,
        "conv2": 8 / outer,
        "conv3": 12 / inner,
        "fc": 8 / outer,
    }.items():
        found = np.asarray(anew.variables["params"][layer]["kernel"])
        expected = np.asarray(fresh[layer]["kernel"]) * factor**0.5
        alive = found != 0
        assert 0 < alive.sum() <= found.size
        np.testing.assert_allclose(found[alive], expected[alive], rtol=1e-6)
    assert not equal(anew.variables, pruned.variables)
    for name, mask in masks.items():
        np.testing.assert_array_equal(anew.masks[name], mask)


def test_masks_of_weights_keep_the_dense_nets_values(halved):
    task, _ = halved
    prune = Prune(l1_of, allocate.global_topk, Budget(density=0.3), per="weight")
    pruned, _ = prune(Pruned(drawn(task), None), task, KEY)
    anew, _ = BeginAnew()(pruned, task, KEY)
    kernel, mask = (tree["params"]["conv2"]["kernel"] for tree in (anew.variables, pruned.masks))
    fresh = task.init(KEY)["params"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, np.where(mask, fresh, 0))


def zeros(task):
    return jax.tree.map(np.zeros_like, drawn(task))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_gone_stays_zero_and_what_is_kept_learns(halved, name):
    task, _ = halved
    recipe = METHODS[name](
        Budget(macs=0.5, multiple_of=2), None, FINETUNE, epochs=8, learning_rate=0.1
    )
    pruned, records = recipes.run(recipe, Pruned(drawn(task), None), task, KEY)
    steps = {record["stage"]: record["step"] for record in records}["scratch"]
    assert steps == 3 * recipe[-1].settled(pruned, task).epochs
    gone = jax.tree.map(np.logical_not, Net(task).weight_masks(pruned.masks))
    assert equal(
        *(jax.tree.map(np.multiply, tree, gone) for tree in (pruned.variables, zeros(task)))
    )
    dense = next(r for r in records if r["stage"] == "dense")
    before = next(r for r in records if r["stage"] == "before_finetune")["metrics"]
    after = recipes.evaluate(task, pruned.variables, "validation")
    assert after["loss"] < before["loss"]
    assert before["macs"] < 0.52 * dense["metrics"]["macs"]
    assert "dense" in pruned.saved


def test_the_small_net_is_trained_as_the_masked_one_would_be(halved):
    """The same steps, whatever the masks: the law, for a whole training."""
    task, pruned = halved
    stage = TrainAnew(TRAIN, "epochs")
    learner = stage.learner(pruned, task, KEY)
    params = learner.init().params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == Net(task).cost(pruned.masks).params
    found, _ = stage(pruned, task, KEY)
    expected, _ = TRAIN(pruned, task, KEY)
    same = lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)
    jax.tree.map(same, Net(task).slim(found)[1], Net(task).slim(expected)[1])
    moved = lambda new, old: bool((new != old).any())
    trained = jax.tree.map(moved, found.variables["params"], pruned.variables["params"])
    assert all(jax.tree.leaves(trained))


def test_a_net_that_was_read_needs_epochs():
    with pytest.raises(errors.ArgumentError, match=r"--set epochs=160,learning_rate=0\.1"):
        METHODS["scratch_e"](Budget(macs=0.5), None, FINETUNE)
    with pytest.raises(errors.ArgumentError, match="cap is 1 or more"):
        METHODS["scratch_b"](Budget(macs=0.5), TRAIN, FINETUNE, cap=0.5)
