"""Three dimensions: numbers of checks.md [52], fits against held-out points, sizes of images."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import x9
from experiments.claims.claim import run as run_claim
from jprune import data, errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.recipes import CheckedStage, Evaluate, Rewind, Train
from jprune.recipes.three_dimensions import three_dimensions
from jprune.search import Polynomial, fit, optimum
from jprune.stages.dimensions import (
    Narrow,
    Observe,
    Optimum,
    fewer_blocks,
    fewer_units,
    sizes_of,
    where,
)
from jprune.train.net import Net
from jprune.train.task import at_resolution, at_size, check_size, resize, seen_at
from tests.law import relative_error
from tests.toys import CLASSES, drawn, toy_data, toy_task

KEY = jax.random.key(4)
FINE = Train(1, 0.01, batch_size=16, max_steps=1, name="finetune")
HALF = Budget(macs=0.5)
LEVELS = (1.0, 0.9, 0.8, 0.65, 0.5)


def along_axes(levels=LEVELS):
    """Points that differ from (1, 1, 1) in one dimension each."""
    points = [np.ones(3)]
    for axis in range(3):
        for level in levels[1:]:
            points.append(np.where(np.arange(3) == axis, level, 1.0))
    return np.array(points)


def separate(weights):
    """Sum of c_i x_i (2 - x_i), as a polynomial of rank 3."""
    factors = []
    for place in range(3):
        factor = np.tile([1.0, 0, 0], (3, 1))
        factor[place] = [0, 2 * weights[place], -weights[place]]
        factors.append(factor)
    return Polynomial(tuple(factors))


def test_the_optimum_of_a_worked_case():
    """Checks [52] P1 and P2."""
    model = separate((3.125, 4.7619048, 11.1111111))
    best = optimum(model, (1, 2, 2), 0.31752, (0.1, 0.1, 0.1))
    np.testing.assert_allclose(best, [0.8, 0.7, 0.9], atol=1e-6)
    assert float(model(best[None])[0]) == pytest.approx(18.333333, rel=1e-7)
    slopes = best * model.gradient(best[None])[0] / (1, 2, 2)
    assert np.ptp(slopes) < 1e-6
    assert best[0] * best[1] ** 2 * best[2] ** 2 == pytest.approx(0.31752, rel=1e-9)


def test_a_stationary_minimum_is_not_taken():
    """F = d + w^2 + r^2: its stationary point on the budget is the worst, corners are best."""
    factors = []
    for place, power in enumerate((1, 2, 2)):
        factor = np.tile([1.0, 0, 0], (3, 1))
        factor[place] = np.eye(3)[power]
        factors.append(factor)
    best = optimum(Polynomial(tuple(factors)), (1, 2, 2), 0.25, (0.1, 0.1, 0.1))
    value = best[0] + best[1] ** 2 + best[2] ** 2
    assert value == pytest.approx(2.25, abs=1e-6)  # one dimension alone pays


def test_at_the_walls_of_the_box_the_rest_is_stationary():
    model = separate((0.1, 1.0, 3.0))
    low = (0.5, 0.5, 0.5)
    best = optimum(model, (1, 2, 2), 0.3, low)
    slopes = best * model.gradient(best[None])[0] / (1, 2, 2)
    assert best[0] == pytest.approx(0.5)
    assert 0.5 < best[1] < 1
    if 0.5 < best[2] < 1 - 1e-9:
        assert slopes[1] == pytest.approx(slopes[2], abs=1e-6)
    else:
        assert slopes[2] >= slopes[1] - 1e-6
    assert best[0] * best[1] ** 2 * best[2] ** 2 == pytest.approx(0.3, rel=1e-8)


def test_a_budget_is_left_unused_where_less_is_better():
    factor = np.array([[0.0, 1.2, -1.0]])  # largest at 0.6
    best = optimum(Polynomial((factor,) * 3), (1, 2, 2), 1.0, (0.2, 0.2, 0.2))
    np.testing.assert_allclose(best, 0.6, atol=1e-5)


def test_gradients_are_differences():
    rng = np.random.default_rng(0)
    model = Polynomial(tuple(rng.normal(size=(2, count)) for count in (4, 3, 2)))
    points = rng.uniform(0.5, 1, (6, 3))
    for axis in range(3):
        step = 1e-6 * np.eye(3)[axis]
        difference = (model(points + step) - model(points - step)) / 2e-6
        np.testing.assert_allclose(model.gradient(points)[:, axis], difference, atol=1e-7)


def test_points_along_the_axes_determine_a_product():
    rng = np.random.default_rng(1)
    held_out = rng.uniform(0.5, 1, (40, 3))
    for _ in range(5):
        truth = Polynomial(tuple(rng.normal(size=(1, 4)) for _ in range(3)))
        points = along_axes()
        found = fit(points, truth(points))
        assert relative_error(truth(held_out), found(held_out)) < 1e-5


def test_a_fit_says_what_held_out_nets_reach():
    """Accuracies that are no product, with noise: better than the mean, and than no model."""
    rng = np.random.default_rng(2)
    accuracy = lambda x: (
        0.92 - 0.1 * (1 - x[:, 0]) ** 2 - 0.3 * (1 - x[:, 1]) ** 2 - (0.5 * (1 - x[:, 2]) ** 2)
    )
    points, held_out = along_axes(), rng.uniform(0.5, 1, (40, 3))
    values = accuracy(points) + rng.normal(size=len(points)) * 1e-3
    found = fit(points, values)
    error = np.abs(found(held_out) - accuracy(held_out))
    assert error.max() < 0.015
    assert error.mean() < 0.2 * np.abs(accuracy(held_out) - values.mean()).mean()


def test_more_products_fit_more():
    truth = separate((1.0, 2.0, 3.0))
    grid = np.array([(d, w, r) for d in LEVELS for w in LEVELS for r in LEVELS])
    held_out = np.random.default_rng(3).uniform(0.5, 1, (40, 3))
    errors_of = [
        np.abs(fit(grid, truth(grid), 2, rank)(held_out) - truth(held_out)).max() for rank in (1, 3)
    ]
    assert errors_of[1] < 1e-3 < errors_of[0]


def test_few_values_of_a_dimension_lower_its_degree():
    points = along_axes((1.0, 0.8, 0.6))
    found = fit(points[:-2], np.arange(1.0, 6.0), degree=3)
    assert [factor.shape for factor in found.factors] == [(1, 3), (1, 3), (1, 1)]
    np.testing.assert_allclose(found(points[:-2]), np.arange(1.0, 6.0), atol=1e-6)


def test_resizing_is_that_of_jax():
    images = np.random.default_rng(4).normal(size=(2, 9, 8, 3)).astype(np.float32)
    for size in ((6, 5), (4, 4), (9, 8), (3, 7)):
        expected = jax.image.resize(images, (2, *size, 3), "linear", antialias=True)
        np.testing.assert_allclose(resize(images, size), expected, atol=1e-5)
        np.testing.assert_allclose(resize(jnp.asarray(images), size), expected, atol=1e-5)
    assert resize(images, (9, 8)) is images


@functools.cache
def task_of():
    """A net of pixels with two residual blocks."""
    task = toy_task(train_size=48)

    def init(key):
        draw = lambda n, *shape: jax.random.normal(jax.random.fold_in(key, n), shape) / 2
        params = {
            "stem": draw(0, 1, 10),
            "a": {"in": draw(1, 10, 6), "out": draw(2, 6, 10)},
            "b": {"in": draw(3, 10, 8), "out": draw(4, 8, 10)},
            "fc": draw(5, 10, 3),
        }
        return {"params": params, "stats": {}}

    def fn(variables, x):
        p = variables["params"]
        x = x @ p["stem"]
        for name in ("a", "b"):
            x = x + jax.nn.relu(x @ p[name]["in"]) @ p[name]["out"]
        return x.mean(axis=(1, 2)) @ p["fc"]

    train_fn = lambda variables, x, key: (fn(variables, x), {})
    return task._replace(name="pixels", fn=fn, train_fn=train_fn, init=init)


def net_of(task):
    return task.init(KEY)


def test_a_net_at_a_resolution():
    """The small net takes full images, and sees what the smaller task shows."""
    task = task_of()
    masks = {name: np.arange(size) < 5 for name, size in Net(task).groups.sizes.items()}
    net = Pruned(net_of(task), masks, resolution=np.array([4, 4]))
    net, _ = Rewind("dense")(net._replace(saved={"dense": net.variables}), task, KEY)
    smaller = at_size(task, (4, 4))
    image = next(task.data.batches("test", 6))["image"]
    seen = next(smaller.data.batches("test", 6))["image"]
    assert seen.shape == (6, 4, 4, 1)
    expected = task.fn(net.variables, seen)
    fn, small = Net(task).slim(net)
    assert relative_error(expected, fn(small, image)) <= 1e-5
    assert relative_error(expected, seen_at(task.fn, net.resolution)(net.variables, image)) <= 1e-5
    assert Net(smaller).cost({}).macs < 0.3 * Net(task).cost({}).macs
    _, (found,) = Evaluate("test", slim=True)(net, task, KEY)
    assert found["metrics"]["macs"] == round(float(Net(smaller).cost(masks).macs))
    learner = FINE.learner(net, task, KEY)
    assert next(learner.batches(0))["image"].shape == (16, 4, 4, 1)


def test_images_that_a_net_cannot_take_are_refused():
    lenet = zoo.build("lenet5", CLASSES, (16, 16, 1))
    task = train.task(lenet, toy_data()._replace(shape=(16, 16, 1)))
    stage = Narrow("resolution", 0.5, HALF, 4)
    with pytest.raises(errors.ArgumentError, match=r"lenet5 cannot take images of 8 x 8: .*Write"):
        stage.check(task)
    with pytest.raises(errors.ArgumentError, match="dimensions=depth:width"):
        stage(Pruned(drawn(task), None), task, KEY)
    with pytest.raises(errors.ArgumentError, match="lenet5 has no residual block that can go"):
        Narrow("depth", 0.5, HALF, 4).check(task)
    pools = task_of()._replace(fn=lambda v, x: jnp.mean(x[:, ::2, ::2][:, 3:], axis=(1, 2)))
    check_size(pools, (8, 8), "")
    with pytest.raises(errors.ArgumentError, match=r"leave no pixel of them\. Write 8"):
        check_size(pools, (4, 4), "Write 8.")


def test_every_library_says_in_its_way_that_images_do_not_fit():
    """Linen raises a type of its own, which is no ValueError."""

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))

    init = lambda key: Flat().init(key, jnp.ones((1, 8, 8, 1)))
    flat = toy_task()._replace(name="flat", init=init, fn=Flat().apply)
    check_size(flat, (8, 8), "")
    with pytest.raises(errors.ArgumentError, match=r"flat cannot take images of 4 x 4: .* Write 8"):
        check_size(flat, (4, 4), "Write 8.")


def test_the_block_goes_that_costs_least():
    """Least training loss, which here are 4 batches of all training images."""
    task, gone = task_of(), set()
    net = Pruned(task.init(KEY), None)
    batch = next(task.data.batches("train", 48))
    branches = [branch.name for branch in Net(task).groups.branches]
    for seed in range(4):
        net = Pruned(task.init(jax.random.key(seed)), None)
        masks = fewer_blocks(task, net, 1, KEY)
        losses = []
        for block in ("a", "b"):
            without = jax.tree.map(jnp.array, net.variables)
            without["params"][block]["out"] *= 0
            losses.append(float(task.loss(task.fn(without, batch["image"]), batch).mean()))
        gone.add(int(np.argmin(losses)))
        assert [bool(masks[name][0]) for name in branches] == [
            n != np.argmin(losses) for n in (0, 1)
        ]
    assert gone == {0, 1}  # the rule had to choose
    assert not any(mask[0] for mask in fewer_blocks(task, net, 0, KEY).values())
    net, _ = Narrow("depth", 0.5, HALF, 4)(net, task, KEY)
    assert where(task, net) == (0.5, 1.0, 1.0)


def test_the_optimum_is_pruned_to_whole_numbers_under_the_budget():
    """Points as if from accuracies that hang on the width: blocks and pixels go first."""
    task = task_of()
    points = along_axes((1.0, 0.75, 0.5))
    accuracy = (
        0.9
        - 0.01 * (1 - points[:, 0])
        - 0.4 * (1 - points[:, 1]) ** 2
        - (0.02 * (1 - points[:, 2]) ** 2)
    )
    dense = net_of(task)
    known = Pruned(dense, None, np.c_[points, accuracy], {"dense": dense})
    net, (found,) = Optimum(HALF, multiple=2)(known, task, KEY)
    seen = found["metrics"]
    assert seen["optimum"][2] < 0.8 < 0.95 < seen["optimum"][1]
    smaller = at_resolution(task, net)
    macs = float(Net(smaller).cost(net.masks).macs) / float(Net(task).cost({}).macs)
    assert macs == pytest.approx(seen["macs"])
    assert macs <= 0.5 + 1e-9
    assert seen["depth"] in (0.5, 1.0)
    assert 0.5 < seen["predicted"] < 0.95
    with pytest.raises(errors.BudgetError, match="lowest corner costs"):
        Optimum(Budget(macs=0.01), multiple=2)(known, task, KEY)


def test_a_net_of_one_block_may_lose_it():
    """Depth 0 is a net, and no logarithm."""
    task = toy_task()
    points = along_axes((1.0, 0.5))
    points[1, 0] = 0
    dense = drawn(task)
    accuracy = 0.9 - 0.01 * (1 - points[:, 0]) - 0.4 * (1 - points[:, 1])
    observed = Pruned(dense, None, np.c_[points, accuracy], {"dense": dense})
    net, (row,) = Optimum(HALF, multiple=2)(observed, task, KEY)
    assert where(task, net)[0] in (0, 1)
    assert row["metrics"]["macs"] <= 0.5 + 1e-9


def test_units_inside_removed_blocks_are_no_width():
    """Without block b the net has the stem and the units of a; b's are neither kept nor counted."""
    task = task_of()
    gone = {"branch/params/b/out": np.zeros(1, bool)}
    left = float(Net(task).cost(gone).macs) / float(Net(task).cost({}).macs)
    net = Pruned(net_of(task), None)
    masks = fewer_units(task, net, HALF, gone)  # half of what the block leaves
    kept = {name: int(np.sum(masks[name])) for name in Net(task).groups.names}
    assert kept["params/b/in"] == 8  # untouched
    assert kept["params/stem"] < 10
    width = (kept["params/stem"] + kept["params/a/in"]) / (10 + 6)
    assert where(task, net._replace(masks=masks)) == (0.5, width, 1.0)
    macs = float(Net(task).cost(masks).macs) / float(Net(task).cost({}).macs)
    assert 0.4 * left < macs <= 0.5 * left


