"""Variational pruning: numbers of checks.md [43], gates on norms, what the divergence does."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import jprune
from experiments.claims import x9v
from experiments.claims.claim import run as run_claim
from jprune import errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.learners import fold_gates, gateable, kl_gaussian, kl_log_uniform, sample_gates
from jprune.learners.norm_gates import early_shifts
from jprune.learners.variational import PRIORS, Rule, Settings, variational_task
from jprune.recipes import Train
from jprune.recipes.variational import variational
from jprune.sparsify import guarded
from jprune.stages.variational import Gate, Select
from jprune.train.net import Net
from tests.nets import FIRST_CUT, draw
from tests.toys import CLASSES, SHAPE, drawn, equal, toy_data, toy_task

KEY = jax.random.key(5)
LONG = Train(30, 0.1, 16, name="gate")
WIDE = Rule(0.1, 0.3, 1.0)
"""Thresholds that a short training reaches: N = 48 wants a sigma of 0.23."""


@pytest.fixture(scope="module")
def tiny():
    task = toy_task()
    return task, Pruned(drawn(task), None)


def test_the_gaussian_divergence(float64):
    """Checks [43] P1."""
    log_var = np.log(0.01)
    assert kl_gaussian(0.3, log_var) == pytest.approx(4.5)
    assert jax.grad(kl_gaussian)(0.3, log_var) == pytest.approx(30)
    of_sigma = lambda sigma: kl_gaussian(0.3, 2 * jnp.log(sigma))
    assert jax.grad(of_sigma)(0.1) == pytest.approx(-(0.3**2) / 0.1**3)
    # Against the closed form for two normal distributions.
    mu, sigma = 0.7, 0.4
    whole = np.log(1) + (sigma**2 + mu**2) / (2 * sigma**2) - 0.5
    assert kl_gaussian(mu, np.log(sigma**2)) == pytest.approx(whole)


def exact(alpha):
    """E log |1 + sqrt(alpha) eps| - log(alpha) / 2 + 0.635181, by quadrature."""
    density = lambda e: np.exp(-(e**2) / 2) / np.sqrt(2 * np.pi)
    of = lambda e: np.log(abs(1 + np.sqrt(alpha) * e)) * density(e)
    pole = -1 / np.sqrt(alpha)
    ends = sorted({-12.0, 12.0, *([pole] if -12 < pole < 12 else [])})
    total = sum(quad(of, a, b, limit=200)[0] for a, b in itertools.pairwise(ends))
    return total - 0.5 * np.log(alpha) + 0.635181


def test_the_log_uniform_divergence(float64):
    """Checks [43] P2: the fit's own numbers, and the exact divergence that it fits."""
    alphas = np.array([0.01, 0.1, 1, 10, 100])
    found = kl_log_uniform(2.0, np.log(4.0 * alphas))
    np.testing.assert_allclose(found, [2.938956, 1.723453, 0.431239, 0.050822, 0.005079], atol=2e-6)
    for alpha, value in ((0.1, 1.724138), (1.0, 0.426686), (10.0, 0.049178)):
        assert exact(alpha) == pytest.approx(value, abs=2e-5)
        assert abs(kl_log_uniform(1.0, np.log(alpha)) - value) < 0.006
    # At mu = 0 it is 0 with a gradient of 0, and no NaN.
    assert kl_log_uniform(0.0, 0.0) == pytest.approx(0, abs=1e-9)
    assert jax.grad(kl_log_uniform)(0.0, 0.0) == 0


