"""LCS: menus of channel sets, a straight-through choice of one, and what the choices betray."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.cost.samples import gates_of
from jprune.forms.from_menu import FromMenu
from jprune.forms.opened import read_back, written_out
from jprune.learners.channel_menu import (
    Menus,
    as_menus,
    choices_of,
    entropy,
    init_menus,
    menu_task,
    own_steps,
    penalty,
    straight_choice,
    thinned,
)
from jprune.learners.detector import area_under_curve, detector_area, logistic, sign_attack
from jprune.learners.input_gates import boostable_layers
from jprune.recipes import Train
from jprune.recipes.lcs import lcs
from jprune.stages.channel_menu import (
    Choosing,
    CutMenus,
    EvaluateChoices,
    LearnMenus,
    TrainChosen,
)
from jprune.train.net import Net
from tests.recipes.test_fbs import CONVS, images, net
from tests.toys import toy_task

KEY = jax.random.key(35)
TRAIN = Train(16, 0.05, 16, name="finetune")  # 48 steps
MENU = jnp.array([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 2]])


def test_the_likeliest_set_and_no_mixture():
    """Checks [35] P1, at inference."""
    # p = (0.2, 0.5, 0.3) for the readings log p, through an identity head
    x = jnp.log(jnp.array([[0.2, 0.5, 0.3]])) + 2
    leaf = FromMenu(jnp.ones((3, 4)), *jnp.zeros((2, 4)), jnp.eye(3), MENU)
    np.testing.assert_allclose(leaf.probabilities(x), [[0.2, 0.5, 0.3]], rtol=1e-5)
    np.testing.assert_array_equal(leaf.gates(x), [[0, 1, 1, 0]])
    np.testing.assert_allclose(leaf.probabilities(x) @ MENU, [[0.2, 0.5, 0.7, 0.6]], rtol=1e-5)
    assert (leaf.plan(), leaf.gate_macs) == ({"outputs": 2}, 9)


def test_the_penalty_of_the_worked_case():
    """Checks [35] P2."""
    chosen = MENU[jnp.array([0, 2])]
    np.testing.assert_allclose(jnp.abs(chosen).mean(), 0.5)
    np.testing.assert_allclose(penalty(chosen, 0.7, 0.5), 0.02, rtol=1e-5)
    assert float((chosen != 0).mean()) == 0.375


def test_a_drawn_choice_is_a_row_of_the_menu_and_its_slope_that_of_the_mixture():
    """Checks [35] P3, and P1 in training."""
    logits = jax.random.normal(KEY, (40, 3))
    vector, key = jnp.array([0.3, -1.0, 2.0, 0.7]), jax.random.key(5)
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    for temperature in (0.5, 5.0):
        rows = straight_choice(key, logits, temperature) @ MENU
        taken = (jax.nn.log_softmax(logits) + noise).argmax(axis=-1)
        np.testing.assert_array_equal(rows, MENU[taken])
        assert len({*np.asarray(taken).tolist()}) == 3

        def hard(logits, t=temperature):
            return (straight_choice(key, logits, t) @ MENU @ vector).sum()

        def relaxed(logits, t=temperature):
            q = jax.nn.softmax((jax.nn.log_softmax(logits) + noise) / t)
            return (q @ MENU @ vector).sum()

        slope = jax.grad(relaxed)(logits)
        np.testing.assert_allclose(jax.grad(hard)(logits), slope, atol=1e-6)
        assert np.abs(slope).max() > 1e-3


def test_draws_follow_the_probabilities():
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    drawn = straight_choice(KEY, jnp.broadcast_to(logits, (20_000, 3)), 2.0)
    np.testing.assert_allclose(drawn.mean(axis=0), [0.2, 0.5, 0.3], atol=0.015)


def test_heads_and_menus_take_steps_of_adam_and_stay_where_they_may_be():
    """The clamp makes exact zeros, rows have length 1, and the rest is the other optimizer's."""
    gates = {
        "a": {"head": jnp.array([[0.6, 1.0], [0.8, 0.0]]), "menu": jnp.array([[0.005, 4.999]])}
    }
    params = {"net": jnp.array([1.0, 2.0]), "gates": gates}
    slopes = jax.tree.map(jnp.ones_like, params)
    slopes["gates"]["a"]["menu"] = jnp.array([[1.0, -1.0]])
    tx = own_steps(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), 0.01, 5.0)
    state = tx.init(params)
    updates, state = tx.update(slopes, state, params)
    after = optax.apply_updates(params, updates)
    # Adam's first step is its rate; the clip sees the net's slopes alone.
    np.testing.assert_array_equal(after["gates"]["a"]["menu"], [[0, 5]])
    head = np.array([[0.59, 0.99], [0.79, -0.01]])
    expected = head / np.sqrt((head**2).sum(axis=0))
    np.testing.assert_allclose(after["gates"]["a"]["head"], expected, rtol=1e-5)
    np.testing.assert_allclose(after["net"], params["net"] - 0.1 / np.sqrt(2), rtol=1e-6)