def known_of(task, points, accuracy):
    """What `Optimum` finds: the dense net, and points with accuracies."""
    dense = net_of(task)
    return Pruned(dense, None, np.c_[points, accuracy], {"dense": dense})


@pytest.mark.parametrize("budget", [0.45, 0.5, 0.6, 0.8])
def test_a_dimension_that_is_left_out_stays_whole(budget):
    """Widths of no point: nets over the budget are left out, and none is made narrower."""
    task = task_of()
    points = np.array([[1, 1, 1], [0.5, 1, 1], [1, 1, 0.75], [1, 1, 0.5]])
    known = known_of(task, points, [0.9, 0.89, 0.8, 0.6])
    net, (found,) = Optimum(Budget(macs=budget), multiple=2)(known, task, KEY)
    assert found["metrics"]["width"] == 1.0
    assert found["metrics"]["macs"] <= budget
    assert all(np.all(net.masks[name]) for name in Net(task).groups.names)


@pytest.mark.parametrize("budget", [0.1, 0.12, 0.15, 0.2])
def test_no_net_is_taken_that_is_smaller_than_every_point(budget):
    """Depth is whole here; neighbours of the optimum would need widths below a half."""
    task = task_of()
    points = np.array([[1, 1, 1], [1, 0.75, 1], [1, 0.5, 1], [1, 1, 0.75], [1, 1, 0.5]])
    law = lambda width, side: 0.9 * (0.7 + 0.3 * width) * (0.4 + 0.6 * side)
    known = known_of(task, points, law(points[:, 1], points[:, 2]))
    net, (found,) = Optimum(Budget(macs=budget), multiple=2)(known, task, KEY)
    seen = found["metrics"]
    assert (np.array(where(task, net)) >= [1, 0.5, 0.5]).all()
    assert seen["macs"] <= budget
    assert seen["predicted"] == pytest.approx(law(seen["width"], seen["resolution"]), abs=1e-6)