def test_a_gate_is_folded_into_scale_and_shift(tiny):
    """Checks [43] P3, and on a net: a stream's gate is in all norms that write it."""
    xhat, mu, shift = np.array([-1.0, 0, 2]), 0.5, 0.2
    np.testing.assert_allclose(mu * (xhat + shift), mu * xhat + mu * shift)
    np.testing.assert_allclose(mu * (xhat + shift), [-0.4, 0.1, 1.1])
    task, start = tiny
    groups = Net(task).groups
    stream, inner = groups.names
    variables = jax.tree.map(lambda leaf: leaf + 0.2, start.variables)
    gamma = np.linspace(-1, 1, 8)
    folded = fold_gates(groups, variables, {stream: gamma})["params"]
    for name in ("norm1", "norm3"):
        np.testing.assert_allclose(folded[name]["scale"], gamma, rtol=1e-6)
        np.testing.assert_allclose(folded[name]["bias"], 0.2 * gamma, rtol=1e-6)
    assert equal(folded["norm2"], variables["params"]["norm2"])
    assert equal(folded["conv1"], variables["params"]["conv1"])
    assert groups.sizes[inner] == 12


def test_gates_are_drawn_anew_for_every_unit():
    mu = {"a": jnp.zeros(4000), "b": jnp.full(3000, 2.0)}
    log_var = {"a": jnp.zeros(4000), "b": jnp.full(3000, np.log(0.25))}
    drawn_ = sample_gates(KEY, mu, log_var)
    assert abs(drawn_["a"].mean()) < 0.05
    assert drawn_["a"].std() == pytest.approx(1, abs=0.04)
    assert drawn_["b"].mean() == pytest.approx(2, abs=0.03)
    assert drawn_["b"].std() == pytest.approx(0.5, abs=0.03)
    assert not np.allclose(drawn_["a"][:3000], (drawn_["b"] - 2) / 0.5)  # other noise
    slope = jax.grad(lambda m: sample_gates(KEY, m, log_var)["b"].sum())(mu)
    assert np.all(slope["b"] == 1)


@functools.cache
def named(name):
    (net,) = (net for net in FIRST_CUT if net.name == name)
    variables, (x,) = draw(net)
    return net, variables, x, jprune.trace(net.fn, variables, x)


def test_which_units_a_gate_removes():
    net, variables, x, groups = named("resnet_identity")
    assert gateable(net.fn, groups, variables, x) == ["stem", "conv1a", "conv1b"]
    net, variables, x, groups = named("lenet")
    with pytest.raises(errors.ArgumentError, match="no unit whose producers all end in a batch"):
        gateable(net.fn, groups, variables, x)


def preactivation(v, x):
    """The stream's norm follows the sum: a gate there removes nothing for the other reader."""
    x = jnp.maximum((x @ v["first"]) * v["scale1"] + v["bias1"], 0)
    stream = x @ v["stem"]
    inner = jnp.maximum(stream * v["scale2"] + v["bias2"], 0) @ v["branch"]
    return (stream + inner) @ v["out"]


def test_a_stream_without_norms_of_its_own_is_left_whole():
    shapes = {"first": (3, 5), "stem": (5, 7), "branch": (7, 7), "out": (7, 2)}
    shapes |= {"scale1": (5,), "bias1": (5,), "scale2": (7,), "bias2": (7,)}
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    x = jnp.ones((1, 3))
    groups = jprune.trace(preactivation, variables, x)
    assert groups.names == ("first", "stem")
    assert gateable(preactivation, groups, variables, x) == ["first"]


def test_a_bias_before_a_norm_is_gated_with_it():
    """Of gamma (conv x + early - mean) + gamma late the early bias stays as it is."""

    def fn(v, x):
        x = (x @ v["w"] + v["early"] - v["mean"]) / jnp.sqrt(v["var"] + 1e-5)
        return jnp.maximum(x * v["scale"] + v["late"], 0) @ v["out"]

    shapes = {"w": (2, 3), "out": (3, 1)}
    shapes |= dict.fromkeys(("early", "mean", "var", "scale", "late"), (3,))
    rng = np.random.default_rng(0)
    v = {name: jnp.asarray(rng.uniform(0.5, 1.5, shapes[name])) for name in shapes}
    x = jnp.ones((1, 2))
    groups = jprune.trace(fn, v, x)
    assert gateable(fn, groups, v, x) == ["w"]
    early = early_shifts(fn, groups, v, x)["w"]
    assert early == ("early",)
    alone = [jprune.gated(fn, groups)(v, {"w": np.eye(3)[unit]}, x) for unit in range(3)]
    v["scale"], gamma = jnp.ones(3), {"w": v["scale"]}
    v["late"] = v["late"] / gamma["w"]
    folded = fold_gates(groups, v, gamma, early)
    np.testing.assert_allclose(fn(folded, x), sum(alone), rtol=1e-5)


