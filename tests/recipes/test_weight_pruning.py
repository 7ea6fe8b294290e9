"""Single weights: pruned by a recipe, and slim where whole units are left with nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import allocate, criteria, data, errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Evaluate, Prune, Save, Train
from jprune.recipes.three_step import METHODS, three_step
from jprune.stages.prune import l1_of, taylor_of
from jprune.train.net import Net
from jprune.train.task import distilled


@pytest.fixture(scope="module")
def task():
    return train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))


@pytest.fixture
def start(task):
    return Pruned(task.init(jax.random.key(0)), None)


def magnitude(budget, allocator=allocate.global_topk, **settings):
    return Prune(l1_of, allocator, budget, per="weight", **settings)


def test_the_smallest_weights_of_all_kernels_go(task, start):
    draw = lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    start = start._replace(variables=jax.tree.map(draw, start.variables))
    pruned, (record,) = magnitude(Budget(density=0.1))(start, task, jax.random.key(1))
    kernels = {name: layer["kernel"] for name, layer in start.variables["params"].items()}
    flat = np.sort(np.abs(np.concatenate([np.ravel(k) for k in kernels.values()])))
    threshold = flat[-5020]  # a tenth of 64 * 300 + 300 * 100 + 100 * 10 = 50,200
    for name, kernel in kernels.items():
        mask = pruned.masks["params"][name]["kernel"]
        assert mask[np.abs(kernel) > threshold].all()
        assert not mask[np.abs(kernel) < threshold].any()
        assert pruned.masks["params"][name]["bias"] is None
        kept = pruned.variables["params"][name]["kernel"]
        np.testing.assert_array_equal(kept, np.where(mask, kernel, 0))
    assert record["metrics"]["density"] == pytest.approx(0.1)
    assert record["metrics"]["macs"] == pytest.approx(0.1)  # dense layers: a MAC is a weight
    assert record["metrics"]["params"] == pytest.approx((5020 + 410) / (50200 + 410))


def test_a_layer_keeps_its_best_weight(task, start):
    """As drawn, the weights of fc2 are all smaller than the best tenth."""
    pruned, _ = magnitude(Budget(density=0.1))(start, task, jax.random.key(1))
    kernel = np.asarray(start.variables["params"]["fc2"]["kernel"])
    mask = pruned.masks["params"]["fc2"]["kernel"]
    assert np.flatnonzero(mask) == [np.abs(kernel).argmax()]


def test_what_is_gone_stays_gone_and_stays_zero_in_training(task, start):
    key = jax.random.key(1)
    first, _ = magnitude(Budget(density=0.5))(start, task, key)
    trained, _ = Train(1, 0.01, 64, max_steps=3)(first, task, key)
    second, _ = magnitude(Budget(density=0.25), allocate.uniform)(trained, task, key)
    for name, count in (("fc1", 19200), ("fc2", 30000), ("fc3", 1000)):
        before, after = (p.masks["params"][name]["kernel"] for p in (first, second))
        assert not np.any(after & ~before)
        # Uniform over what is left: a layer that has less than its share keeps all of it.
        assert np.sum(after) == min(count // 4, np.sum(before))
        assert not np.any(np.asarray(trained.variables["params"][name]["kernel"])[~before])


def test_a_group_that_is_frozen_keeps_all_weights(task, start):
    budget = Budget(density=0.3, floors={"params/fc2/kernel": 100})
    pruned, _ = magnitude(budget)(start, task, jax.random.key(1))
    assert pruned.masks["params"]["fc2"]["kernel"] is None
    assert np.mean(pruned.masks["params"]["fc1"]["kernel"]) < 0.5


def test_units_that_nothing_reads_go_and_so_does_what_only_they_read(task, start):
    masks = jax.tree.map(lambda leaf: None, start.variables)
    second, third = np.ones((300, 100), bool), np.ones((100, 10), bool)
    third[40:] = False  # nobody reads the last 60 units of fc2 ...
    second[:120, :40] = False  # ... and of the first 120 of fc1 nothing but these 60 reads
    masks["params"]["fc2"]["kernel"], masks["params"]["fc3"]["kernel"] = second, third
    pruned = start._replace(variables=apply_masks(start.variables, masks), masks=masks)
    units = Net(task).unit_masks(pruned)
    np.testing.assert_array_equal(units["params/fc2/kernel"], np.arange(100) < 40)
    np.testing.assert_array_equal(units["params/fc1/kernel"], np.arange(300) >= 120)
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(jax.random.key(2), (7, 8, 8, 1))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-6 * np.abs(expected).max())
    _, (record,) = Evaluate("validation", slim=True)(pruned, task, jax.random.key(0))
    assert record["metrics"]["macs"] == 64 * 180 + 180 * 40 + 40 * 10


def test_random_weights_are_drawn_one_by_one(task, start):
    recipe = METHODS["random"](Budget(density=0.3), None, Train(1, 0.01), per="weight")
    (prune,) = (stage for stage in recipe if isinstance(stage, Prune))
    pruned, _ = prune(start, task, jax.random.key(1))
    for layer in pruned.masks["params"].values():
        by_unit = np.asarray(layer["kernel"]).mean(axis=0)
        assert layer["kernel"].mean() == pytest.approx(0.3, abs=1e-3)  # uniform, layer by layer
        assert by_unit.min() > 0.05  # and of no unit nothing
        assert by_unit.max() < 0.65  # or all


def test_a_criterion_of_units_is_refused(task, start):
    prune = Prune(taylor_of, allocate.uniform, Budget(density=0.5), batches=1, per="weight")
    with pytest.raises(errors.ArgumentError, match="scores units; write per='unit'"):
        prune(start, task, jax.random.key(0))
    with pytest.raises(errors.ArgumentError, match="'unit' or 'weight'"):
        Prune(l1_of, allocate.uniform, Budget(density=0.5), per="filter")


def test_rounds_of_a_recipe_reach_the_density(task, start):
    finetune = Train(1, 0.01, 64, max_steps=2, name="finetune")
    recipe = three_step(
        Budget(density=0.04), None, finetune, criterion=l1_of, schedule="iterative", rounds=2,
        per="weight",
    )  # fmt: skip
    pruned, records = recipes.run(recipe, start, task, jax.random.key(3))
    found = [r["metrics"]["density"] for r in records if r["stage"] == "prune"]
    assert found == pytest.approx([0.2, 0.04], abs=1e-4)
    for name, mask in pruned.masks["params"].items():
        kernel = np.asarray(pruned.variables["params"][name]["kernel"])
        assert not kernel[~np.asarray(mask["kernel"])].any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds", "rounds of l1 wants a value: write rounds=... with int or null"),
        ("round=3", "did you mean rounds"),
        ("rounds=many", "takes int or null, not 'many'"),
        ("per=3", "takes str, not '3'"),
    ],
)
def test_options_that_cannot_be_read_say_what_is_taken(text, says):
    with pytest.raises(errors.ArgumentError, match=says):
        recipes.read_options("l1", [text])


def test_a_teacher_is_part_of_the_loss(task):
    """By hand: T = 2, teacher softmax (3/4, 1/4) at T, the net (1/2, 1/2)."""
    taught = distilled(task, task.init(jax.random.key(0)), weight=0.25, temperature=2.0)
    own, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2 * np.log(3.0), 0.0]])
    divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    expected = 0.75 * np.log(2) + 0.25 * 4 * divergence
    batch = {"label": jnp.array([1])}
    np.testing.assert_allclose(taught.loss((own, teacher), batch), [expected], rtol=1e-5)
    gradient = jax.grad(lambda t: taught.loss((own, t), batch).sum())
    seen = jax.grad(
        lambda v: taught.train_fn(v, jnp.ones((1, 8, 8, 1)), jax.random.key(0))[0][1].sum()
    )(task.init(jax.random.key(1)))
    assert gradient(teacher).any()  # the loss depends on the teacher's outputs,
    assert not any(leaf.any() for leaf in jax.tree.leaves(seen))  # and they not on the net


def test_distillation_learns_from_the_net_that_was_saved(task, start):
    finetune = Train(1, 0.05, 64, max_steps=30, distill=1.0, name="finetune")
    with pytest.raises(errors.ArgumentError, match=r"Put Save\('dense'\) before it"):
        finetune.learner(start, task, jax.random.key(0))
    saved, _ = Save("dense")(start, task, jax.random.key(0))
    other = saved._replace(variables=task.init(jax.random.key(7)))
    taught, _ = finetune(other, task, jax.random.key(0))
    x = next(iter(task.data.batches("validation", 200)))["image"]
    near = lambda variables: float(
        jnp.mean((task.fn(variables, x) - task.fn(start.variables, x)) ** 2)
    )
    assert near(taught.variables) < 0.5 * near(other.variables)


def test_a_criterion_that_needs_no_kernel_is_not_asked_for_biases(task, start):
    """Biases have scores too, and none of them is a candidate."""
    scores = scores_of(task, start)
    assert scores["params"]["fc1"]["bias"].shape == (300,)
    masks = magnitude(Budget(density=0.5)).of_weights(start, task, scores)
    assert masks["params"]["fc1"]["bias"] is None


def scores_of(task, start):
    criterion = criteria.magnitude(1)
    return criterion.score(criterion.init(start.variables), start.variables)