def test_a_budget_that_no_net_of_the_box_meets_is_refused_before_training():
    task = task_of()
    ask = lambda macs, **options: recipes.run(
        three_dimensions(Budget(macs=macs), None, FINE, multiple=2, **options),
        Pruned(None, None),  # nothing is trained or looked at
        task,
        KEY,
    )
    with pytest.raises(
        errors.BudgetError, match=r"\(depth 0\.5, width 1, res.*smaller --set lowest="
    ):
        ask(0.4, dimensions="depth")
    with pytest.raises(errors.BudgetError, match=r"\(depth 1, width 0\.5, resolution 0\.5\)"):
        ask(0.05, dimensions="width:resolution")
    stage = three_dimensions(Budget(macs=0.05), None, FINE, multiple=2)[-3]
    assert isinstance(stage, CheckedStage)
    stage.check(task)  # with all three it can be met
    smallest = where(task, stage.smallest(task))
    assert smallest == (0.5, 0.5, 0.5)


def test_a_process_of_several_sees_its_own_rows_smaller():
    smaller = at_size(task_of()._replace(data=data.load("digits")), (4, 4)).data.batches
    (whole, *_), (mine, *_) = smaller("test", 6), smaller("test", 6, rows=slice(2, 5))
    assert mine["image"].shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(mine["image"], whole["image"][2:5])