def start_of(task, names, mu, log_var):
    """Variables of a gated task."""
    sizes = Net(task).groups.sizes
    like = lambda value: {name: jnp.full(sizes[name], value) for name in names}
    return {
        "net": drawn(task),
        "gates": {"mu": like(mu), "log_var": like(log_var)},
        "alive": like(1.0),
        "step": jnp.zeros((), jnp.int32),
    }


def test_the_loss_is_the_tasks_plus_the_divergence_over_the_data_set(tiny):
    task, _ = tiny
    groups, names = Net(task).groups, Net(task).groups.names
    settings = Settings("gaussian", 0.5, 4, masks=False)
    gated = variational_task(task, groups, settings, 48, {})
    variables = start_of(task, names, 0.3, np.log(0.01))
    batch = next(task.data.batches("train", 8))
    outs, new = gated.train_fn(variables, batch["image"], KEY)
    kl = 4.5 * (8 + 12)
    extra = gated.loss(outs, batch) - task.loss(outs[0], batch)
    np.testing.assert_allclose(extra, 0.5 * 0.25 * kl / 48, rtol=1e-4)  # step 1 of 4
    np.testing.assert_allclose(gated.metrics(outs, batch)["kl"], kl, rtol=1e-5)
    after = gated.update(variables, new)
    assert after["step"] == 1
    params, rest = gated.split(after)
    assert set(params) == {"net", "gates"}
    assert equal(gated.merge(params, rest), after)
    # In inference gamma is mu: no noise, and the gate does what the norm would.
    out = gated.fn(variables, batch["image"])
    gamma = {name: jnp.full(groups.sizes[name], 0.3) for name in names}
    np.testing.assert_array_equal(
        out, task.fn(fold_gates(groups, drawn(task), gamma), batch["image"])
    )


def test_masks_are_for_good_and_leave_the_floor(tiny):
    task, _ = tiny
    groups, names = Net(task).groups, Net(task).groups.names
    stream, inner = names
    gated = variational_task(task, groups, Settings(rule=WIDE), 48, {stream: 3})
    variables = start_of(task, names, 1.0, -4.0)
    mu = variables["gates"]["mu"]
    mu[stream] = mu[stream].at[:2].set(0.05)
    mu[inner] = mu[inner].at[:5].set(-0.01)
    log_var = variables["gates"]["log_var"]
    log_var[inner] = log_var[inner].at[0].set(0.0)  # near 0 and uncertain: it stays
    new = variables["net"]["stats"]
    after = gated.update(variables, new)
    assert after["alive"][stream].tolist() == [0] * 2 + [1] * 6
    assert after["alive"][inner].tolist() == [1] + [0] * 4 + [1] * 7
    assert not after["gates"]["mu"][stream][:2].any()
    back = {
        **after,
        "gates": {**after["gates"], "mu": {n: jnp.ones_like(m) for n, m in mu.items()}},
    }
    assert gated.update(back, new)["alive"][stream].tolist() == [0] * 2 + [1] * 6
    gone = {**after, "gates": {**after["gates"], "mu": {n: 0 * m for n, m in mu.items()}}}
    assert gated.update(gone, new)["alive"][stream].sum() == 6  # 0 is below the floor of 3


@pytest.fixture(scope="module")
def gated(tiny):
    """A gated net without masks in training, and what was seen on the way."""
    task, start = tiny
    stage = Gate(LONG, Budget(density=0.5), Settings(masks=False, rule=WIDE), warmup=0.3)
    learner = stage.learner(start, task, KEY)
    state, seen = learner.init(), []
    for _, batch in zip(range(learner.steps), learner.batches(0)):
        state, metrics = learner.step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return seen, learner.finish(state)


