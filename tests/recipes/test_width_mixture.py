"""TAS [42]: candidates, interpolation of channels, temperatures, mixed widths and their cost."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned, Task
from jprune.blocks.depths import Depths, candidate_depths, depth_menus
from jprune.learners.width_mixture import (
    Mixture,
    candidate_widths,
    cost_loss,
    entropy,
    resizing,
    temperature,
    two_of,
)
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.stages.choices import Choices, price_of
from jprune.stages.width_mixture import SearchShape, masks_of, settle
from jprune.train.net import Net
from jprune.train.task import distilled
from tests.contracts import own

KEY = own.KEY


@pytest.mark.parametrize(
    ("values", "after", "expected"),
    [
        ([1, 2, 3, 4, 5], 3, [1.5, 3, 4.5]),
        ([1, 2, 3], 5, [1, 1.5, 2, 2.5, 3]),
        (range(1, 9), 4, [1.5, 3.5, 5.5, 7.5]),
        (range(1, 8), 7, range(1, 8)),
    ],
)
def test_channels_are_resized_by_averages_of_neighbours(values, after, expected):
    values = np.array([*values], float)
    np.testing.assert_allclose(resizing(values.size, after) @ values, [*expected])


def test_a_constant_stays_that_constant_and_padding_is_0():
    for before in range(1, 12):
        for after in range(1, 12):
            np.testing.assert_allclose(resizing(before, after).sum(1), 1)
            padded = resizing(before, after, 12)
            np.testing.assert_array_equal(padded[:after, :before], resizing(before, after))
            assert not padded[after:].any()
            assert not padded[:, before:].any()


def test_candidates_are_those_of_the_authors():
    assert candidate_widths(16) == (4, 6, 8, 9, 11, 12, 14, 16)
    assert candidate_widths(32) == (9, 12, 16, 19, 22, 25, 28, 32)
    assert candidate_widths(64) == (19, 25, 32, 38, 44, 51, 57, 64)
    assert candidate_depths(9) == (1, 3, 5, 7, 9)
    assert candidate_depths(3) == (1, 2, 3)
    # ImageNet: int(n j / m), m the blocks of the shallowest stage
    assert candidate_depths(23, shares=3) == (7, 15, 23)


def test_temperatures_fall_on_a_cosine():
    found = temperature(jnp.array([0, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(found, [5, 4.282412, 2.55, 0.817588, 0.1], rtol=1e-5)


def logits_of(student, teacher):
    """What distillation of weight 0.9 at temperature 4 costs, label 0."""
    task = own.channels_first(False)
    fn = lambda variables, x: jnp.broadcast_to(variables["params"]["out"], (len(x), 3))
    taught = distilled(
        task._replace(
            fn=fn,
            train_fn=lambda v, x, key: (fn(v, x), v["stats"]),
            loss=lambda out, batch: optax.softmax_cross_entropy_with_integer_labels(
                out, batch["label"]
            ),
        ),
        {"params": {"out": jnp.array(teacher)}, "stats": {}},
        0.9,
        4.0,
    )
    variables = {"params": {"out": jnp.array(student)}, "stats": {}}
    x = jnp.zeros((1, 5, 5, 2))
    batch = {"image": x, "label": jnp.array([0]), "weight": jnp.ones(1)}
    out, _ = taught.train_fn(variables, x, KEY)
    return float(taught.loss(out, batch)[0])


@pytest.mark.parametrize(
    ("teacher", "loss"), [([3.0, 2.0, 1.0], 1.428428), ([1.0, 2.0, 3.0], 0.240761)]
)
def test_distillation_is_that_of_training(teacher, loss):
    assert logits_of([1.0, 2.0, 3.0], teacher) == pytest.approx(loss, abs=1e-5)


def test_two_are_drawn_without_replacement_as_often_as_they_are_likely():
    """First choices follow softmax of the logits at temperature 1, whatever the second draw is."""
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    keys = jax.random.split(KEY, 4000)
    which, weights = jax.vmap(lambda key: two_of(key, logits, 1.0))(keys)
    assert (which[:, 0] != which[:, 1]).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    # The draw adds noise to noise, so it is flatter than softmax; the order of candidates stays.
    often = np.bincount(np.ravel(which), minlength=3)
    assert often[0] < often[1] < often[2]


def residual(blocks=3) -> Task:
    """Dense residual blocks with a norm in each, on a stream of 8 channels."""
    shapes = {"stem": (6, 8), "out": (8, 3)}
    for block in range(1, blocks + 1):
        shapes |= {f"a{block}": (8, 6), f"b{block}": (6, 8)}
    params = own.kernels(shapes)
    for block in range(1, blocks + 1):
        params[f"a{block}"] |= {"scale": np.linspace(0.5, 1.5, 6, dtype=np.float32)}
        params[f"a{block}"] |= {"shift": np.linspace(-0.3, 0.3, 6, dtype=np.float32)}

    def fn(v, x):
        p = v["params"]
        x = jax.nn.relu(x @ p["stem"]["kernel"])
        for block in range(1, blocks + 1):
            a, b = p[f"a{block}"], p[f"b{block}"]
            x = x + jax.nn.relu(x @ a["kernel"] * a["scale"] + a["shift"]) @ b["kernel"]
        return x @ p["out"]["kernel"]

    return own.task_of(fn, params, (6,))


@pytest.fixture(scope="module")
def net():
    task = residual()
    return task, Choices().mixture(task, Budget(macs=0.5))


def sure(mixture, choice):
    """Logits of which the first draw is certain; the second one, whatever it is, weighs nothing."""
    size = mixture.sizes
    return {n: 400.0 * jax.nn.one_hot(choice[n], size[n]) for n in size}


def test_stages_are_the_residual_sums_of_one_width_and_their_first_block_stays(net):
    task, mixture = net
    last = tuple(f"branch/params/b{block}/kernel" for block in (2, 3))
    assert depth_menus(Net(task).groups) == {last[0]: Depths(last, (0, 1, 2))}
    deep = depth_menus(Net(residual(5)).groups)
    assert [stage.menu for stage in deep.values()] == [(0, 2, 4)]
    assert depth_menus(Net(task).groups, kind="even") == {last[0]: Depths(last, (0, 1, 2))}
    assert depth_menus(Net(residual(1)).groups) == {}
    assert mixture.widths["params/stem/kernel"] == candidate_widths(8)
    assert not Choices(depths="whole").mixture(task, Budget(macs=0.5)).depths
    assert not Choices().mixture(task, Budget(density=0.5)).depths


def test_a_sure_choice_of_widest_candidates_is_the_masked_net(net):
    """One weight 1 and the wider of both: the leading units alone, and the first blocks."""
    task, _ = net
    groups = Net(task).groups
    mixture = Mixture(
        groups, {n: (1, s // 2) for n, s in groups.sizes.items()}, depth_menus(groups)
    )
    x = jnp.asarray(next(task.data.batches("train", 8))["image"])
    run = jax.jit(mixture.run(task.fn))
    for depth in (0, 1):
        choice = dict.fromkeys(mixture.sizes, 1) | dict.fromkeys(mixture.depths, depth)
        draw = mixture.draw(sure(mixture, choice), KEY, 0.1)
        masks = masks_of(mixture, choice)
        assert [int(m.sum()) for n, m in masks.items() if n in groups.sizes] == [4, 3, 3, 3]
        masked = apply_masks(task.init(KEY), Net(task).weight_masks(masks))
        np.testing.assert_allclose(
            run(task.init(KEY), mixture.norms(), draw, x), task.fn(masked, x), rtol=1e-4, atol=1e-5
        )


def test_two_widths_with_norms_of_their_own_are_resized_and_averaged():
    """sum_j phat_j CWI(scale_j x + shift_j), by loops over the channels."""
    task = residual(1)
    groups, name = Net(task).groups, "params/a1/kernel"
    mixture = Mixture(groups, {name: (2, 5, 6)})
    rng = np.random.default_rng(0)
    norms = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), mixture.norms())
    assert list(norms[name]) == [name]
    draw = {name: (jnp.array([1, 0]), jnp.array([0.7, 0.3]))}
    x = rng.uniform(size=(4, 6)).astype(np.float32)
    p = jax.tree.map(np.asarray, task.init(KEY)["params"])
    stream = np.maximum(x @ p["stem"]["kernel"], 0)
    y = stream @ p["a1"]["kernel"] * p["a1"]["scale"] + p["a1"]["shift"]
    mixed = np.zeros((4, 6))
    for candidate, width, weight in ((1, 5, 0.7), (0, 2, 0.3)):
        own_norm = y * norms[name][name]["scale"][candidate] + norms[name][name]["shift"][candidate]
        for i in range(5):  # C' = 5
            first, last = i * width // 5, -(-(i + 1) * width // 5)
            mixed[:, i] += weight * own_norm[:, first:last].mean(1)
    out = (stream + np.maximum(mixed, 0) @ p["b1"]["kernel"]) @ p["out"]["kernel"]
    found = mixture.run(task.fn)(task.init(KEY), norms, draw, x)
    np.testing.assert_allclose(found, out, rtol=1e-4, atol=1e-5)


def test_a_block_counts_as_the_average_of_the_outputs_with_it_and_without(net):
    """What the paper averages, where one block is in question and the stream is linear."""
    task, _ = net
    mixture = Mixture(Net(task).groups, {}, {"s": Depths(("branch/params/b3/kernel",), (0, 1))})
    x = jnp.asarray(next(task.data.batches("train", 8))["image"])
    run = mixture.run(task.fn)
    outs = [run(task.init(KEY), {}, mixture.shape({"s": depth}), x) for depth in (0, 1)]
    half = run(task.init(KEY), {}, {"branch/params/b3/kernel": jnp.array(0.3)}, x)
    np.testing.assert_allclose(half, 0.7 * outs[0] + 0.3 * outs[1], rtol=1e-4, atol=1e-5)


def test_the_cost_of_the_mean_shape_is_the_mean_cost_of_all_shapes(net):
    task, _ = net
    groups = Net(task).groups
    widths = {"params/stem/kernel": (2, 5, 8), "params/a3/kernel": (1, 6)}
    mixture = Mixture(groups, widths, depth_menus(groups, kind="even"))
    rng = np.random.default_rng(0)
    logits = {name: jnp.asarray(rng.normal(size=size)) for name, size in mixture.sizes.items()}
    p = {name: np.asarray(jax.nn.softmax(of)) for name, of in logits.items()}
    for budget in (Budget(macs=0.5), Budget(params=0.5)):
        price, mean = price_of(task, budget), 0.0
        for choice in itertools.product(*map(range, mixture.sizes.values())):
            chance = np.prod([p[name][place] for name, place in zip(mixture.sizes, choice)])
            mean += chance * float(price(mixture.shape(dict(zip(mixture.sizes, choice)))))
        assert float(price(mixture.expected(logits))) == pytest.approx(mean, rel=1e-5)


def test_the_cost_pulls_down_above_the_budget_up_below_it_and_not_between(net):
    task, mixture = net
    price = price_of(task, Budget(macs=0.5))
    logits = mixture.logits(KEY)
    whole = {name: of.at[-1].set(1.0) for name, of in logits.items()}

    @jax.jit
    def slope(logits, goal):
        return jax.grad(lambda of: cost_loss(mixture, of, price, goal, tolerance=0.05))(logits)

    for down in slope(whole, 0.5).values():
        assert down[-1] > 0 > down[0]  # a step against it lowers the largest candidate
    now = float(price(mixture.likeliest(logits)))
    assert 0.1 < now < 0.9
    for up in slope(logits, now + 0.06).values():
        assert up[-1] < 0 < up[0]
    assert not any(of.any() for of in slope(logits, now + 0.04).values())


def test_choices_are_moved_into_the_tolerance_and_no_further(net):
    task, mixture = net
    price, rng = price_of(task, Budget(macs=0.5)), np.random.default_rng(0)
    for high in (0.3, 0.5, 0.8):
        logits = {n: jnp.asarray(rng.normal(size=size)) for n, size in mixture.sizes.items()}
        choice, _ = settle(mixture, logits, price, high, high - 0.05)
        now = float(price(mixture.shape(choice)))
        assert high - 0.05 <= now <= high + 1e-6, choice
        # What is in the window already is not moved.
        there, none = settle(mixture, sure(mixture, choice), price, high, high - 0.05)
        assert (there, none) == (choice, 0)
    assert float(entropy(sure(mixture, choice))) == pytest.approx(0, abs=1e-5)
    assert float(entropy({"a": jnp.zeros(5)})) == pytest.approx(1)


SHORT = Train(1, 0.05, 16, max_steps=30, schedule="constant")


@pytest.mark.parametrize("budget", [Budget(macs=0.45), Budget(params=0.6), Budget(density=0.5)])
def test_a_search_ends_within_the_tolerance_of_the_budget(budget):
    task = residual()
    stage = SearchShape(dataclasses.replace(SHORT, epochs=15), budget)
    done, (line,) = stage(Pruned(task.init(KEY), None), task, KEY)
    sizes = Net(task).groups.sizes
    shape = {name: int(np.sum(mask)) for name, mask in done.masks.items()}
    kinds = sizes if budget.kind == "density" else shape
    share = float(price_of(task, budget)({name: shape[name] for name in kinds}))
    assert float(budget.value) - 0.05 - 0.03 <= share <= float(budget.value) + 1e-6
    # Leading units stay, and the logits came near the budget by themselves.
    assert all(np.array_equal(mask, np.sort(mask)[::-1]) for mask in done.masks.values())
    assert abs(line["metrics"]["share"] - float(budget.value)) < 0.2
    assert line["metrics"]["entropy"] < 0.999


def two_sides():
    """Two hidden layers side by side, of which one says nothing."""
    params = own.kernels({"a": (6, 10), "b": (10, 3), "c": (6, 10), "d": (10, 3)})

    def fn(v, x):
        p = {name: layer["kernel"] for name, layer in v["params"].items()}
        return jax.nn.relu(x @ p["a"]) @ p["b"] + 0 * (jax.nn.relu(x @ p["c"]) @ p["d"])

    rng = np.random.default_rng(1)
    images = rng.normal(size=(64, 6)).astype(np.float32)
    labels = np.abs(images).reshape(64, 3, 2).sum(-1).argmax(-1).astype(np.int32)
    return own.task_of(fn, params, (6,), images=images, labels=labels)


def test_what_says_nothing_is_narrowed_first():
    task = two_sides()
    train = Train(60, 0.05, 32, max_steps=120, schedule="constant")
    stage = SearchShape(train, Budget(macs=0.6), Choices(tolerance=0.1, strength=0.2))
    done, _ = stage(Pruned(task.init(KEY), None), task, KEY)
    assert done.masks["params/c/kernel"].sum() + 3 <= done.masks["params/a/kernel"].sum()


def test_logits_learn_from_held_examples_and_weights_from_training(net):
    """With weights that stand still, the training batch moves no logit, and the other one does."""
    task, _ = net
    stage = SearchShape(dataclasses.replace(SHORT, learning_rate=1e-12), Budget(macs=0.5))
    learner = stage.learner(Pruned(task.init(KEY), None), task, KEY)
    batch = next(learner.batches(0))
    other = {n: np.roll(v, 1) if n.endswith("label") else v for n, v in batch.items()}
    of = lambda batch: learner.step(learner.init(), batch)[0]
    first = of(batch)
    trained = of({**batch, "label": other["label"]})
    held = of({**batch, "held_label": other["held_label"]})
    moments = lambda state: jnp.concatenate(
        [leaf.ravel() for leaf in jax.tree.leaves(state.opt_state[1]) if leaf.ndim]
    )
    np.testing.assert_allclose(moments(trained), moments(first), atol=1e-9)
    assert float(jnp.abs(moments(held) - moments(first)).max()) > 1e-5
    start = learner.init().params["logits"]
    for name, of_name in first.params["logits"].items():
        # Adam's first step has the length of its rate.
        assert float(jnp.abs(of_name - start[name]).max()) == pytest.approx(0.5, rel=1e-3)


def test_the_recipe_trains_the_shape_anew_from_new_values():
    task = residual()
    short = dataclasses.replace(SHORT, max_steps=6)
    recipe = recipes.find("tas")(Budget(macs=0.5), short, short, search_epochs=3)
    last: Any = recipe[-1]
    assert last.distill == 0.9
    done, lines = stages.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    assert [line["stage"] for line in lines][-3:] == ["search", "before_finetune", "scratch"]
    macs = float(Net(task).cost(done.masks).macs) / float(Net(task).cost({}).macs)
    assert macs <= 0.5 + 1e-6


@pytest.mark.parametrize("widths", [(4,), (0, 4), (4, 99), (4, 2)])
def test_widths_that_a_group_cannot_have_are_refused(net, widths):
    groups = Net(net[0]).groups
    with pytest.raises(errors.ArgumentError, match="two or more different ones"):
        Mixture(groups, {groups.names[0]: widths})


@pytest.mark.parametrize(
    ("budget", "options", "error", "says"),
    [
        (Budget(macs=0.05), {}, errors.BudgetError, "write a smaller least"),
        (Budget(macs=0.5), {"depths": "deep"}, errors.ArgumentError, "depths"),
        (Budget(macs=0.5), {"lowest": 0.0}, errors.ArgumentError, "lowest"),
        (Budget(macs=0.5), {"tolerance": 0.0}, errors.ArgumentError, "tolerance"),
        (Budget(macs=0.5, min_units=99), {}, errors.JpruneError, "met"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_training(net, budget, options, error, says):
    with pytest.raises(error, match=says):
        stages.check(recipes.find("tas")(budget, SHORT, SHORT, **options), net[0])