@functools.cache
def begun(kind="tiny"):
    task, variables = net(kind)
    groups = Net(task).groups
    layers = boostable_layers(task, groups, Net(task).shapes)
    gates = init_menus(KEY, layers, Menus())
    rng = np.random.default_rng(4)
    for part in gates.values():  # sets that differ
        part["menu"] = jnp.asarray(rng.uniform(-1, 2, part["menu"].shape).clip(0), jnp.float32)
    return task, groups, layers, {"net": variables, "gates": gates, "step": jnp.int32(0)}


@pytest.mark.parametrize("kind", ["tiny", "biased", "concatenated"])
def test_the_kernels_that_are_handed_over_are_the_net_that_was_trained(kind):
    task, groups, layers, variables = begun(kind)
    still = task._replace(train_fn=lambda v, x, key: (task.fn(v, x), v["stats"]))
    made = menu_task(still, groups, layers, Menus(), 0.5, steps=0)
    (logits, told), _ = jax.jit(made.train_fn)(variables, images(), KEY)
    held = jax.jit(lambda v: as_menus(task, groups, layers, v))(variables)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5 * np.abs(logits).max())
    close(Net(task).fn(held, images()), logits)
    out, choices = jax.jit(choices_of(task.fn, groups))(held, images())
    close(out, logits)
    _, gates = jax.jit(gates_of(task.fn, groups))(held, images())
    for name, p in choices.items():
        menu = variables["gates"][name]["menu"]
        np.testing.assert_array_equal(gates[name], menu[p.argmax(axis=-1)])
        np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    chosen = np.concatenate([gates[name] for name in layers], axis=-1)
    np.testing.assert_allclose(told["open"], (chosen > 0).mean(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(told["level"], chosen.mean(axis=-1), rtol=1e-5)
    back = read_back(written_out(held))
    np.testing.assert_array_equal(Net(task).fn(back, images()), Net(task).fn(held, images()))


def test_the_penalty_moves_no_weight_and_chosen_menus_have_no_gradient():
    task, groups, layers, variables = begun()
    quiet = task._replace(
        train_fn=lambda v, x, key: (task.fn(v, x), v["stats"]),
        loss=lambda out, batch: 0 * out.sum(-1),
    )
    batch = {"image": images(), "label": jnp.zeros(6, int)}

    def slopes(steps, task):
        made = menu_task(task, groups, layers, Menus(), 0.1, steps)
        params, rest = made.split(variables)

        def loss(params):
            out, _ = made.train_fn(made.merge(params, rest), batch["image"], KEY)
            return made.loss(out, batch).sum()

        return jax.jit(jax.grad(loss))(params)

    drawn = slopes(10, quiet)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(drawn["net"]))
    assert all(np.any(part["menu"]) and np.any(part["head"]) for part in drawn["gates"].values())
    fixed = slopes(0, quiet._replace(loss=task.loss))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fixed["gates"]))
    assert np.any(fixed["net"]["conv1"]["kernel"])


