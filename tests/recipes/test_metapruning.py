"""MetaPruning: numbers of checks.md [39], masks against crops, search against chance."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import p39
from experiments.claims.claim import run as run_claim
from jprune import errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.learners import (
    Menu,
    hypernetwork,
    hypernetwork_task,
    menu,
    scorer,
    settled,
    width_masks,
)
from jprune.learners.statistics import check_settles
from jprune.recipes import CheckedStage, Train
from jprune.recipes.metapruning import metapruning
from jprune.search import Space, evolution
from jprune.search.evolution import crossed, mutated
from jprune.search.widths import Widths
from jprune.stages.hypernetwork import Rounds, Search, TrainHypernetwork, stacked
from jprune.train.net import Net
from tests.law import QUICK, quick, relative_error
from tests.toys import CLASSES, SHAPE, drawn, equal, toy_data, toy_task

KEY = jax.random.key(3)
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
SHORT = Train(4, 0.05, 16, max_steps=12)
FREE = Widths(Budget(macs=0.5), options=7, hidden=5, window=0.2)


def quick_to_begin(task):
    """The task with initial values that NumPy drew: a net's own take seconds to compile."""
    values = drawn(task)
    return task._replace(init=lambda key: values)


@functools.cache
def task_of():
    return quick_to_begin(toy_task(train_size=96))


def net_of():
    return task_of().init(KEY)


@functools.cache
def hyper_of(vectors="fixed"):
    task = task_of()
    net = hypernetwork(task, Net(task).groups, FREE.menu(Net(task).groups), 5, vectors)
    params = net.init(KEY, net_of())
    # As if trained: encodings matter, and norms have scales of their own.
    bend = lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)
    return net, jax.tree.map(bend, params)


def images_of(count=3):
    return jnp.asarray(stacked(task_of(), "train", 16, count, KEY)["image"])


def test_the_menu():
    """Checks [39] P1."""
    assert menu(16) == [
        1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14,
        14, 15, 15, 16,
    ]  # fmt: skip
    assert menu(100) == [10 + 3 * n for n in range(31)]
    assert all(menu(size)[-1] == size and menu(size)[0] >= 1 for size in range(1, 2049))


def test_menus_keep_to_floors_and_multiples():
    task = task_of()
    stream, inner = Net(task).groups.names
    budget = Budget(macs=0.5, multiple_of=4, floors={stream: 8, inner: 6})
    found = Widths(budget, options=5).menu(Net(task).groups)
    assert found.names == (inner,)  # the other is whole
    assert found.widths.tolist() == [[8, 8, 8, 8, 12]]