def test_the_divergence_tells_kept_from_pruned(tiny, gated):
    task, _ = tiny
    seen, done = gated
    assert np.mean([m["loss"] for m in seen[-5:]]) < 0.6 * np.mean([m["loss"] for m in seen[:5]])
    assert seen[-1]["kl"] < 0.3 * seen[0]["kl"]
    pruned, (said,) = Select(Budget(density=0.6), "gaussian", WIDE)(done, task, KEY)
    assert said["metrics"]["kl_pruned"] < 0.2 * said["metrics"]["kl_kept"]
    for name, mask in pruned.masks.items():
        worth = np.asarray(kl_gaussian(done.extra["mu"][name], done.extra["log_var"][name]))
        if mask.any() and not mask.all():
            assert np.median(worth[~mask]) < np.median(worth[mask])
    fn, small = Net(task).slim(pruned)
    x = next(task.data.batches("test", 12))["image"]
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())
    means = np.concatenate([np.abs(done.extra["mu"][name]) for name in done.extra["mu"]])
    assert means.min() < 0.1 < means.max()


def test_the_log_uniform_prior_raises_log_alpha(tiny):
    task, start = tiny
    short = dataclasses.replace(LONG, epochs=10)
    done, _ = Gate(short, Budget(density=0.5), Settings("log_uniform", masks=False))(
        start, task, KEY
    )
    pruned, (said,) = Select(Budget(density=0.5), "log_uniform", Rule())(done, task, KEY)
    ratios = {
        name: np.asarray(done.extra["log_var"][name] - np.log(done.extra["mu"][name] ** 2))
        for name in done.extra["mu"]
    }
    assert np.median(np.concatenate([*ratios.values()])) > np.log(2.5 / 48) + 1
    flat = np.concatenate([*ratios.values()])
    mask = np.concatenate([pruned.masks[name] for name in ratios])
    assert flat[~mask].min() >= flat[mask].max()  # global: the largest log alpha go
    assert said["metrics"]["kl_pruned"] < said["metrics"]["kl_kept"]


def test_a_budget_that_the_rule_does_not_reach(tiny, gated):
    task, _ = tiny
    strict = Select(Budget(macs=0.3), "gaussian", Rule(1e-9, 1e-9), select="rule")
    with pytest.raises(errors.BudgetError, match=r"macs=0.3\) is not reached: the rule keeps 1.0"):
        strict(gated[1], task, KEY)
    loose = Select(Budget(macs=1.0), "gaussian", Rule(0.1, 10.0), select="rule")
    pruned, (said,) = loose(gated[1], task, KEY)
    assert said["metrics"]["forced"] == 0
    mu = gated[1].extra["mu"]
    for name, mask in pruned.masks.items():
        kept = np.abs(mu[name]) > 0.1
        np.testing.assert_array_equal(
            mask, kept if kept.any() else np.abs(mu[name]) >= max(mu[name])
        )
    with pytest.raises(errors.BudgetError, match="the smallest net allowed costs"):
        Select(Budget(macs=1e-4), "gaussian", Rule()).check(task)


def test_a_divergence_that_is_not_finite_stops_and_keeps_the_last_good_state(tiny):
    task, start = tiny
    short = dataclasses.replace(LONG, max_steps=4)
    stage = Gate(short, Budget(density=0.5), Settings(weight=1e30), warmup=0.0, log_var=-80.0)
    learner = stage.learner(start, task, KEY)
    state = learner.init()
    first = jax.tree.map(np.array, state.params)
    for _, batch in zip(range(4), learner.batches(0)):
        state, seen = learner.step(state, batch)
    assert not np.isfinite(float(seen["loss"]))  # a run in a directory stops here
    assert equal(state.params, first)
    with pytest.raises(errors.DivergenceError, match="Write a smaller kl_weight, a larger log_var"):
        learner.finish(state)
    before = jax.tree.map(np.array, start.variables)
    with pytest.raises(errors.DivergenceError, match="was not finite"):
        stage(start, task, KEY)
    assert equal(start.variables, before)