def test_the_smallest_entries_of_all_menus_go_first_and_a_set_keeps_its_least():
    rng = np.random.default_rng(2)
    gates = {
        n: {"head": None, "menu": rng.uniform(size=(3, width))} for n, width in (("a", 4), ("b", 6))
    }
    entries = np.sort(np.concatenate([part["menu"].ravel() for part in gates.values()]))[::-1]
    for count in (30, 17, 12):
        cut = thinned(gates, count / 30, {"a": 0, "b": 0})
        for name, part in cut.items():
            old = gates[name]["menu"]
            expected = np.where(old >= entries[count - 1], old, 0)
            np.testing.assert_allclose(part["menu"], expected, rtol=1e-6)
    least = thinned(gates, 0.0, {"a": 2, "b": 1})
    assert [(least[n]["menu"] > 0).sum(axis=1).tolist() for n in "ab"] == [[2] * 3, [1] * 3]
    for name, many in (("a", 2), ("b", 1)):
        largest = np.sort(gates[name]["menu"], axis=1)[:, ::-1][:, :many]
        found = np.sort(least[name]["menu"], axis=1)[:, ::-1][:, :many]
        np.testing.assert_allclose(found, largest, rtol=1e-6)
    empty = thinned({"a": {"head": None, "menu": np.zeros((2, 3))}}, 1.0, {"a": 1})
    assert (empty["a"]["menu"] > 0).sum(axis=1).tolist() == [1, 1]


def test_an_attack_raises_the_loss_within_its_box_and_scores_rank():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    loss = lambda x: jnp.sin(x @ w)
    moved = sign_attack(loss, x, 0.01)
    slope = np.cos(x @ w)[:, None] * w
    np.testing.assert_allclose(moved, x + 0.01 * np.sign(slope), rtol=1e-5)
    far = sign_attack(loss, x, 0.3, steps=10)
    assert np.abs(far - x).max() <= 0.3 + 1e-6
    assert (np.asarray(loss(far)) >= np.asarray(loss(x))).all()
    scores, positive = rng.integers(0, 5, 40), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    np.testing.assert_allclose(area_under_curve(scores, positive), np.mean(pairs))
    with pytest.raises(errors.ArgumentError, match="of one kind"):
        area_under_curve([1.0, 2.0], [True, True])


def test_the_detector_is_at_its_optimum_and_at_chance_where_there_is_nothing_to_see():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 3)), rng.random(60) < 0.5

    def loss(w):
        z = x @ w[:-1] + w[-1]
        return np.logaddexp(0, np.where(y, -z, z)).sum() + 0.5 * (w[:-1] @ w[:-1])

    w = logistic(x, y)
    for step in 1e-3 * np.concatenate([np.eye(4), -np.eye(4)]):
        assert loss(w + step) > loss(w)
    same = rng.normal(size=(400, 3))
    assert abs(detector_area(same, same[rng.permutation(400)]) - 0.5) < 0.07
    assert detector_area(same, same + np.array([1.0, 0, 0])) > 0.7
    with pytest.raises(errors.ArgumentError, match="of the same images"):
        detector_area(same, same[:5])


def test_entropies_are_of_the_shares_of_actions():
    shares = np.array([0.5, 0.25, 0.25])
    expected = -(shares * np.log(shares)).sum()
    np.testing.assert_allclose(entropy([0, 0, 1, 2], 5), expected)
    assert entropy([3, 3, 3], 5) == 0


@functools.cache
def trained():
    task, dense = toy_task("tiny"), dataclasses.replace(TRAIN, name="train")
    recipe = lcs(Budget(macs=0.6), dense, TRAIN, gates="*conv*", target=0.4, rate=0.05)
    return task, recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)