def conv(x, kernel, stride):
    """3 x 3 with a border of one pixel, in NumPy."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.einsum("bxycij,ijco->bxyo", windows[:, ::stride, ::stride], kernel)


def cropped(params, images, x, wide, deep):
    """`tests.toys.Tiny` with arrays that are cut to their leading channels, in NumPy."""
    cut = {"conv1": (1, wide), "conv2": (wide, deep), "conv3": (deep, wide)}
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
    statistics = {}

    def norm(name, value, outputs, given):
        own = (value.mean((0, 1, 2)), value.var((0, 1, 2)))
        mean, variance = own if given is None else given[name]
        statistics.setdefault(name, []).append(own)
        scale, bias = (params[name][leaf][:outputs] for leaf in ("scale", "bias"))
        return (value - mean) / np.sqrt(variance + 1e-5) * scale + bias

    def run(x, given=None):
        def layer(number, value, stride=1):
            inputs, outputs = cut[f"conv{number}"]
            kernel = params[f"conv{number}"]["kernel"][:, :, :inputs, :outputs]
            return norm(f"norm{number}", conv(value, kernel, stride), outputs, given)

        x = np.maximum(layer(1, x, 2), 0)
        x = np.maximum(x + layer(3, np.maximum(layer(2, x), 0)), 0)
        return x.mean((1, 2)) @ params["fc"]["kernel"][:wide] + params["fc"]["bias"]

    for image in images:
        run(image)
    means = {name: np.mean(seen, axis=0) for name, seen in statistics.items()}
    return run(x, means), means


def test_masks_are_crops():
    """Checks [39] P2: outputs, and statistics taken anew, of 20 widths; all in one function."""
    task, images = task_of(), images_of()
    rng, x = np.random.default_rng(0), next(task.data.batches("test", 5))["image"]
    for vectors in ("fixed", "each"):
        hyper, params = hyper_of(vectors)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def masked(params, variables, widths, net=hyper.net):
            given = net(params, variables, widths)
            net = settled(task, given, images, KEY)
            return given["params"], net, task.fn(net, x)

        for _ in range(10):
            widths = np.array([rng.choice(row) for row in hyper.menu.widths])
            generated, net, out = masked(params, net_of(), jnp.asarray(widths))
            masks = width_masks(hyper.menu, widths)
            assert [mask.sum() for mask in masks.values()] == widths.tolist()
            expected, means = cropped(generated, np.asarray(images), x, *widths)
            assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()
            for name, (mean, variance) in means.items():
                kept = net["stats"][name]["mean"][: len(mean)]
                np.testing.assert_allclose(kept, mean, atol=1e-5)
                kept = net["stats"][name]["var"]
                np.testing.assert_allclose(kept[: len(mean)], variance, rtol=1e-4, atol=1e-6)
                assert not np.any(kept[len(mean) :])
        assert masked._cache_size() == 1


def test_statistics_are_means_over_batches():
    """NumPy's means of batch means, whatever the statistics were before."""
    task, images = task_of(), images_of(4)
    net = net_of()
    old = jax.tree.map(lambda leaf: leaf + 7, net["stats"])
    found = quick(lambda net: settled(task, net, images, KEY), {**net, "stats": old})
    kernel = net["params"]["conv1"]["kernel"]
    outputs = [
        jax.lax.conv_general_dilated(
            image, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for image in images
    ]
    mean = np.mean([np.mean(out, axis=(0, 1, 2)) for out in outputs], axis=0)
    variance = np.mean([np.var(out, axis=(0, 1, 2)) for out in outputs], axis=0)
    np.testing.assert_allclose(found["stats"]["norm1"]["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(found["stats"]["norm1"]["var"], variance, rtol=1e-4)
    assert equal(found["params"], net["params"])
    assert settled(task, net, images[:0], KEY) is net


def test_what_is_no_statistic_of_a_batch_stays():
    net = zoo.build("lenet300", CLASSES, SHAPE, dropout=0.3)
    task = train.task(net, toy_data())
    variables = drawn(task)
    variables["stats"] = jax.tree.map(lambda rate: jnp.asarray(0.3), variables["stats"])
    assert equal(settled(task, variables, images_of(), KEY), variables)


def with_stats(train_fn, params, stats):
    """A task whose variables are {"params", "stats"}, and its variables."""
    task = task_of()._replace(
        name="other",
        init=lambda key: {"params": params, "stats": stats},
        train_fn=train_fn,
        split=lambda variables: (variables["params"], variables["stats"]),
        merge=lambda params, stats: {"params": params, "stats": stats},
        update=lambda variables, new: {**variables, "stats": new},
    )
    return task, task.init(KEY)


@pytest.mark.parametrize(("decay", "steps"), [(0.9, 0), (0.9, 3), (0.99, 40)])
def test_averages_that_are_divided_by_their_age(decay, steps):
    """Haiku's: `average` is `hidden` / (1 - decay^counter), at a young and at an old counter."""

    def net(x):
        x = hk.Conv2D(4, 3, with_bias=False)(x)
        return hk.BatchNorm(True, True, decay)(x, is_training=True)

    images = images_of(3)
    run = hk.without_apply_rng(hk.transform_with_state(net))
    params, stats = run.init(KEY, images[0])
    train_fn = lambda variables, x, key: run.apply(variables["params"], variables["stats"], x)
    task, variables = with_stats(train_fn, params, stats)
    step = jax.jit(train_fn)
    for number in range(steps):
        variables = task.update(variables, step(variables, 3 * images[number % 3] - 2, KEY)[1])
    found = quick(lambda net: settled(task, net, images, KEY), variables)["stats"]
    kernel = variables["params"]["conv2_d"]["w"]
    outputs = [
        jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)
        for x in images
    ]
    for name, of in (("mean_ema", np.mean), ("var_ema", np.var)):
        expected = np.mean([of(out, axis=(0, 1, 2)) for out in outputs], axis=0)
        for leaf in ("average", "hidden"):
            kept = np.ravel(found[f"batch_norm/~/{name}"][leaf])
            np.testing.assert_allclose(kept, expected, rtol=1e-4)
    # Behind very many steps, one more moves them by 1 - decay and no further.
    _, moved = step({"params": params, "stats": found}, images[0], KEY)
    ema, own = moved["batch_norm/~/mean_ema"], np.mean(outputs[0], axis=(0, 1, 2))
    before = np.ravel(found["batch_norm/~/mean_ema"]["average"])
    np.testing.assert_allclose(np.ravel(ema["average"]), decay * before + (1 - decay) * own, 1e-4)
    check_settles(task, variables, images[0], KEY)


def test_kernels_that_are_divided_by_their_norms():
    """Zeros for weights would be 0 / 0: the old statistics stayed."""

    def train_fn(variables, x, key):
        weight = variables["params"]["w"]
        mean = (x @ (weight / jnp.linalg.norm(weight, axis=0))).mean((0, 1, 2))
        return x, {"m": 0.9 * variables["stats"]["m"] + 0.1 * mean}

    task, variables = with_stats(train_fn, {"w": jnp.ones((1, 4))}, {"m": jnp.full(4, 7.0)})
    images = images_of(3)
    found = quick(lambda net: settled(task, net, images, KEY), variables)
    np.testing.assert_allclose(found["stats"]["m"], np.full(4, np.mean(images)), rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (lambda old, own: jnp.maximum(old, own), "the largest so far"),
        (lambda old, own: old / (1e-3 + jnp.linalg.norm(old)), "a vector of the power method"),
        (lambda old, own: 1.5 * old + own, "more stays than there was"),
        (lambda old, own: old / 0 * own, "not finite"),
    ],
)
def test_statistics_of_another_kind_are_refused(rule, says):
    def train_fn(variables, x, key):
        own = (x @ variables["params"]["w"]).mean((0, 1, 2))
        return x, {"odd": rule(variables["stats"]["odd"], own), "still": jnp.ones(3)}

    stats = {"odd": jnp.ones(4), "still": jnp.ones(3)}
    task, variables = with_stats(train_fn, {"w": jnp.ones((1, 4))}, stats)
    message = r"the statistics odd of other do not follow.*Write --set recalibrate=0"
    with pytest.raises(errors.ArgumentError, match=message):
        check_settles(task, variables, images_of(1)[0], KEY)
    with pytest.raises(errors.ArgumentError, match=message):
        settled(task, variables, images_of(1), KEY)


def test_odd_statistics_are_refused_before_training():
    base = task_of()
    real = lambda variables: {**variables, "stats": variables["stats"]["real"]}
    with_odd = lambda variables, odd: {
        **variables,
        "stats": {"real": variables["stats"], "odd": odd},
    }
    task = base._replace(
        init=lambda key: with_odd(base.init(key), jnp.ones(4)),
        fn=lambda variables, x: base.fn(real(variables), x),
        train_fn=lambda variables, x, key: base.train_fn(real(variables), x, key),
        update=lambda variables, new: with_odd(
            base.update(real(variables), new), jnp.sqrt(variables["stats"]["odd"])
        ),
    )
    with pytest.raises(errors.ArgumentError, match="the statistics odd of tiny do not follow"):
        recipes.run(metapruning(Budget(macs=0.5), SHORT), Pruned(None, None), task, KEY)
    TrainHypernetwork(FREE, SHORT, recalibrate=0).check(task)


def test_a_step_reaches_the_hypernetwork_alone():
    task = task_of()
    for vectors in ("fixed", "shared", "each"):
        hyper, params = hyper_of(vectors)
        of_widths = hypernetwork_task(task, hyper, smoothing=0.0)
        batch = next(task.data.batches("train", 16, seed=0))

        def loss(given, net, of=of_widths, batch=batch):
            out, _ = of.train_fn({"hyper": given, "net": net}, batch["image"], KEY)
            return of.loss(out, batch).mean()

        gradient = quick(jax.grad(loss), params, net_of())
        made = gradient["made"]["params/conv2/kernel"]
        assert all(np.any(leaf) for leaf in made.values())
        # What was masked in this step (all but the leading units) has no gradient.
        reached = np.any(made["kernel"], axis=(0, 1, 2))
        assert reached[0]
        assert not np.any(reached[1:] & ~reached[:-1])
        assert "params/fc/bias" in gradient["direct"]  # no unit stands on it
        assert ("params/norm1/scale" in gradient["direct"]) == (vectors == "shared")
        assert ("params/norm1/scale" in gradient["tables"]) == (vectors == "each")
        if vectors == "each":  # one option a group was drawn
            table = np.asarray(gradient["tables"]["params/norm2/bias"])
            assert table.shape == (7, 12)
            assert np.any(table, axis=1).sum() == 1


def test_vectors_that_have_a_kernel_s_rank_and_low_precision():
    """A bias [1, 1, C] is a vector, a kernel [1, 1, 1, C] is none; types are those of the net."""

    def fn(variables, x):
        p = variables["params"]
        x = jax.lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)
        return (jax.nn.relu(x + p["b"])).mean((1, 2)) @ p["f"]

    half = lambda *shape: jax.random.normal(KEY, shape).astype(jnp.bfloat16)
    params = {"k": half(1, 1, 1, 8), "b": half(1, 1, 8), "f": half(8, CLASSES)}
    task, variables = with_stats(lambda v, x, key: (fn(v, x), {}), params, {})
    example = jax.ShapeDtypeStruct((1, *SHAPE), jnp.bfloat16)
    task = task._replace(fn=fn, example=example)
    groups = Net(task).groups
    free = Menu(groups.names, np.array([8]), np.array([[2, 4, 8]]))
    for vectors, place in (("fixed", None), ("shared", "direct"), ("each", "tables")):
        hyper = hypernetwork(task, groups, free, 4, vectors)
        given = jax.eval_shape(hyper.init, KEY, variables)
        assert {*given["made"]} == {"params/k", "params/f"}
        held = {name for name in ("direct", "tables") if "params/b" in given[name]}
        assert held == ({place} - {None})
    given = jax.jit(hyper.init)(KEY, variables)
    bent = given["tables"]["params/b"].at[1].multiply(2)  # the second of three options
    given = {**given, "tables": {"params/b": bent}}
    net = jax.jit(hyper.net)(given, variables, jnp.array([4]))["params"]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(net))
    assert fn({"params": net}, jnp.ones((1, *SHAPE), jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(net["b"], jnp.where(jnp.arange(8) < 4, 2 * params["b"], 0))


def test_smoothed_labels():
    """(1 - s) CE(label) + s mean over classes, against optax."""
    task = task_of()
    smooth = hypernetwork_task(task, hyper_of()[0], smoothing=0.1)
    logits = jax.random.normal(KEY, (6, task.data.classes))
    labels = jnp.arange(6) % task.data.classes
    target = optax.smooth_labels(jax.nn.one_hot(labels, task.data.classes), 0.1)
    expected = optax.softmax_cross_entropy(logits, target)
    np.testing.assert_allclose(smooth.loss(logits, {"label": labels}), expected, rtol=1e-5)


def test_candidates_are_scored_by_one_program():
    task, images = task_of(), images_of()
    traces = []

    def fn(variables, x):
        traces.append(x.shape)
        return task.fn(variables, x)

    hyper, params = hyper_of()
    held_out = stacked(task, "validation", 8, 2)
    score = scorer(task._replace(fn=fn), hyper.net, images, held_out, KEY)
    rows = [np.array([row[n] for row in hyper.menu.widths]) for n in range(7)]
    found = [float(score(params, net_of(), row)) for row in rows]
    assert len(traces) == 1

    @functools.partial(jax.jit, compiler_options=QUICK)
    def outputs(row):
        net = settled(task, hyper.net(params, net_of(), row), images, KEY)
        return [task.fn(net, image) for image in held_out["image"]]

    for row, value in zip(rows[::3], found[::3]):
        labels = held_out["label"]
        right = [np.argmax(out, -1) == label for out, label in zip(outputs(row), labels)]
        weight = held_out["weight"].ravel()
        assert value == pytest.approx((np.ravel(right) * weight).sum() / weight.sum())


def space_of(genes=12, options=10, high=0.5):
    """Costs as of a chain of layers: products of neighbours."""

    def cost(found):
        wide = (found + 1) / options
        return (wide[:, 1:] * wide[:, :-1]).mean(axis=1)

    return Space((options,) * genes, cost, high, 0.95 * high)


def run_search(space, objective, seed, **numbers: Any):
    searcher = evolution(space, **numbers)
    state = searcher.init(jax.random.key(seed))
    asked = []
    for _ in range(numbers["generations"]):
        genes = searcher.ask(state)
        np.testing.assert_array_equal(genes, searcher.ask(state))  # asking changes nothing
        asked.append(genes)
        state = searcher.tell(state, genes, objective(genes))
    return searcher.best(state)[1], np.concatenate(asked)


def test_every_candidate_is_in_the_window_and_none_comes_twice():
    """Checks [39] P3."""
    space = space_of()
    _, asked = run_search(space, lambda genes: genes[:, 0], 0, generations=6)
    assert len(asked) == 300
    assert len({tuple(row) for row in asked.tolist()}) == 300
    cost = space.cost(asked)
    assert cost.min() >= 0.475 - 1e-6
    assert cost.max() <= 0.5 + 1e-6


def test_search_beats_chance_at_equal_evaluations():
    """Layers differ in what their width is worth, as layers do; 300 evaluations each."""
    space = space_of()
    worth = np.random.default_rng(5).uniform(0.1, 1, 12)
    objective = lambda genes: np.log1p(genes) @ worth
    numbers = {"generations": 10, "population": 30, "parents": 8}
    ahead = []
    for seed in range(5):
        best, _ = run_search(space, objective, seed, mutants=15, crossovers=15, **numbers)
        chance, _ = run_search(space, objective, seed, mutants=0, crossovers=0, **numbers)
        ahead.append(best - chance)
    assert min(ahead) > 0
    assert np.mean(ahead) > 0.2


def test_offspring():
    rng, options = np.random.default_rng(0), np.array([4, 2, 9])
    parents = np.array([[3, 0, 8], [1, 1, 4]])
    away = mutated(parents, options, 1.0, rng, 200)
    assert (away < options).all()
    assert (away >= 0).all()
    # Every gene is another one than that of the parent, which the second gene tells.
    of = parents[1 - away[:, 1]]
    assert (away != of).all()
    few = mutated(parents[:1], options, 0.1, rng, 5000)
    assert (few != parents[0]).mean() == pytest.approx(0.1, abs=0.01)
    both = crossed(parents, rng, 500)
    assert all((row[i] in parents[:, i]) for row in both for i in range(3))
    assert len({tuple(row) for row in both.tolist()}) == 8


def test_a_space_that_is_used_up_gives_nothing_more():
    space = Space((3, 2), lambda genes: genes.sum(axis=1) / 3, high=1.0)
    best, asked = run_search(space, lambda genes: genes[:, 0], 0, generations=4, population=5,
                             mutants=2, crossovers=2)  # fmt: skip
    assert len(asked) == 6
    assert best == 2


def test_a_space_without_a_member_is_refused():
    task = task_of()
    with pytest.raises(errors.BudgetError, match=r"no member under the budget 0.001.*Ask for 0\."):
        Widths(Budget(macs=0.001)).check(task, Net(task).groups, Net(task).cost)
    with pytest.raises(errors.BudgetError, match=r"no member that costs 0\.6993 to 0\.7"):
        Widths(Budget(macs=0.7, multiple_of=4), window=0.001).check(
            task, Net(task).groups, Net(task).cost
        )
    with pytest.raises(errors.BudgetError, match="no member under the budget"):
        TrainHypernetwork(Widths(Budget(params=0.001)), SHORT).check(task)
    assert isinstance(metapruning(Budget(macs=0.5), SHORT)[3], CheckedStage)


def test_bad_numbers():
    task, groups = task_of(), Net(task_of()).groups
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        metapruning(Budget(macs=0.5), None)
    with pytest.raises(errors.ArgumentError, match="the window is in"):
        metapruning(Budget(macs=0.5), SHORT, window=0.0)
    with pytest.raises(errors.ArgumentError, match="one of fixed, shared, each"):
        Widths(Budget(macs=0.5), vectors="none").check(task, Net(task).groups, Net(task).cost)
    with pytest.raises(errors.ArgumentError, match="smoothing=1 is outside"):
        hypernetwork_task(task, hyper_of()[0], smoothing=1)
    with pytest.raises(errors.ArgumentError, match="2 options or more"):
        menu(16, options=1)
    with pytest.raises(errors.ArgumentError, match="offspring is at most the population"):
        evolution(space_of(), population=10)
    whole = Budget(macs=0.5, floors=dict(groups.sizes))
    with pytest.raises(errors.ArgumentError, match="nothing of tiny has a width to choose"):
        Widths(whole).check(task, Net(task).groups, Net(task).cost)


def test_the_recipe_finds_a_net_under_the_budget():
    task = quick_to_begin(train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data(96)))
    recipe = metapruning(
        Budget(macs=0.5), SHORT, options=7, hidden=4, window=0.5, generations=2, population=6,
        mutants=3, crossovers=2, images=12, recalibrate=2,
    )  # fmt: skip
    assert isinstance(recipe[4], Search)
    done, seen = recipes.run(recipe[1:], Pruned(task.init(KEY), None), task, KEY)
    by_stage = {row["stage"]: row["metrics"] for row in seen}
    assert 0.4 - 1e-6 <= by_stage["search"]["macs"] <= 0.5 + 1e-6
    assert by_stage["search"]["evaluated"] == 12
    assert all(np.all(np.diff(mask.astype(int)) <= 0) for mask in done.masks.values())
    fn, small = Net(task).slim(done)
    x = next(task.data.batches("test", 4))["image"]
    assert relative_error(task.fn(done.variables, x), fn(small, x)) <= 1e-5
    assert done.extra is None


def test_a_search_goes_on_where_it_stopped():
    task = task_of()
    params = hyper_of()[1]
    start = Pruned(net_of(), None, params)
    rounds = Rounds(3, 6, 3, 3, 2)
    learner = Search(FREE, rounds, 12, 1, 16).learner(start, task, KEY)
    states = [learner.init()]
    for _ in range(3):
        states.append(learner.step(states[-1], {})[0])
    again = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, states[1]))
    for _ in range(2):
        again, metrics = learner.step(again, {})
    assert equal(again, states[3])
    assert metrics["best"] == max(np.asarray(again.scores)[:18])
    assert equal(learner.finish(again).masks, learner.finish(states[3]).masks)


@pytest.mark.slow
def test_p39_has_a_row_an_arm():
    found = run_claim(p39.CLAIM, smoke=True)
    assert {row["part"] for row in found} == {"rank", "search", "net"}
