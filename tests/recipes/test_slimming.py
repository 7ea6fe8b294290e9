"""Network slimming (B2): the penalty on scales, one threshold for the net, what is folded."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import blocks, criteria, errors, recipes, sparsify
from jprune.base import Budget, Pruned
from jprune.stages import PruneScales, ShrinkScales, Train
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = own.KEY
SHORT = Train(10, 0.05, 16, schedule="constant", max_steps=30, name="finetune")


@pytest.fixture(scope="module")
def net():
    task = toy_task()
    return task, Pruned(drawn(task), None)


def multiplied(size):
    """A net whose units are multiplied by `scale`, and the groups of it."""
    fn = lambda v, x: jax.nn.relu(x @ v["first"] * v["scale"]) @ v["second"]
    variables = {"first": jnp.ones((2, size)), "scale": jnp.ones(size),
                 "second": jnp.ones((size, 1))}  # fmt: skip
    return variables, jprune.trace(fn, variables, jnp.ones((1, 2)))


def test_the_increment_of_the_gradient(float64):
    variables, groups = multiplied(3)
    variables["scale"] = jnp.array([0.5, -0.2, 0.0])
    tx = sparsify.l1_gradient(blocks.scales(groups), 1e-4)
    still = jax.tree.map(jnp.zeros_like, variables)
    updates, _ = tx.update(still, tx.init(variables), variables)
    np.testing.assert_allclose(updates["scale"], [1e-4, -1e-4, 0], rtol=1e-6)
    assert not updates["first"].any()
    assert not updates["second"].any()


def test_positions_of_no_unit_have_no_penalty():
    """A norm over two maps of which one is an output of the net: its channels are frozen."""

    def fn(v, x):
        both = jnp.concatenate([x @ v["a"], x @ v["b"]], -1) * v["scale"]
        return both[:, :3], jax.nn.relu(both[:, 3:]) @ v["out"]

    v = own.draw({"a": (2, 3), "b": (2, 4), "scale": (7,), "out": (4, 1)})
    v["scale"] = np.full(7, 0.5, np.float32)
    groups = jprune.trace(fn, v, jnp.ones((1, 2)))
    scales = blocks.scales(groups)
    still, params = jax.tree.map(jnp.zeros_like, v), jax.tree.map(jnp.asarray, v)
    for tx, moved in (
        (sparsify.l1_gradient(scales, 0.25), 0.25),
        (sparsify.l1_decay(scales, 0.25, 1.0), -0.25),
    ):
        updates, _ = jax.jit(tx.update)(still, tx.init(params), params)
        np.testing.assert_allclose(updates["scale"], [0, 0, 0, *[moved] * 4])


def test_the_subgradient_is_that_of_the_penalised_loss(float64):
    """By autodiff, through momentum and all."""
    variables, groups = multiplied(4)
    variables = jax.tree.map(jnp.asarray, own.draw(jax.tree.map(jnp.shape, variables)))
    loss = lambda v: ((jax.nn.relu(v["first"] * v["scale"]) @ v["second"]) ** 2).sum()
    whole = lambda v: loss(v) + 0.3 * jnp.abs(v["scale"]).sum()
    chain = optax.chain(sparsify.l1_gradient(blocks.scales(groups), 0.3), optax.sgd(0.01, 0.9))
    found, right = (
        (variables, chain.init(variables)),
        (variables, optax.sgd(0.01, 0.9).init(variables)),
    )
    for _ in range(5):
        updates, state = chain.update(jax.grad(loss)(found[0]), found[1], found[0])
        found = optax.apply_updates(found[0], updates), state
        updates, state = optax.sgd(0.01, 0.9).update(jax.grad(whole)(right[0]), right[1])
        right = optax.apply_updates(right[0], updates), state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found[0], right[0])


def test_one_threshold_for_the_whole_net(net):
    """What is kept are the largest mean |gamma| of the net, of streams and branches alike."""
    task, start = net
    rng = np.random.default_rng(0)
    params = dict(start.variables["params"])
    gamma = {f"norm{n}": rng.normal(size=s) for n, s in ((1, 8), (2, 12), (3, 8))}
    for name, scale in gamma.items():
        params[name] = {**params[name], "scale": jnp.asarray(scale, jnp.float32)}
    start = start._replace(variables={**start.variables, "params": params})
    stream = (np.abs(gamma["norm1"]) + np.abs(gamma["norm3"])) / 2
    sizes = {"params/conv1/kernel": stream, "params/conv2/kernel": np.abs(gamma["norm2"])}
    pruned, (record,) = PruneScales(Budget(density=0.5))(start, task, KEY)
    threshold = np.sort(np.concatenate([*sizes.values()]))[-10]
    for name, size in sizes.items():
        np.testing.assert_array_equal(pruned.masks[name], size >= threshold)
    assert record["metrics"]["threshold"] == pytest.approx(threshold)
    assert record["metrics"]["zeros"] == 0
    most = jprune.run_criterion(criteria.scales(Net(task).groups, "max"), start.variables, ())
    largest = np.maximum(np.abs(gamma["norm1"]), np.abs(gamma["norm3"]))
    np.testing.assert_allclose(most["params/conv1/kernel"], largest, rtol=1e-6)


def shifted():
    """Dense layers with a norm, some of whose scales are 0 and whose shifts are not."""
    params = own.draw({"a": (5, 6), "b": (6, 3), "bias": (3,)})
    params |= {"scale": np.array([1, 0, 2, 0, 1, 3], np.float32),
               "shift": np.array([0, 1, 0, 2, -1, 1], np.float32)}  # fmt: skip

    def fn(v, x):
        p = v["params"]
        return jax.nn.relu(x @ p["a"] * p["scale"] + p["shift"]) @ p["b"] + p["bias"]

    return own.task_of(fn, params, (5,))


def test_what_a_scale_of_0_still_says_is_folded():
    task = shifted()
    start, x = Pruned(task.init(KEY), None), jax.random.normal(KEY, (7, 5))
    dense = task.fn(start.variables, x)
    pruned, (record,) = PruneScales(Budget(density=4 / 6))(start, task, KEY)
    assert pruned.masks["params/a"].tolist() == [True, False, True, False, True, True]
    np.testing.assert_allclose(task.fn(pruned.variables, x), dense, atol=1e-5)
    assert record["metrics"]["folded"] == 1
    assert record["metrics"]["zeros"] == pytest.approx(2 / 6)
    dropped, (record,) = PruneScales(Budget(density=4 / 6), fold=False)(start, task, KEY)
    assert np.abs(task.fn(dropped.variables, x) - dense).max() > 0.1
    assert record["metrics"]["folded"] == 0


def trained(net, stage):
    task, start = net
    return stage(start, task, KEY)[0].variables["params"]


def test_only_the_proximal_step_makes_zeros_and_only_of_scales(net):
    stages = {
        how: ShrinkScales(SHORT, Budget(macs=0.5), 0.1, how) for how in ("prox", "subgradient")
    }
    found = {how: trained(net, stage) for how, stage in stages.items()}
    plain = trained(net, SHORT)
    scales = lambda params: np.concatenate([params[f"norm{n}"]["scale"] for n in (1, 2, 3)])
    assert 0 < (scales(found["prox"]) == 0).sum() < 28
    assert (scales(found["subgradient"]) != 0).all()
    for params in found.values():
        assert np.abs(scales(params)).mean() < 0.7 * np.abs(scales(plain)).mean()
        assert (np.asarray(params["conv2"]["kernel"]) != 0).all()
        assert np.abs(params["norm2"]["bias"]).max() > 0


def test_a_net_whose_scales_were_shrunk_loses_less_by_the_cut():
    """On the toy's images, at the same budget and after as many steps."""
    task = toy_task(train_size=96)
    start = Pruned(drawn(task), None)
    image = next(task.data.batches("validation", 10))["image"]
    lost = []
    for stage in (ShrinkScales(dataclasses.replace(SHORT, max_steps=60), Budget(macs=0.5)),
                  dataclasses.replace(SHORT, max_steps=60)):  # fmt: skip
        after, _ = stage(start, task, KEY)
        cut, _ = PruneScales(Budget(macs=0.5))(after, task, KEY)
        before, then = (np.asarray(task.fn(p.variables, image)) for p in (after, cut))
        lost.append(np.linalg.norm(then - before) / np.linalg.norm(before))
    assert lost[0] < 0.25 * lost[1], lost  # measured: 0.07 and 0.77