def test_points_are_kept_once():
    task = task_of()
    dense = net_of(task)
    start = Pruned(dense, None, None, {"dense": dense})
    narrow = Narrow("resolution", 0.5, HALF, 4, anew=True)
    net, _ = Observe()(narrow(start, task, KEY)[0], task, KEY)
    net, _ = Observe()(net, task, KEY)
    np.testing.assert_array_equal(net.extra[:, :3], [[1, 1, 1], [1, 1, 0.5]])
    assert sizes_of(task, 4) == [(4, 4), (8, 8)]
    assert sizes_of(task, 3) == [(3, 3), (6, 6), (8, 8)]


def test_the_recipe_runs_through():
    task = task_of()
    recipe = three_dimensions(HALF, None, FINE, points=1, multiple=4, dimensions="width:resolution")
    start = Pruned(net_of(task), None)
    done, seen = recipes.run(recipe, start, task, KEY)
    (best,) = (row["metrics"] for row in seen if row["stage"] == "optimum")
    assert len(best["points"]) == 3
    fn, small = Net(task).slim(done)
    image = next(task.data.batches("test", 6))["image"]
    expected = seen_at(task.fn, done.resolution)(done.variables, image)
    assert relative_error(expected, fn(small, image)) <= 1e-5


def test_equal_nets_are_trained_once_and_all_for_the_same_time():
    """Of 8 x 8 images at multiples of 4, the levels 0.875 to 0.5 are 8, 4, 4, 4."""
    task, drawn = task_of(), []

    def batches(split, *args, **options):
        for batch in task.data.batches(split, *args, **options):
            drawn.extend([batch["image"].shape[1]] * (split == "train"))
            yield batch

    counted = task._replace(data=task.data._replace(batches=batches))
    recipe = three_dimensions(HALF, None, FINE, dimensions="resolution", points=4, degree=1)
    steps = FINE.steps(task.data.sizes["train"])
    probing = [stage for stage in recipe if stage.name == "probe"]
    assert len(probing) == 5
    each = probing[0].train.steps(task.data.sizes["train"])
    assert {stage.train for stage in probing} == {probing[0].train}
    _, seen = recipes.run(recipe, Pruned(net_of(task), None), counted, KEY)
    taken = [row["step"] for row in seen if row["stage"] == "probe"]
    assert taken == [each, 0, each, 0, 0]
    assert len(drawn) <= 2 * each + steps
    (best,) = (row["metrics"] for row in seen if row["stage"] == "optimum")
    assert [point[2] for point in best["points"]] == [1.0, 0.5]