def test_a_run_meets_its_budget_and_its_layers_choose():
    task, (pruned, records) = trained()
    seen = {entry["stage"]: entry["metrics"] for entry in records}
    names = "train dense decide cut before_finetune finetune settle mosaic occlusion difficulty"
    assert list(seen) == [*names.split(), "choices"]
    assert (pruned.masks, pruned.extra) == (None, None)
    found = recipes.run((recipes.Evaluate("train", slim=True),), pruned, task, KEY)[1][0]["metrics"]
    assert found["macs"] <= 0.6 * seen["dense"]["macs"]
    assert found["accuracy"] > 0.8
    # The penalty draws the mean of the entries, which begin at 1, to its target.
    assert seen["decide"]["menu_level"] < 0.85
    assert 0 < seen["settle"]["entries"] <= seen["cut"]["entries"] < 1
    # The menus have not collapsed: P35 asks for more than 0.2 nat in a third of the layers.
    assert seen["choices"]["choosing"] >= 1 / 3
    assert seen["choices"]["entropy_least"] <= seen["choices"]["entropy"] <= np.log(5)
    assert 0 <= seen["choices"]["pgd_auc"] <= 1
    batch = next(task.data.batches("train", 48))
    _, gates = jax.jit(gates_of(task.fn, Net(task).groups))(pruned.variables, batch["image"])
    for name in CONVS:
        leaf = Net(task).leaves(pruned.variables)[name]
        rows = {row.tobytes() for row in np.asarray(leaf.menu)}
        assert {row.tobytes() for row in np.asarray(gates[name])} <= rows
    fn, small = Net(task).slim(pruned)
    expected = Net(task).fn(pruned.variables, batch["image"])
    np.testing.assert_allclose(fn(small, batch["image"]), expected, atol=1e-5)


def test_menus_are_where_the_paper_has_them_without_patterns():
    task, _ = net()
    choosing = Choosing(Budget(density=0.5), Menus())
    assert tuple(choosing.layers(task)) == CONVS[1:2]  # neither the first nor on the sum
    assert tuple(dataclasses.replace(choosing, gates="*conv*").layers(task)) == CONVS
    assert choosing.level(task) == 0.5
    assert dataclasses.replace(choosing, target=0.7).level(task) == 0.7
    assert dataclasses.replace(choosing, budget=Budget(macs=0.7)).level(task) < 0.8


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (Budget(params=0.5), {}, r"lcs came with Budget\(params=0.5\): it keeps all parameters"),
        (Budget(macs=0.5), {"cold": 0.0}, r"lcs\(cold=0.0\); cold is above 0: a temperature"),
        (Budget(macs=0.5), {"hot": -1.0}, "hot is above 0: a temperature"),
        (Budget(macs=0.5), {"actions": 0}, "actions is 1 or more"),
        (Budget(macs=0.5), {"decide": 1.0}, r"decide is in \(0, 1\)"),
        (Budget(macs=0.5), {"target": 6.0}, r"target is in \(0, top\], or None"),
    ],
)
def test_what_cannot_be_is_refused(budget, options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        lcs(budget, None, TRAIN, **options)


def test_menus_and_budgets_that_a_net_cannot_have_are_refused():
    task, variables = net()
    stage = lambda budget, **menus: LearnMenus(TRAIN, Choosing(budget, Menus(**menus), "*conv*"))
    with pytest.raises(errors.ArgumentError, match=r"has 8 channels, .* Write actions=8 or fewer"):
        stage(Budget(density=0.5), actions=9).check(task)
    with pytest.raises(errors.BudgetError, match="cannot be met by lcs: with the fewest"):
        stage(Budget(macs=0.01)).check(task)
    with pytest.raises(errors.ArgumentError, match="can have gates; lcs suppresses channels"):
        LearnMenus(TRAIN, Choosing(Budget(macs=0.5), Menus())).check(toy_task("lenet300"))
    start, choosing = Pruned(variables, None), Choosing(Budget(macs=0.5), Menus())
    with pytest.raises(errors.ArgumentError, match=r"came to a net without menus\. Put LearnMenus"):
        CutMenus(choosing)(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match="came to a net without menus"):
        TrainChosen(TRAIN, choosing).learner(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match="came to a net without menus"):
        EvaluateChoices()(start, task, KEY)
