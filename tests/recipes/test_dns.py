"""Dynamic network surgery: masks that move, weights that come back, budgets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import e07
from experiments.claims.claim import run as run_claim
from jprune import errors, masks_of, recipes, zoo
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks, density
from jprune.recipes import Train
from jprune.recipes.dns import dns
from jprune.sparsify import dynamic_surgery
from jprune.sparsify.thresholds import moments_of, thresholds_of
from jprune.stages.frame import fractions
from jprune.stages.surgery import DynamicSurgery, SettleSurgery
from jprune.train.net import Net
from tests.toys import CLASSES, SHAPE, drawn, toy_data

KEY = jax.random.key(5)
TRAIN = Train(1, 0.05, 16, max_steps=3, schedule="constant", name="finetune")
INNER = {"momentum": optax.sgd(0.05, 0.9), "adam": optax.adam(0.05)}


def begun(tx, params):
    state = tx.init(params)
    return state, apply_masks(params, masks_of(state))


def test_thresholds_are_the_papers():
    """Checks [7] P1."""
    w = {"w": jnp.array([0.2, -0.4, 0.6, -0.8, 1.0, -1.2, 1.4, -2.4])}
    ones = {"w": jnp.ones(8, bool)}
    mean, std = moments_of(w, ones)
    np.testing.assert_allclose([mean["w"], std["w"]], [1.0, 0.648074], rtol=1e-6)
    for c, t, kept in ((0.0, 1.0, 4), (0.5, 1.324037, 3), (-5.0, 0.0, 8)):
        np.testing.assert_allclose(thresholds_of(w, ones, c)["w"], t, rtol=1e-6)
        state, params = begun(dynamic_surgery(optax.sgd(0.1), ones, c, KEY, stop=9), w)
        np.testing.assert_array_equal(masks_of(state)["w"], np.arange(8) >= 8 - kept)
        np.testing.assert_array_equal(params["w"], np.where(np.arange(8) >= 8 - kept, w["w"], 0))


def test_a_layer_is_a_kernel_with_its_bias_and_zeros_do_not_count():
    params = {
        "a": {"kernel": jnp.array([[1.0, 0.0], [3.0, 0.0]]), "bias": jnp.array([5.0, 0.0])},
        "b": {"kernel": jnp.array([[7.0]]), "bias": jnp.array([1.0])},
    }
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    masks["b"]["bias"] = None
    layers = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 1, "bias": 1}}
    mean, std = moments_of(params, masks, layers)
    assert mean["a"] == {"kernel": 3.0, "bias": 3.0}
    np.testing.assert_allclose(std["a"]["bias"], np.std([1, 3, 5]), rtol=1e-6)
    assert mean["b"] == {"kernel": 7.0, "bias": None}
    rates = {"a": {"kernel": 1.0, "bias": 1.0}, "b": {"kernel": 2.0, "bias": None}}
    t = thresholds_of(params, masks, rates, layers)
    np.testing.assert_allclose(t["a"]["kernel"], 3 + np.std([1, 3, 5]), rtol=1e-6)


@pytest.mark.parametrize("splice", [True, False])
def test_a_weight_that_was_cut_comes_back(splice):
    """Checks [7] P2; without splicing the weight is gone for good."""
    ones = {"w": jnp.ones(1, bool)}
    tx = dynamic_surgery(optax.sgd(0.25), ones, 0.0, KEY, gamma=0.0, stop=9, splice=splice)
    # t is |w| = 1 in a layer of one weight; the trace begins at another w.
    state = tx.init({"w": jnp.ones(1)})
    start = tx.init({"w": jnp.full(1, 0.5)})
    state = start._replace(
        thresholds=state.thresholds,
        hidden={"w": jnp.full(1, 0.5 if splice else 0.0)},
        hold=start.hold._replace(masks={"w": jnp.zeros(1, bool)}),
    )
    params, seen, worth = {"w": jnp.zeros(1)}, [], []
    loss = lambda params: 0.5 * jnp.sum((params["w"] - 2) ** 2)
    for _ in range(4):
        seen.append(bool(masks_of(state)["w"][0]))
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        worth.append(float(params["w"][0] + state.hidden["w"][0]))
    if splice:
        assert seen == [False, False, True, True]
        assert worth == [1.0, 1.5, 1.625, 1.71875]
    else:
        assert (seen, worth) == ([False] * 4, [0.0] * 4)


@pytest.mark.parametrize("name", INNER)
def test_any_optimizer_moves_all_weights_by_the_gradient_at_the_masked_ones(name):
    """Against a loop that keeps w and m apart."""
    rng = np.random.default_rng(0)
    matrix, target = rng.normal(size=(9, 9)), rng.normal(size=9)
    loss = lambda w: jnp.sum((jnp.asarray(matrix, jnp.float32) @ w - target) ** 2) / 9
    inner = INNER[name]
    tx = dynamic_surgery(inner, {"w": jnp.ones(9, bool), "b": None}, -0.3, KEY, gamma=0, stop=25)
    w = jnp.asarray(rng.normal(size=9), jnp.float32)
    params = {"w": w, "b": jnp.ones(2)}
    state, params = begun(tx, params)
    update = jax.jit(tx.update)
    t, m, hand = float(state.thresholds["w"]), np.ones(9, bool), inner.init(params)
    changes = 0
    for step in range(40):
        if step < 25:
            before, m = m, np.where(m, np.abs(w) > 0.9 * t, np.abs(w) > 1.1 * t)
            changes += step > 0 and (before != m).any()
        np.testing.assert_array_equal(masks_of(state)["w"], m)
        np.testing.assert_allclose(params["w"], np.where(m, w, 0), rtol=2e-5, atol=1e-6)
        assert not np.any(params["w"][~m])
        gradient = {"w": jax.grad(loss)(jnp.where(m, w, 0)), "b": jnp.ones(2)}
        moves, hand = inner.update(gradient, hand, {"w": w, "b": params["b"]})
        updates, state = update(gradient, state, params)
        w, params = w + moves["w"], optax.apply_updates(params, updates)
    assert changes > 2
    assert np.all(params["b"] < 1)  # what has no mask is trained as ever


def test_revisions_become_rare_and_stop_and_layers_draw_apart():
    masks = {name: {"w": jnp.ones(50, bool)} for name in "abcd"}
    params = {
        name: {"w": jax.random.normal(jax.random.key(i), (50,))} for i, name in enumerate("abcd")
    }
    tx = dynamic_surgery(optax.sgd(1.0), masks, 0.0, KEY, gamma=0.1, stop=60)
    state, params = begun(tx, params)

    @jax.jit
    def step(state, params, key):
        noise = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
        updates, state = tx.update(noise, state, params)
        return state, optax.apply_updates(params, updates)

    changed = np.zeros((80, 4), bool)
    for number in range(80):
        before = masks_of(state)
        state, params = step(state, params, jax.random.fold_in(KEY, number))
        changed[number] = [np.any(before[n]["w"] != masks_of(state)[n]["w"]) for n in "abcd"]
    assert not changed[59:].any()  # step 60 is the first that may not
    assert changed[:10].mean() > 0.5 > changed[40:59].mean()
    assert any(len(set(row)) == 2 for row in changed)  # not all layers at once
    expected = np.mean([(1 + 0.1 * i) ** -1 for i in range(1, 60)])
    assert changed[:59].mean() == pytest.approx(expected, abs=0.1)


def test_a_step_does_not_depend_on_how_the_run_got_there():
    """State restored from arrays takes the same step: the key is in it."""
    masks = {"w": jnp.ones(7, bool)}
    params = {"w": jnp.arange(7.0)}
    first, other = (
        dynamic_surgery(optax.sgd(0.1), masks, 0.0, jax.random.key(n), gamma=1.0, stop=9)
        for n in (0, 1)
    )
    state = first.init(params)
    again = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
    one, two = (tx.update(params, s, params)[1] for tx, s in ((first, state), (other, again)))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope="module")
def lenet():
    from jprune import train

    task = train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data())
    biased = jax.tree.map(lambda leaf: leaf + 0.05 * (leaf.ndim == 1), drawn(task))
    return task, Pruned(biased, None)


@pytest.mark.parametrize("kind", ["density", "params", "macs"])
def test_the_first_cut_and_the_last_masks_meet_the_budget(lenet, kind):
    task, start = lenet
    budget = Budget(**{kind: 0.2})
    stage = DynamicSurgery(TRAIN, budget)
    learner = stage.learner(start, task, KEY)
    state = learner.init()
    cut = task.merge(masks_of(state.opt_state), {})
    kept = fractions(task, cut)[kind]
    assert kept == pytest.approx(0.2, abs=2e-3)
    for name in ("fc1", "fc2"):
        before = start.variables["params"][name]["kernel"]
        mask = np.asarray(cut["params"][name]["kernel"])
        np.testing.assert_array_equal(state.params[name]["kernel"], np.where(mask, before, 0))
    moved = state._replace(params=jax.tree.map(lambda leaf: leaf * 1.1, state.params))
    settled, (seen,) = SettleSurgery(budget)(learner.finish(moved), task, KEY)
    assert seen["metrics"][kind] == pytest.approx(0.2, abs=1e-4)
    assert settled.extra is None


def test_settling_splices_the_largest_back_or_cuts_the_smallest(lenet):
    task, start = lenet
    after, _ = DynamicSurgery(TRAIN, Budget(density=0.2), biases=False)(start, task, KEY)
    flat = lambda tree: np.concatenate(
        [np.ravel(tree["params"][n]["kernel"]) for n in ("fc1", "fc2", "fc3")]
    )
    alive, hidden = flat(after.masks).astype(bool), flat(after.extra["hidden"])
    assert not hidden[alive].any()
    assert hidden[~alive].all()
    assert not flat(after.variables)[~alive].any()
    t = np.concatenate(
        [
            np.full(k.size, after.extra["thresholds"]["params"][n]["kernel"])
            for n, k in ((n, after.masks["params"][n]["kernel"]) for n in ("fc1", "fc2", "fc3"))
        ]
    )
    more, _ = SettleSurgery(Budget(density=0.4))(after, task, KEY)
    mask = flat(more.masks).astype(bool)
    assert mask[alive].all()
    back = mask & ~alive
    assert (np.abs(hidden) / t)[back].min() >= (np.abs(hidden) / t)[~mask].max()
    np.testing.assert_array_equal(flat(more.variables)[back], hidden[back])
    less, _ = SettleSurgery(Budget(density=0.05))(after, task, KEY)
    kept = flat(less.masks).astype(bool)
    assert not kept[~alive].any()
    sizes = np.abs(flat(after.variables)) / t
    assert sizes[kept].min() >= sizes[alive & ~kept].max() * (1 - 1e-6)
    same, _ = SettleSurgery(None)(after, task, KEY)
    np.testing.assert_array_equal(flat(same.variables), flat(after.variables))


def test_biases_are_pruned_or_not_and_c_may_be_given(lenet):
    task, start = lenet
    for biases in (True, False):
        stage = DynamicSurgery(TRAIN, Budget(density=0.5), (-9, 1, 0.5), biases=biases)
        masks = masks_of(stage.learner(start, task, KEY).init().opt_state)
        assert (masks["fc1"]["bias"] is None) == (not biases)
        assert np.all(masks["fc1"]["kernel"])
        parts = [start.variables["params"]["fc2"]["kernel"].ravel()]
        if biases:
            parts.append(start.variables["params"]["fc2"]["bias"])
        sizes = np.abs(np.concatenate(parts))
        t = sizes[sizes > 0].mean() + sizes[sizes > 0].std()
        expected = np.abs(start.variables["params"]["fc2"]["kernel"]) > 0.9 * t
        assert (np.asarray(masks["fc2"]["kernel"]) != expected).mean() < 1e-4


def test_the_recipe_reaches_the_budget_and_the_rest_is_frozen(lenet):
    task, start = lenet
    recipe = dns(Budget(density=0.1), None, dataclasses.replace(TRAIN, epochs=4))
    assert [getattr(stage, "epochs", stage) for stage in recipe if isinstance(stage, Train)] == [
        0.5
    ]
    assert recipe[2].train.epochs == 3.5
    pruned, records = recipes.run(recipe, start, task, KEY)
    assert density(pruned.masks) == pytest.approx(0.1, abs=1e-4)
    for mask, leaf in zip(
        jax.tree.leaves(pruned.masks["params"]), jax.tree.leaves(pruned.variables["params"])
    ):
        assert not np.any(np.asarray(leaf)[~np.asarray(mask)])
    assert [r["stage"] for r in records] == [
        "dense", "surgery", "settle", "before_finetune", "finetune",
    ]  # fmt: skip
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(KEY, (5, *SHAPE))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())


def test_equal_weights_go_by_index_and_what_cannot_be_is_refused(lenet):
    task, start = lenet
    even = start._replace(variables=jax.tree.map(jnp.ones_like, start.variables))
    settled = []
    for budget in (Budget(density=0.3), Budget(density=0.6)):
        after, _ = DynamicSurgery(dataclasses.replace(TRAIN, learning_rate=1e-12), budget)(
            even, task, KEY
        )
        settled.append(SettleSurgery(budget)(after, task, KEY)[0])
        assert density(settled[-1].masks) == pytest.approx(budget.density, abs=1e-4)
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), start.variables)
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        DynamicSurgery(TRAIN, Budget(density=0.3), 1.0).learner(Pruned(broken, None), task, KEY)
    with pytest.raises(errors.ArgumentError, match=r"c_rate has 2 numbers.*write one, or 3 "):
        DynamicSurgery(TRAIN, Budget(density=0.3), (1, 2)).learner(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match=r"stop is in \(0, 1\)"):
        dns(Budget(density=0.3), None, TRAIN, stop=1.0)
    with pytest.raises(errors.ArgumentError, match="all three are 0 or more"):
        dynamic_surgery(optax.sgd(0.1), {"w": None}, 0.0, KEY, stop=-1)
    with pytest.raises(errors.ArgumentError, match=r"outside \(0, 1\]"):
        dns(Budget(density=1.5), None, TRAIN)
    after, _ = DynamicSurgery(TRAIN, Budget(density=0.3), 99.0, biases=False)(start, task, KEY)
    with pytest.raises(errors.BudgetError, match="cut all of params/fc1/kernel"):
        SettleSurgery(None)(after, task, KEY)
    assert density(SettleSurgery(Budget(density=0.3))(after, task, KEY)[0].masks) > 0.299


@pytest.mark.slow
def test_e07_has_a_row_an_arm():
    found = run_claim(e07.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", "longer", "dns", "no_splice", "iterative"]
    assert all(row["density"] == pytest.approx(0.02, abs=1e-3) for row in found[2:4])
    assert found[4]["density"] <= 0.02  # units that are cut off go too
    assert found[2]["spliced"] >= found[3]["spliced"] == 0
