"""GAL: masks that fall to exact zeros, an adversary that judges, and no labels."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import p30, p30b
from experiments.claims.claim import run as run_claim
from jprune import errors, gated, recipes, slim, slim_params, trace
from jprune.base import Budget, Pruned
from jprune.learners import init_judge, judged, told_apart
from jprune.learners.adversarial import Terms, start, step_of
from jprune.learners.soft_masks import chosen, ends_of, scaled, sizes_of
from jprune.recipes import Train
from jprune.recipes.gal import gal
from jprune.runs import loop
from jprune.runs.progress import Silent
from jprune.sparsify import fista
from jprune.stages.adversarial import Adversarial, SettleSoftMasks, Soft, kept_units, price
from jprune.train.net import Net
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(30)
TRAIN = Train(8, 0.02, 16, schedule="constant", name="finetune")  # 24 steps
FIRST, SECOND = "params/fc1/kernel", "params/fc2/kernel"
STREAM, INNER, BLOCK = "params/conv1/kernel", "params/conv2/kernel", "branch/params/conv3/kernel"


@functools.cache
def dense():
    """Three dense layers, and the net that has learned a little: quick to compile."""
    task = toy_task("lenet300")
    learned, _ = TRAIN(Pruned(drawn(task), None), task, KEY)
    return task, learned._replace(saved={"dense": learned.variables})


@functools.cache
def residual():
    """A task with one residual block and norms, and a net of it."""
    task = toy_task()
    return task, Pruned(drawn(task), None, None, {"dense": drawn(task)})


def stage(budget=None, soft=None, train=TRAIN, **options):
    return Adversarial(train, budget, soft or Soft(), options.pop("terms", Terms()), **options)


def run(learner, count=None):
    state = learner.init()
    for batch in itertools.islice(learner.batches(0), count or learner.steps):
        state, seen = learner.step(state, batch)
        yield state, {name: float(value) for name, value in seen.items()}


def test_the_step_of_the_masks_makes_exact_zeros():
    """Checks [30] P1."""
    m, g = jnp.array([0.2, 0.04, -0.1]), jnp.array([0.5, 0.0, 0.0])
    for positive, third in ((True, 0.0), (False, -0.05)):
        tx = fista(lambda step: 0.1, lambda step: 0.5, positive=positive)
        updates, _ = tx.update(g, tx.init(m), m)
        np.testing.assert_allclose(m + updates, [0.1, 0, third], rtol=1e-6)
        assert not np.asarray(m + updates)[1]


def test_the_momentum_is_fistas():
    """Checks [30] P2: the factors, read off a linear function, and a restart."""
    tx = fista(lambda step: 1.0, lambda step: 0.0, positive=False, restart=6)
    m = [jnp.zeros(())]
    state, paces = tx.init(m[0]), []
    for _ in range(8):
        updates, state = tx.update(jnp.ones(()), state, m[-1])
        m.append(m[-1] + updates)
        paces.append(float(state.pace))
    np.testing.assert_allclose(
        paces[:5], [1, 1.61803399, 2.19352709, 2.74979134, 3.29487968], rtol=1e-6
    )
    found = [
        (m[k + 1] - m[k] + 1) / (m[k] - m[k - 1]) for k in range(1, 8)
    ]  # m' - m = factor (m - before) - 1
    known = [0, 0.28175353, 0.43404278, 0.53106381, 0.59877859]
    np.testing.assert_allclose(found, [*known, 0, 0.28175353], atol=1e-5)


def test_fista_solves_a_lasso():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 7)), rng.normal(size=20)
    rate = 1 / np.linalg.norm(a, 2) ** 2
    tx = fista(lambda step: rate, lambda step: 3.0, positive=False)
    x = jnp.zeros(7)
    state = tx.init(x)
    for _ in range(300):
        pace = state.pace  # the textbook's gradient, at the point ahead
        ahead = x + max(pace - 1, 0) / ((1 + (1 + 4 * pace**2) ** 0.5) / 2) * (x - state.before)
        updates, state = tx.update(a.T @ (a @ ahead - b), state, x)
        x = x + updates
    slope = a.T @ (a @ np.asarray(x) - b)
    zero = np.asarray(x) == 0
    assert 0 < zero.sum() < 7
    np.testing.assert_allclose(slope[~zero], -3 * np.sign(x)[~zero], atol=1e-4)
    assert (np.abs(slope[zero]) <= 3 + 1e-4).all()


def test_masks_rest_once_there_are_zeros_enough_and_floors_hold():
    m = {"a": jnp.linspace(0.1, 0.5, 5), "b": jnp.array([0.01])}
    enough = lambda tree: sum((leaf == 0).sum() for leaf in jax.tree.leaves(tree)) >= 3
    tx = fista(lambda step: 1.0, lambda step: 0.02, enough=enough)
    state, zeros, still = tx.init(m), [], jax.tree.map(jnp.zeros_like, m)
    update = jax.jit(tx.update)
    for _ in range(40):
        updates, state = update(still, state, m)
        m = optax.apply_updates(m, updates)
        zeros.append(int(sum((leaf == 0).sum() for leaf in jax.tree.leaves(m))))
    assert zeros == sorted(zeros)
    assert zeros[-1] == 3  # never more, though all fall alike
    assert (m["a"][2:] > 0.01).all()
    tx = fista(lambda step: 1.0, lambda step: 9.0, floors={"a": 2, "b": 0})
    updates, _ = tx.update(still, tx.init(m), m)
    after = optax.apply_updates(m, updates)
    np.testing.assert_array_equal(after["a"] > 0, [False, False, False, True, True])
    np.testing.assert_allclose(after["a"][3:], m["a"][3:])
    with pytest.raises(errors.ArgumentError, match=r"it is 0 \(never\) or more"):
        fista(lambda step: 1.0, lambda step: 1.0, restart=-1)
    with pytest.raises(errors.ArgumentError, match="fista needs the parameters"):
        tx.update(m, tx.init(m))


def test_folded_masks_are_gates_and_a_block_at_0_is_a_block_that_is_gone():
    """Checks [30] P3, for blocks and channels together."""
    task, pruned = residual()
    groups, x = Net(task).groups, jax.random.normal(KEY, (5, *task.example.shape[1:]))
    ends = ends_of(task, groups, [BLOCK], pruned.variables)
    assert ends == {BLOCK: ("params/norm3/bias", "params/norm3/scale")}
    masks = {INNER: jnp.linspace(0, 1.3, 12), BLOCK: jnp.array([0.7])}
    wanted = gated(
        lambda v, x: gated(task.fn, groups)(v, {INNER: masks[INNER]}, x), groups, "join"
    )(pruned.variables, {BLOCK: masks[BLOCK]}, x)
    got = task.fn(scaled(groups, masks, ends, pruned.variables), x)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    gone = {BLOCK: np.array([False])}
    without = slim(task.fn, groups, gone)(slim_params(groups, gone, pruned.variables), x)
    zero = scaled(groups, {BLOCK: jnp.zeros(1)}, ends, pruned.variables)
    np.testing.assert_allclose(task.fn(zero, x), without, atol=1e-6)


def test_a_bias_before_the_norm_is_no_end_of_a_block():
    def fn(v, x):
        x = jax.nn.relu(x @ v["stem"])
        y = (x @ v["inner"] + v["early"] - v["mean"]) / jnp.sqrt(v["var"] + 1e-5)
        return jax.nn.relu(x + (y * v["scale"] + v["late"])) @ v["out"]

    shapes = {"stem": (3, 5), "inner": (5, 5), "out": (5, 2)}
    shapes |= dict.fromkeys(("early", "mean", "var", "scale", "late"), (5,))
    rng = np.random.default_rng(0)
    variables = {name: jnp.asarray(rng.uniform(0.5, 1.5, shapes[name])) for name in shapes}
    x = jnp.ones((1, 3))
    task, groups = dense()[0]._replace(fn=fn, example=x), trace(fn, variables, x)
    (block,) = (branch.name for branch in groups.branches)
    assert ends_of(task, groups, [block], variables) == {block: ("late", "scale")}


def test_the_judge_learns_to_tell_and_the_net_learns_to_be_taken_for_the_dense_one():
    """The accuracy of the discriminator over time: from chance to all, and back under attack."""
    task, pruned = dense()
    told = {}
    shaken = jax.tree.map(lambda leaf: 0.9 * leaf, pruned.variables)
    for name, terms, rate in (("watched", Terms(0.0, 0.0), 1e-6), ("fought", Terms(), 0.05)):
        train = dataclasses.replace(TRAIN, epochs=16, learning_rate=rate)
        hard = stage(soft=Soft(strength=0.0), train=train, terms=terms, judge_rate=0.02)
        learner, told[name] = hard.learner(pruned._replace(variables=shaken), task, KEY), []
        for seed in range(6):
            state = learner.init()._replace(judge=init_judge(jax.random.key(seed), 3))
            seen = []
            for batch in itertools.islice(learner.batches(0), learner.steps):
                state, metrics = learner.step(state, batch)
                seen.append(metrics["discriminator_accuracy"])
            told[name].append(jax.device_get(seen))
    watched, fought = (np.mean(told[name], axis=0) for name in ("watched", "fought"))
    assert watched[0] == fought[0] < 0.8  # nobody has learned anything
    assert watched[-16:].mean() > 0.9
    assert fought[-16:].mean() < 0.75


def test_labels_are_not_looked_at():
    task, pruned = dense()
    learner = stage(Budget(macs=0.7), Soft(steps=6)).learner(pruned, task, KEY)
    states = []
    for shift in (0, 1):
        state = learner.init()
        for batch in itertools.islice(learner.batches(0), 4):
            wrong = {**batch, "label": (batch["label"] + shift) % 3}
            state, _ = learner.step(state, wrong)
        states.append(state)
    assert equal(*states)


def test_masks_fall_to_exact_zeros_by_the_proximal_step_alone():
    """More with a stronger penalty; the subgradient, fed by hand, makes none."""
    task, pruned = dense()
    zeros = []
    for strength in (1.15, 1.3):
        soft = Soft(strength=strength, steps=24)
        *_, (state, _) = run(stage(soft=soft).learner(pruned, task, KEY))
        zeros.append(sum(int((m == 0).sum()) for m in state.masks.values()))
    assert 0 < zeros[0] < zeros[1]
    groups, masks = Net(task).groups, {FIRST: jnp.ones(300), SECOND: jnp.ones(100)}
    subgradient = optax.chain(optax.add_decayed_weights(0), optax.sgd(0.07))
    with_penalty = optax.GradientTransformationExtraArgs(
        subgradient.init,
        lambda g, s, p, **_: subgradient.update(
            jax.tree.map(lambda g, m: g + 6.0 * jnp.sign(m), g, p), s, p
        ),
    )
    optimizers = (optax.sgd(0.0), with_penalty, optax.sgd(0.0))
    optimizers = tuple(map(optax.with_extra_args_support, optimizers))
    step = step_of(
        task, pruned.variables, lambda m, v: scaled(groups, m, {}, v), optimizers, Terms()
    )
    state = start(task.split(pruned.variables), masks, init_judge(KEY, 3), optimizers)
    for batch in itertools.islice(task.data.batches("train", 16, seed=0), 24):
        state, _ = step(state, batch, KEY)
    assert all(bool((m != 0).all()) for m in state.masks.values())


@pytest.mark.parametrize(
    "budget",
    [Budget(params=0.5), Budget(density=0.55), Budget(macs=0.6, multiple_of=4)],
    ids=lambda budget: f"{budget.kind}-{budget.multiple_of}",
)
def test_budgets_are_met_and_the_small_net_is_the_masked_one(budget):
    task, begun = dense()
    recipe = gal(budget, None, TRAIN, mask_steps=12)
    pruned, records = recipes.run(recipe, Pruned(begun.variables, None), task, KEY)
    seen = {entry["stage"]: entry["metrics"] for entry in records}
    assert float(budget.value) - 0.12 < seen["settle"]["reached"] <= float(budget.value) + 1e-6
    if budget.multiple_of > 1:
        assert {int(mask.sum()) % 4 for mask in pruned.masks.values()} == {0}
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(KEY, (5, *task.example.shape[1:]))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())
    for name, mask in pruned.masks.items():  # fine-tuning is frozen
        if not mask.all():
            kernel = np.asarray(pruned.variables["params"][name.split("/")[1]]["kernel"])
            assert not kernel[..., ~mask].any()


@pytest.mark.parametrize(("asked", "taken"), [(5, 5), (14, 14), (24, 24), (100, 24)])
def test_as_many_steps_of_the_masks_are_taken_as_are_asked_for(asked, taken):
    task, begun = dense()
    recipe = gal(Budget(macs=0.1), None, TRAIN, mask_steps=asked, strength=1e-3, share=0.999)
    (stage,) = [each for each in recipe if each.name == "adversarial"]
    pruned = recipes.run(recipe[:2], Pruned(begun.variables, None), task, KEY)[0]
    learner = stage.learner(pruned, task, KEY)
    state, moved = learner.init(), []
    for number, batch in zip(range(1, 25), learner.batches(0)):
        before = jax.tree.map(np.array, state.masks)
        state, _ = learner.step(state, batch)
        if any((before[name] != np.asarray(m)).any() for name, m in state.masks.items()):
            moved.append(number)
    assert learner.steps == 24
    assert len(moved) == taken
    assert moved[-1] == 24
    assert max(np.diff([0, *moved])) == -(-24 // taken)


def test_branches_of_a_concatenation_and_blocks_have_one_mask():
    def fn(v, x):
        left, right = (jax.nn.relu(x @ v[name]) for name in ("left", "right"))
        return jnp.concatenate([left, right], axis=1) @ v["last"]

    variables = {"left": jnp.ones((3, 5)), "right": jnp.ones((3, 4)), "last": jnp.ones((9, 2))}
    groups = trace(fn, variables, jnp.ones((1, 3)))
    assert sizes_of(groups, ["branch"]) == {"left": 1, "right": 1}
    x = jnp.array([[1.0, 2.0, 3.0]])
    got = fn(scaled(groups, {"left": jnp.zeros(1), "right": jnp.full(1, 0.5)}, {}, variables), x)
    np.testing.assert_allclose(got, 0.5 * 4 * 6 * np.ones((1, 2)))
    with pytest.raises(errors.StructureError, match="a mask of the kind 'block' could stand on"):
        sizes_of(groups, ["block"])
    task, pruned = residual()
    soft = {STREAM: np.ones(1), INNER: np.zeros(1), BLOCK: np.zeros(1)}
    kept = kept_units(task, Budget(density=0.5, min_units=2), soft)
    assert [int(mask.sum()) for mask in kept.values()] == [8, 2, 0]
    both = stage(Budget(macs=0.5), Soft("channel+block", steps=8)).learner(pruned, task, KEY)
    *_, (state, _) = run(both)
    done, _ = SettleSoftMasks(Budget(macs=0.5))(both.finish(state), task, KEY)
    assert BLOCK in done.masks
    assert price(task, Budget(macs=0.5), state.masks) <= 0.5
    floored = Budget(density=0.5, min_units=2, floors={INNER: 7})
    assert [int(mask.sum()) for mask in kept_units(task, floored, soft).values()] == [8, 7, 0]


@pytest.mark.parametrize("budget", [Budget(macs=0.5), Budget(params=0.5)])
def test_channels_are_rounded_to_what_blocks_leave_of_the_budget(budget):
    task, pruned = residual()
    budget = dataclasses.replace(budget, multiple_of=4)
    ramp = lambda size: np.linspace(0.5, 1, size)
    soft = {STREAM: ramp(8), INNER: ramp(12), BLOCK: np.zeros(1)}
    assert price(task, budget, soft) <= float(budget.value)
    settled = lambda soft, budget: SettleSoftMasks(budget)(
        pruned._replace(extra={"soft_masks": soft}), task, KEY
    )
    done, _ = settled(soft, budget)
    # The block is most of the net: without it all channels have their place.
    assert {name: int(mask.sum()) for name, mask in done.masks.items()} == {
        STREAM: 8, INNER: 12, BLOCK: 0}  # fmt: skip
    soft[STREAM] = np.where(np.arange(8) < 2, 0, soft[STREAM])
    tight = dataclasses.replace(budget, **{budget.kind: price(task, budget, soft)})
    done, (seen,) = settled(soft, tight)
    assert int(done.masks[STREAM].sum()) == 4  # 6 are as many as the budget allows
    assert 0 < seen["metrics"][budget.kind] <= tight.value
    assert not done.masks[BLOCK].any()


def test_masks_that_are_drawn_fall_below_the_budget_and_none_is_left_negative():
    """A mask below 0 is at work until the first step makes a zero of it."""
    task, pruned = dense()
    learner = stage(Budget(macs=0.8), Soft(init="normal", steps=24)).learner(pruned, task, KEY)
    first = jax.tree.map(np.array, learner.init().masks)
    assert price(task, Budget(macs=0.8), first) == 1
    *_, (state, seen) = run(learner)
    masks = {name: np.asarray(mask) for name, mask in state.masks.items()}
    assert all((mask >= 0).all() for mask in masks.values())
    assert all(not masks[name][first[name] < 0].any() for name in masks)
    assert 0.3 < seen["masks_alive"] < 0.7
    assert price(task, Budget(macs=0.8), masks) < 0.8


def test_the_judge_is_a_net_of_three_hidden_layers_and_ties_count_a_half():
    judge = init_judge(KEY, 3, std=0.01)
    assert [layer["kernel"].shape for layer in judge] == [
        (3, 128), (128, 256), (256, 128), (128, 1)]  # fmt: skip
    assert np.std(judge[1]["kernel"]) == pytest.approx(0.01, rel=0.02)
    x = np.asarray(jax.random.normal(KEY, (4, 3)))
    by_hand = x
    for layer in judge[:-1]:
        by_hand = np.maximum(by_hand @ np.asarray(layer["kernel"]), 0)
    np.testing.assert_allclose(
        judged(judge, x), (by_hand @ np.asarray(judge[-1]["kernel"]))[:, 0], rtol=1e-5
    )
    assert float(told_apart(jnp.zeros(2), jnp.zeros(2), jnp.full(2, 0.5))) == 0.5


def test_a_gate_on_a_frozen_group_is_refused():
    task, _ = dense()
    groups = Net(task).groups
    known = sizes_of(groups, ["channel"])
    with pytest.raises(errors.FrozenError, match="params/fc3/kernel, which is frozen: axis 1 is"):
        chosen(groups, known, ["params/fc3/*"], ())
    with pytest.raises(errors.FrozenError, match="the budget's floor leaves it whole"):
        chosen(groups, known, ["params/fc*"], [FIRST])
    with pytest.raises(errors.ArgumentError, match=r"names nothing .* did you mean params/fc2"):
        chosen(groups, known, ["params/fc2/kernle"], ())
    frozen = Budget(macs=0.9, floors={FIRST: 300})
    with pytest.raises(errors.FrozenError, match="leaves it whole"):
        stage(frozen, Soft(gates=FIRST)).check(task)
    assert set(stage(frozen).sizes(task)) == {SECOND}  # not named: it has no masks


def test_a_budget_that_the_penalty_cannot_reach_says_what_was_reached():
    task, pruned = dense()
    budget = Budget(macs=0.4)
    weak = stage(budget, Soft(strength=1.0, steps=24))
    done, _ = weak(pruned, task, KEY)
    reached = float(price(task, budget, done.extra["soft_masks"]))
    with pytest.raises(errors.BudgetError, match=f"gal reached macs={reached:.4f}, and Budget"):
        SettleSoftMasks(budget)(done, task, KEY)
    with pytest.raises(errors.BudgetError, match=r"with all of them at 0 the net costs 0\.0"):
        stage(Budget(macs=0.01), Soft("block")).check(residual()[0])
    with pytest.raises(errors.ArgumentError, match="does not count latency"):
        stage(Budget(latency=0.5)).check(task)


def test_an_adversary_that_diverges_stops_and_keeps_the_last_good_state(tmp_path):
    task, pruned = dense()
    wild = stage(soft=Soft(steps=24), judge_rate=1e4)
    learner = wild.learner(pruned, task, KEY)
    seen = [(jax.tree.map(np.array, s), m["loss"]) for s, m in run(learner, 8)]
    bad = next(n for n, (_, loss) in enumerate(seen) if not np.isfinite(loss))
    assert 0 < bad < 6
    for state, loss in seen[bad:]:
        assert not state.good
        assert np.isnan(loss)
        assert state.step == bad
        assert equal(state._replace(good=True), seen[bad - 1][0])
    kept = learner.finish(seen[-1][0])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(kept.variables))
    with pytest.raises(errors.DivergenceError, match=r"the adversary diverged: .* Write a smaller"):
        wild(pruned, task, KEY)
    hooks = loop.Hooks(lambda *_: None, lambda _: {}, Silent(), 1e9)
    with pytest.raises(errors.DivergenceError, match=f"the loss was nan in step {bad + 1}"):
        loop.fit(learner, loop.Restored(0, None, 0.0), tmp_path, KEY, hooks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "zeros"}, "init is one of ones, normal"),
        ({"mask_rate": 0.0}, "rates are above 0, the strength is 0 or more"),
        ({"share": 1.0}, r"gal\(share=1.0\); it is in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        gal(Budget(macs=0.5), None, TRAIN, **options)


def test_unknown_kinds_and_regularisers_are_refused():
    task, pruned = dense()
    with pytest.raises(errors.ArgumentError, match="a channel has one mask at most"):
        stage(soft=Soft("channel+branch")).learner(pruned, task, KEY)
    with pytest.raises(errors.ArgumentError, match="write one of adversarial, l1, l2, none"):
        stage(terms=Terms(regulariser="l3")).learner(pruned, task, KEY)


@pytest.mark.slow
def test_p30_has_a_row_an_arm():
    found = run_claim(p30.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", "sweep", "gal", "mse", "random", "labels"]
    assert found[-1]["same"]
    assert all(row["kept"] <= 0.3 for row in found[2:])


@pytest.mark.slow
def test_p30b_removes_each_block_once():
    found = run_claim(p30b.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", "gal", "cut", "cut", "cut"]
    cut = {row["block"]: row for row in found[2:]}
    assert len(cut) == len({row["accuracy"] for row in cut.values()}) == 3
    assert all(0.5 < row["kept"] < 0.9 for row in found[1:])
    assert found[1]["kept"] == cut[found[1]["block"]]["kept"]
