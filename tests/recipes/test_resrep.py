"""ResRep: rows of compactors forget, are folded into the layers before them, and lose nothing."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.learners.compactor import compactable, compacted, compacted_task, restated
from jprune.learners.own_steps import beside
from jprune.recipes import Train
from jprune.recipes.resrep import resrep
from jprune.sparsify.forgetting import forgetting, row_norms
from jprune.stages.compactor import CutRows, Forget, TrainCompactors
from jprune.stages.unit_gates import Gated
from jprune.train.net import Net
from tests.contracts import own
from tests.recipes.test_fbs import images, net

KEY = jax.random.key(21)
LONG = Train(40, 0.05, 16, "cosine", name="finetune")


def test_a_chosen_row_has_the_slope_of_the_penalty_alone():
    """G_i = m_i dL/dQ_i + lambda Q_i / |Q_i|, by hand, through the momentum."""
    with jax.enable_x64(True):
        matrix = {"a": jnp.array([[3.0, 4.0], [0.0, -2.0]])}
        slopes = {"a": jnp.array([[10.0, 20.0], [1.0, 1.0]])}
        choose = lambda lengths, step, masks: {"a": jnp.array([False, True])}
        tx = forgetting(lambda step: 0.1, 0.5, choose, momentum=0.9, how="subgradient")
        first, state = tx.update(slopes, tx.init(matrix), matrix)
        gradient = np.array([[0.3, 0.4], [1.0, 0.5]])
        np.testing.assert_allclose(first["a"], -0.1 * gradient, rtol=1e-6)
        second, _ = tx.update(slopes, state, matrix)
        np.testing.assert_allclose(second["a"], -0.1 * 1.9 * gradient, rtol=1e-6)
        assert row_norms(matrix)["a"].tolist() == [5.0, 2.0]
        # Behind the momentum: 0.1 * 0.5 / (1 - 0.9) off the length of the row that was chosen
        tx = forgetting(lambda step: 0.1, 0.5, choose, momentum=0.9)
        moves, _ = tx.update(slopes, tx.init(matrix), matrix)
        np.testing.assert_allclose((matrix["a"] + moves["a"])[0], [2.7, 3.6], rtol=1e-6)


@pytest.mark.parametrize("how", ["prox", "subgradient"])
def test_a_row_that_stays_rests_at_the_minimum_of_loss_and_penalty(how):
    """min |q - t|^2 / 2 + lambda |q| is (1 - lambda / |t|) t; a row of 0 has a penalty of 0."""
    target = jnp.array([[0.6, 0.8], [0.0, 0.3], [2.0, 0.0]])
    still = lambda lengths, step, masks: {"a": jnp.array([True, True, False])}
    tx = forgetting(lambda step: 0.02, 0.4, still, momentum=0.9, how=how)

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update({"a": params["a"] - target}, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = {"a": jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])}
    (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=500)
    np.testing.assert_allclose(params["a"][0], [0.36, 0.48], atol=1e-4)
    small = 0.0 if how == "prox" else 0.1  # the subgradient swings about 0
    assert np.abs(params["a"][1:]).max() <= small


def dense(bias=True):
    """A dense net of twelve units whose labels are those of three directions."""
    rng = np.random.default_rng(2)
    x = rng.uniform(size=(64, 6)).astype(np.float32)
    labels = x[:, :3].argmax(-1).astype(np.int32)

    def fn(v, x):
        p = v["params"]
        return jax.nn.relu(x @ p["first"] + p["bias"] if bias else x @ p["first"]) @ p["second"]

    params = own.draw({"first": (6, 12), "second": (12, 3)}, seed=1)
    params |= {"bias": rng.normal(size=12).astype(np.float32)} if bias else {}
    return own.task_of(fn, params, (6,), images=x, labels=labels)


def depthwise(act=jax.nn.relu):
    """A convolution, a depthwise one with a shift, and a dense layer."""
    params = own.draw({"a": (3, 3, 1, 6), "d": (3, 3, 1, 6), "s": (6,), "c": (6, 3), "b": (3,)})

    def fn(v, x):
        p = v["params"]
        x = act(own.conv(x, p["a"]))
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, p["d"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=6
        )
        return act(x + p["s"]).mean((1, 2)) @ p["c"] + p["b"]

    return own.task_of(fn, params, (4, 4, 1))


def tasks():
    made = {f"dense-{bias}": dense(bias) for bias in (True, False)}
    made |= {"first": own.channels_first(True), "last": own.channels_first(False)}
    return made | {"depthwise": depthwise()}


def drawn_maps(task):
    makers = compactable(task, Net(task).groups)
    rng = np.random.default_rng(3)
    sizes = Net(task).groups.sizes
    return makers, {n: jnp.asarray(rng.normal(size=(sizes[n],) * 2), jnp.float32) for n in makers}


@pytest.mark.parametrize("kind", ["tiny", "biased", "preactivation", "concatenated", *tasks()])
def test_compactors_fold_into_the_layers_before_them(kind):
    """The net with random matrices is a plain one, whatever its statistics are."""
    if kind in tasks():
        task = tasks()[kind]
        variables, x = task.init(KEY), next(task.data.batches("train", 16))["image"]
    else:
        (task, variables), x = net(kind), images()
    groups, (makers, matrices) = Net(task).groups, drawn_maps(task)
    assert makers
    still = task._replace(train_fn=lambda v, x, key: (task.fn(v, x), None))
    made = compacted_task(still, groups, makers)

    @jax.jit
    def all_three(net, x):
        expected, _ = made.train_fn({"net": net, "gates": matrices}, x, KEY)
        folded = compacted(task, groups, makers, matrices, net)
        return expected[0] if isinstance(expected, tuple) else expected, folded

    expected, folded = all_three(variables, x)
    far = np.abs(expected - task.fn(variables, x)).max()
    assert far > 0.05 * np.abs(expected).max()  # the matrices say something
    bound = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(jax.jit(task.fn)(folded, x), expected, atol=bound)
    again = restated(task, groups, makers, folded, [x])
    np.testing.assert_allclose(jax.jit(task.fn)(again, x), expected, atol=5 * bound)
    if kind == "tiny":
        # With the statistics of these very images a training step sees the same net.
        out, _ = jax.jit(task.train_fn)(again, x, KEY)
        np.testing.assert_allclose(out, expected, atol=0.02 * np.abs(expected).max())
        assert np.abs(jax.jit(task.train_fn)(folded, x, KEY)[0] - expected).max() > far / 20


def test_what_can_have_a_compactor():
    task, _ = net()
    names = Net(task).groups.names
    kernels = tuple(f"params/conv{number}/kernel" for number in (1, 2, 3))
    # A residual sum has one for all that is added.
    assert compactable(task, Net(task).groups) == {
        names[0]: (kernels[0], kernels[2]),
        names[1]: kernels[1:2],
    }
    task = depthwise()
    assert [*compactable(task, Net(task).groups).values()] == [("params/a",)]


@functools.cache
def trained(how="prox"):
    """The stages of the recipe one by one, on a trained net, and what they say."""
    task = dense()
    start, _ = Train(20, 0.1, 16)(Pruned(task.init(KEY), None), task, KEY)
    compact, _, cut = resrep(Budget(density=0.5), None, LONG, how=how)[2:5]
    middle, _ = compact(start._replace(saved={"dense": start.variables}), task, KEY)
    return task, start, middle, *cut(middle, task, KEY)


def test_rows_that_go_are_0_and_the_cut_changes_nothing():
    task, start, middle, last, records = trained()
    (rows,) = middle.extra["rows"].values()
    (mask,) = last.masks.values()
    assert np.array_equal(np.asarray(rows) == 0, ~mask)
    assert mask.sum() == 6
    assert records[0]["metrics"]["longest"] == 0
    x = next(task.data.batches("train", 64))["image"]
    # The cut net, as it is without its units, is the one that was trained.
    fn, small = Net(task).slim(last)
    np.testing.assert_allclose(fn(small, x), task.fn(middle.variables, x), atol=1e-5)
    right = lambda v: float((task.fn(v, x).argmax(-1) == task.data.batches(
        "train", 64).__next__()["label"]).mean())  # fmt: skip
    assert right(last.variables) >= right(start.variables) - 0.05


def test_the_subgradient_of_the_authors_comes_near_0():
    (rows,) = trained("subgradient")[2].extra["rows"].values()
    (mask,) = trained("subgradient")[3].masks.values()
    rows = np.asarray(rows)
    assert 0 < rows[~mask].max() < 0.3 * rows[mask].min()


def masks_while_training(forget, task, train=LONG):
    stage = TrainCompactors(train, Budget(density=0.5), Gated(), forget)
    learner = stage.learner(Pruned(task.init(KEY), None), task, KEY)
    state = learner.init()
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, _ = learner.step(state, batch)
        (mask,) = state.opt_state.inner[1].masks.values()
        yield np.array(mask), np.array(next(iter(state.params["gates"].values())))


def test_choices_grow_by_the_numbers_of_the_authors_and_in_a_line_by_default():
    counts = [(~m).sum() for m, _ in masks_while_training(
        Forget(1e-3, begin=0.1, every=4, more=2), dense())]  # fmt: skip
    # From step 16 of 160 on, two more every fourth step, until six of twelve are chosen.
    expected = np.clip(2 * (1 + (np.arange(160) - 16) // 4), 0, 6)
    assert counts == expected.tolist()
    counts = [(~mask).sum() for mask, _ in masks_while_training(Forget(), dense())]
    assert (counts[1], counts[47], counts[-1]) == (0, 6, 6)
    assert 2 <= counts[24] <= 4
    assert (np.diff(counts) >= 0).all()


def test_masked_units_stay_masked_and_a_run_goes_on_where_it_stopped():
    task = dense()
    (name,) = Net(task).groups.names
    masks = {name: np.arange(12) % 4 > 0}
    start = Pruned(task.init(KEY), masks)
    stage = TrainCompactors(dataclasses.replace(LONG, epochs=4), Budget(density=0.5), Gated(),
                            Forget())  # fmt: skip
    learner = stage.learner(start, task, KEY)

    def steps(state, begin, count):
        for batch in itertools.islice(learner.batches(begin), count):
            state, _ = learner.step(state, batch)
        return state

    whole = steps(learner.init(), 0, 6)
    parts = steps(steps(learner.init(), 0, 2), 2, 4)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole.params, parts.params)))
    after, _ = CutRows(Budget(density=0.5), Gated())(learner.finish(whole), task, KEY)
    assert not (np.asarray(after.masks[name]) & ~masks[name]).any()
    assert not np.asarray(after.variables["params"]["first"])[:, ~after.masks[name]].any()


def test_a_batch_in_parts_is_the_same_step():
    task = dense()
    start = Pruned(task.init(KEY), None)

    def after(parts):
        train = dataclasses.replace(LONG, accumulate=parts)
        learner = TrainCompactors(train, Budget(density=0.5), Gated(), Forget()).learner(
            start, task, KEY
        )
        state, _ = learner.step(learner.init(), next(learner.batches(0)))
        return state.params

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(close, after(1), after(2))


def test_what_a_unit_says_behind_a_depthwise_layer_goes_into_its_readers():
    task = depthwise()
    (name,) = Net(task).groups.names
    lengths = {name: np.array([0.0, 1, 1, 0, 1, 1])}
    silent = jax.tree.map(np.array, task.init(KEY))
    silent["params"]["a"][..., [0, 3]] = 0
    cut = CutRows(Budget(density=4 / 6), Gated())
    last, (record,) = cut(Pruned(silent, None, {"rows": lengths}), task, KEY)
    assert np.array_equal(last.masks[name], lengths[name] > 0)
    assert record["metrics"]["folded"] == 1
    x = next(task.data.batches("train", 16))["image"]
    np.testing.assert_allclose(task.fn(last.variables, x), task.fn(silent, x), atol=1e-5)
    assert not np.array_equal(last.variables["params"]["b"], silent["params"]["b"])


def test_steps_of_their_own():
    params = {"net": jnp.ones(2), "gates": {"a": jnp.ones(3)}}
    tx = beside(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), optax.sgd(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["net"], -np.ones(2) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(updates["gates"]["a"], -0.5 * np.ones(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength is 0 or more, or None"),
        ({"momentum": 1.0}, r"momentum is in \[0, 1\)"),
        ({"how": "l1"}, "how='l1'"),
        ({"begin": 0.5}, "until is above begin"),
        ({"every": 0}, "every is 1 or more"),
        ({"more": 0}, "more is 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        resrep(Budget(macs=0.5), None, LONG, **options)


def test_nets_and_budgets_that_cannot_be_are_refused_before_training():
    task = dense()
    check = lambda budget, gated: TrainCompactors(LONG, budget, gated, Forget()).check(task)
    with pytest.raises(errors.BudgetError):
        check(Budget(macs=0.01), Gated())
    with pytest.raises(errors.ArgumentError, match="names nothing that can have a gate"):
        check(Budget(macs=0.5), Gated("nothing*"))
    (name,) = Net(task).groups.names
    with pytest.raises(errors.FrozenError):
        check(Budget(macs=0.5, floors={name: 12}), Gated(name))
    with pytest.raises(errors.ArgumentError, match="Put TrainCompactors before CutRows"):
        CutRows(Budget(macs=0.5), Gated())(Pruned(task.init(KEY), None), task, KEY)
    stage = TrainCompactors(LONG, Budget(macs=0.5), Gated(), Forget(1e-6))
    with pytest.warns(UserWarning, match="rows that go are not 0 in time"):
        stage.learner(Pruned(task.init(KEY), None), task, KEY)


def test_a_run_by_name_meets_its_budget():
    task, _ = net()
    train = Train(1, 0.05, 16, name="train", max_steps=2)
    recipe = recipes.find("resrep")(Budget(macs=0.6), train, dataclasses.replace(LONG, max_steps=3))
    pruned, records = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    said = {record["stage"]: record["metrics"] for record in records}
    names = "train dense compact before_cut prune before_finetune"
    assert list(said) == names.split()
    assert 0.5 < said["prune"]["macs"] <= 0.6
    # Inside of the residual block there is enough to take: the sum stays whole.
    first, second = Net(task).groups.names
    assert pruned.masks[first].all()
    assert not pruned.masks[second].all()