def test_bad_words():
    with pytest.raises(errors.ArgumentError, match=r"Write Budget\(macs=0.5\)"):
        three_dimensions(Budget(params=0.5), None, FINE)
    with pytest.raises(errors.ArgumentError, match="write some of depth:width:resolution"):
        three_dimensions(HALF, None, FINE, dimensions="depth:height")
    with pytest.raises(errors.ArgumentError, match=r"lowest is in \(0, 1\)"):
        three_dimensions(HALF, None, FINE, lowest=1.0)
    with pytest.raises(errors.ArgumentError, match="both numbers are at least 1"):
        fit(np.ones((2, 3)), np.ones(2), rank=0)
    with pytest.raises(errors.ArgumentError, match="not finite"):
        fit(np.ones((2, 3)), np.array([1.0, np.nan]))
    with pytest.raises(errors.ArgumentError, match=r"every bound is in \(0, 1\]"):
        optimum(separate((1, 1, 1)), (1, 2, 2), 0.5, (0, 0.5, 0.5))
    assert dataclasses.asdict(Optimum(HALF))["rank"] == 1


@pytest.mark.slow
def test_x9_has_a_row_a_net():
    found = run_claim(x9.CLAIM, smoke=True)
    assert {row["part"] for row in found} >= {"point", "held_out", "optimum"}