def test_what_cannot_be_is_refused(tiny):
    task, start = tiny
    groups = Net(task).groups
    with pytest.raises(errors.FrozenError, match="'params/fc/bias' is frozen: tied to a network"):
        fold_gates(groups, start.variables, {"params/fc/bias": np.ones(3)})
    with pytest.raises(errors.StructureError, match="there is no group 'norm9'"):
        fold_gates(groups, start.variables, {"norm9": np.ones(3)})
    plain = train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data())
    with pytest.raises(errors.ArgumentError, match="no scales to gate"):
        Gate(LONG, Budget(density=0.5), Settings()).check(plain)
    whole = Budget(density=0.5, floors=dict(groups.sizes))
    with pytest.raises(errors.ArgumentError, match="Freeze fewer of them"):
        Gate(LONG, whole, Settings()).check(task)
    with pytest.raises(errors.ArgumentError, match=r"Put Gate\(train, budget\) before Select"):
        Select(Budget(density=0.5), "gaussian", Rule())(start, task, KEY)
    masked = start._replace(masks={groups.names[0]: np.arange(8) < 4})
    with pytest.raises(errors.ArgumentError, match="begins with a whole net"):
        Gate(LONG, Budget(density=0.5), Settings()).learner(masked, task, KEY)
    asked = functools.partial(variational, Budget(macs=0.5))
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        asked(None)
    with pytest.raises(errors.ArgumentError, match="write one of gaussian, log_uniform"):
        asked(LONG, prior="laplace")
    with pytest.raises(errors.ArgumentError, match="did you mean budget"):
        asked(LONG, select="budgets")
    with pytest.raises(errors.ArgumentError, match="kl_weight=-1"):
        asked(LONG, kl_weight=-1.0)
    assert set(PRIORS) == {"gaussian", "log_uniform"}


def test_the_recipe_trains_anew_and_slims(tiny):
    task, start = tiny
    short = dataclasses.replace(LONG, max_steps=2, name="train")
    done, records = recipes.run(variational(Budget(macs=0.5), short), start, task, KEY)
    stages = [r["stage"] for r in records]
    assert stages == ["train", "dense", "gate", "prune", "before_finetune"]
    assert records[3]["metrics"]["macs"] <= 0.5
    assert 0 < records[2]["metrics"]["alive"] <= 1
    assert done.extra is None
    assert set(done.saved) == {"dense"}


def test_guarded_training_stops_for_good():
    tx = guarded(jprune.hold({"w": jnp.ones(2, bool)}))
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    good, state = tx.update({"w": jnp.full(2, 0.5)}, state, params)
    assert good["w"].tolist() == [0.5, 0.5]
    for gradient in (jnp.array([np.inf, 0.0]), jnp.ones(2)):
        moved, state = tx.update({"w": gradient}, state, params)
        assert not moved["w"].any()


def test_x9_expects_nothing_of_a_rule_that_prunes_nothing():
    shared = {"seed": 0, "accuracy": 0.99, "kl_kept": 2.0, "kl_pruned": 1.0}
    row = lambda arm, prior, kept: {**shared, "arm": arm, "prior": prior, "kept": kept}
    found = [row("dense", None, 1.0)]
    for prior, kept in (("gaussian", 0.8), ("log_uniform", 1.0)):
        found += [row("gated", prior, 1.0), row("rule", prior, kept), row("half", prior, 0.5)]
    verdicts = [finding.holds for finding in x9v.CLAIM.findings(found)]
    assert verdicts == [True] * 5 + [False, None, None, True, True]


@pytest.mark.slow
def test_x9_has_a_row_an_arm():
    found = run_claim(x9v.CLAIM, smoke=True)
    arms = ["gated", "rule", "half"]
    assert [row["arm"] for row in found] == ["dense", *arms, *arms]
    assert [row["kept"] for row in found[:3]] == [1, 1, 1]  # two steps prune nothing
    assert all(row["macs"] <= 0.5 for row in found if row["arm"] == "half")