def test_the_default_strength_takes_the_mean_scale_in_half_of_these_steps(net):
    """With a loss that has no gradient."""
    task, start = net
    still = task._replace(loss=own.no_loss)
    for steps in (3, 11):
        learner = ShrinkScales(
            dataclasses.replace(SHORT, max_steps=steps), Budget(macs=0.5)
        ).learner(start, still, KEY)
        state, sizes = learner.init(), []
        for _, batch in zip(range(steps), learner.batches(0)):
            state, _ = learner.step(state, batch)
            sizes.append(float(np.max(learner.variables(state)["params"]["norm1"]["scale"])))
        right = np.maximum(1 - 2 * np.arange(1, steps + 1) / steps, 0)
        np.testing.assert_allclose(sizes, right, atol=1e-5)


def test_a_strength_without_time_to_act_says_so(net):
    task, start = net
    for strength, weak in ((1e-4, True), (0.1, False), (None, False), (0.0, False)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ShrinkScales(SHORT, Budget(macs=0.5), strength).learner(start, task, KEY)
        assert any("too weak for so few steps" in str(each.message) for each in said) == weak


def test_floors_leave_a_group_without_a_penalty(net):
    budget = Budget(macs=0.8, floors={"params/conv1/kernel": 8})
    params = trained(net, ShrinkScales(SHORT, budget, 0.1))
    assert (np.asarray(params["norm1"]["scale"]) != 0).all()
    assert (np.asarray(params["norm2"]["scale"]) == 0).any()


def test_the_penalty_acts_in_the_dense_training_or_in_rounds(net):
    task, start = net
    short = dataclasses.replace(SHORT, max_steps=4)
    recipe = recipes.find("slimming")(
        Budget(macs=0.6), dataclasses.replace(short, name="train"), short, stop=0.0
    )
    assert [stage.name for stage in recipe] == [
        "train", "save", "dense", "prune", "before_finetune", "finetune"
    ]  # fmt: skip
    recipe = recipes.find("slimming")(Budget(macs=0.5), None, short, rounds=2)
    assert [stage.name for stage in recipe][2:] == [
        "shrink", "prune", "between", "shrink", "prune", "before_finetune", "finetune"
    ]  # fmt: skip
    done, records = recipes.run(recipe, start, task, KEY)
    kept = [r["metrics"]["macs"] for r in records if r["stage"] == "prune"]
    assert kept[0] <= 0.5**0.5 + 1e-6
    assert 0.4 < kept[1] <= 0.5
    for path, mask in Net(task).leaves(Net(task).weight_masks(done.masks)).items():
        assert not np.asarray(Net(task).leaves(done.variables)[path])[~np.asarray(mask)].any()


@pytest.mark.parametrize(("options", "says"), [
    ({"how": "newton"}, "how='newton'"),
    ({"strength": -1.0}, "a strength of 0 or more"),
    ({"stop": 1.0}, r"stop is in \[0, 1\)"),
    ({"stop": 0.0}, "not with --weights"),
    ({"rounds": 0}, "rounds 1 or more"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, says):
    with pytest.raises(errors.ArgumentError, match=says):
        recipes.find("slimming")(Budget(macs=0.5), None, SHORT, **options)


def test_nets_and_budgets_that_do_not_fit_are_refused(net):
    task, _ = net
    with pytest.raises(errors.StructureError, match="no norm with scales"):
        ShrinkScales(SHORT, Budget(macs=0.5)).check(own.channels_first(False))
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        PruneScales(Budget(macs=0.01)).check(task)
    with pytest.raises(errors.ArgumentError, match="across='median'"):
        PruneScales(Budget(macs=0.5), across="median").check(task)
    whole = Budget(macs=0.5, floors=dict.fromkeys(Net(task).groups.names, 99))
    with pytest.raises(errors.StructureError, match="kept by floors"):
        ShrinkScales(SHORT, whole).check(task)
