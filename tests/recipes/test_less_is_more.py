"""Less is more [14]: neurons with their biases, forward-backward splitting, low rank."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.sparsify import group_lasso, low_rank, singular_values, soft_singular
from jprune.sparsify.low_rank import folded, kernels_of_rank, modes, unfolded
from jprune.stages.frame import check
from jprune.stages.group_lasso import Penalty, Shrink
from jprune.stages.low_rank import RankPenalty
from jprune.train.net import Net
from tests.contracts import own
from tests.recipes.test_ssl import PAIRS
from tests.toys import toy_task

KEY = jax.random.key(3)


def dense_net(act=jax.nn.relu):
    """Two dense layers that learn their labels, the first one with biases."""
    params = own.draw({"first": (8, 24), "bias": (24,), "out": (24, 3)})
    params["bias"] = np.full(24, 0.1, np.float32)

    def fn(v, x):
        p = v["params"]
        return act(x @ p["first"] + p["bias"]) @ p["out"]

    rng = np.random.default_rng(0)
    images = rng.normal(size=(128, 8)).astype(np.float32)
    labels = (images[:, :3]).argmax(1).astype(np.int32)
    return own.task_of(fn, params, (8,), images=images, labels=labels)


def test_the_bias_is_inside_the_neuron(float64):
    """||[w; b]|| = 5 falls to 2.5: everything is halved; the norm of w alone is 3."""
    v = {"w": jnp.array([[1.0], [2], [2]]), "b": jnp.array([4.0]), "out": jnp.ones((1, 1))}
    fn = lambda v, x: jax.nn.relu(x @ v["w"] + v["b"]) @ v["out"]
    groups = jprune.trace(fn, v, jnp.ones(3))
    still = jax.tree.map(jnp.zeros_like, v)
    for shifts, w, b in ((True, [0.5, 1, 1], 2), (False, [1 / 6, 1 / 3, 1 / 3], 4)):
        tx = group_lasso(blocks.filters(groups, shifts=shifts), 5.0, 0.5)
        after = optax.apply_updates(v, tx.update(still, tx.init(v), v)[0])
        np.testing.assert_allclose(after["w"][:, 0], w, atol=1e-12)
        np.testing.assert_allclose(after["b"], b, atol=1e-12)


def test_singular_values_are_lowered(float64):
    matrix = jnp.array([[3.0, 0], [4, 5]])
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values, [6.708204, 2.236068], rtol=1e-6)
    expected = [[2.105573, 0.447214], [3.552786, 4.105573]]
    np.testing.assert_allclose(soft_singular(matrix, 1.0), expected, atol=1e-6)
    after = soft_singular(jnp.diag(jnp.array([5.0, 3, 1])), 2.0)
    np.testing.assert_allclose(after, np.diag([3.0, 1, 0]), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.01, 3))
def test_the_step_on_a_matrix_solves_the_proximal_problem(seed, threshold):
    """M - W is in t times the subgradient of ||W||_*: U V^T + P, with ||P|| <= 1 beside W."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 5)) * rng.uniform(0, 2)
    with jax.enable_x64(True):
        after = np.asarray(soft_singular(jnp.asarray(matrix), threshold))
    left, values, right = np.linalg.svd(after)
    rank = int((values > 1e-9).sum())
    rest = (matrix - after) / threshold - left[:, :rank] @ right[:rank]
    assert np.abs(left[:, :rank].T @ rest).max(initial=0) < 1e-7
    assert np.abs(rest @ right[:rank].T).max(initial=0) < 1e-7
    assert np.linalg.norm(rest, 2) <= 1 + 1e-7


def test_forward_backward_splitting_comes_to_rest_with_exact_zeros(float64):
    """0.5 ||w - z||^2 + the norms of three pairs, lambda 1, step 0.5."""
    pulled = jnp.array([3, 4, 0.3, 0.4, -1, 1])
    tx = optax.chain(optax.sgd(0.5), group_lasso(PAIRS, 1.0, 0.5))
    params = {"w": jnp.zeros(6)}
    state = tx.init(params)
    for _ in range(60):
        updates, state = tx.update({"w": params["w"] - pulled}, state, params)
        params = optax.apply_updates(params, updates)
    found = np.asarray(params["w"])
    np.testing.assert_allclose(found, [2.4, 3.2, 0, 0, -0.292893, 0.292893], atol=1e-6)
    assert found[2] == found[3] == 0


def test_modes_are_inputs_outputs_and_windows_in_any_layout(float64):
    """Unfoldings of HWIO and OIHW kernels have the same singular values; folding inverts them."""
    nets = {first: own.channels_first(first) for first in (False, True)}
    values = {
        first: singular_values(Net(task).groups, task.init(KEY)) for first, task in nets.items()
    }
    assert [*values[True]] == [*values[False]]
    for path, of_modes in values[False].items():
        layer = Net(nets[True]).groups.layers[path]
        assert len(of_modes) == len(modes(layer)) == 4
        for one, two in zip(of_modes, values[True][path]):
            np.testing.assert_allclose(one, two, rtol=1e-6)
        kernel = np.random.default_rng(0).normal(size=layer.shape)
        for mode in modes(layer):
            there = folded(unfolded(kernel, mode), layer.shape, mode)
            np.testing.assert_array_equal(there, kernel)
    (layer,) = kernels_of_rank(Net(dense_net()).groups).values()
    assert len(modes(layer)) == 1


def test_the_step_of_a_tensor_is_the_mean_over_its_modes(float64):
    task = own.channels_first(True)
    groups, params = Net(task).groups, task.init(KEY)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
    tx = low_rank(groups, 1.0, 0.3)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(still, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    kernel = np.asarray(params["a"]["kernel"])  # OIHW
    total = 0
    for axis in range(4):
        moved = np.moveaxis(kernel, axis, 0)
        u, s, v = np.linalg.svd(moved.reshape(kernel.shape[axis], -1), full_matrices=False)
        lower = (u * np.maximum(s - 0.3, 0)) @ v
        total += np.moveaxis(lower.reshape(moved.shape), 0, axis)
    np.testing.assert_allclose(after["a"]["kernel"], total / 4, atol=1e-10)
    assert after["c"]["kernel"] is not None  # the classifier's rank is left alone
    np.testing.assert_array_equal(updates["c"]["kernel"], 0)


def test_the_bias_is_a_row_of_the_matrix_and_zero_filters_stay_0(float64):
    task = dense_net()
    groups, params = Net(task).groups, task.init(KEY)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
    params["first"] = params["first"].at[:, 3].set(0)
    params["bias"] = params["bias"].at[3].set(0)
    tx = low_rank(groups, 1.0, 0.4)
    still = jax.tree.map(jnp.zeros_like, params)
    after = optax.apply_updates(params, tx.update(still, tx.init(params), params)[0])
    whole = lambda p: np.concatenate([p["first"], p["bias"][None]])
    np.testing.assert_allclose(whole(after), soft_singular(jnp.asarray(whole(params)), 0.4))
    np.testing.assert_allclose(whole(after)[:, 3], 0, atol=1e-12)


def test_rare_steps_are_longer(float64):
    task = dense_net()
    groups, params = Net(task).groups, task.init(KEY)["params"]
    still = jax.tree.map(jnp.zeros_like, params)
    often, rare = low_rank(groups, 1.0, 0.1), low_rank(groups, 1.0, 0.1, every=3)
    found = []
    for tx in (often, rare):
        after, state = params, tx.init(params)
        for number in range(3):
            updates, state = jax.jit(tx.update)(still, state, after)
            after = optax.apply_updates(after, updates)
            if tx is rare and number < 2:
                np.testing.assert_array_equal(after["first"], params["first"])
        found.append(after["first"])
    np.testing.assert_allclose(*found, atol=1e-6)


def shrunk(task, penalty, rank=None, epochs=60):
    stage = Shrink(Train(epochs, 0.05, 32, weight_decay=0), Budget(density=0.1), penalty, rank)
    return stage(Pruned(task.init(KEY), None), task, KEY)[0]


def test_only_the_proximal_step_makes_zeros_and_low_rank_makes_none():
    """Strengths are those that the method finds; what is 0 is 0 with its bias, and is the cut."""
    task = dense_net()
    penalty = Penalty(("filter",), None, shifts=True)
    (filters,) = (term.blocks for term in penalty.terms(task, Budget(macs=1.0)).values())
    zeros, ranks = {}, {}
    for name, settings_, rank in (
        ("prox", penalty, None),
        ("subgradient", dataclasses.replace(penalty, how="subgradient"), None),
        ("low_rank", dataclasses.replace(penalty, strength=0.0), RankPenalty()),
    ):
        after = shrunk(task, settings_, rank)
        alive = blocks.alive(filters, after.variables)["params/first"]
        zeros[name] = int((~alive).sum())
        assert not np.asarray(after.variables["params"]["bias"])[~alive].any()
        (values,) = singular_values(Net(task).groups, after.variables)["params/first"]
        ranks[name] = int((values > 1e-3 * values[0]).sum())
    assert 4 <= zeros["prox"] < 24
    assert zeros["subgradient"] == zeros["low_rank"] == 0
    assert ranks["low_rank"] <= 5 < ranks["subgradient"]


def test_a_strength_that_is_not_tuned_takes_no_more_than_the_budget():
    """In two steps everything would be 0."""
    task = dense_net()
    stage = Shrink(
        Train(1, 0.05, 32, max_steps=2), Budget(macs=0.4), Penalty(("filter",), None, shifts=True)
    )
    after, _ = stage(Pruned(task.init(KEY), None), task, KEY)
    filters = blocks.filters(Net(task).groups, shifts=True)
    alive = blocks.alive(filters, after.variables)["params/first"]
    assert 9 <= alive.sum() <= 10  # 0.4 of 24 units


def test_relu_nets_become_sparser_than_tanh_nets():
    """A unit that is off has no gradient: the penalty alone acts on it."""
    alive = {}
    for act in (jax.nn.relu, jnp.tanh):
        task = dense_net(act)
        penalty = Penalty(("filter",), None, shifts=True)
        after = shrunk(task, penalty, epochs=40)
        filters = blocks.filters(Net(task).groups, shifts=True)
        alive[act] = int(blocks.alive(filters, after.variables)["params/first"].sum())
    assert alive[jax.nn.relu] < alive[jnp.tanh]


@pytest.mark.parametrize(
    "options", [{}, {"constraint": ("group", "low_rank"), "every": 2}], ids=str
)
def test_the_recipe_begins_anew_and_ends_under_masks(options):
    task = dense_net()
    short = Train(2, 0.02, 32, name="finetune")
    train = Train(60, 0.05, 32)
    recipe = recipes.find("less_is_more")(Budget(macs=0.5), train, short, **options)
    done, records = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    (seen,) = (r["metrics"] for r in records if r["stage"] == "prune")
    assert seen["macs"] <= 0.5
    assert seen["zeros"] > 0
    for leaf, mask in zip(
        jax.tree.leaves(done.variables), jax.tree.leaves(Net(task).weight_masks(done.masks))
    ):
        assert not np.asarray(leaf)[~np.asarray(mask)].any()


@pytest.mark.parametrize(("options", "message"), [
    ({"constraint": "rank"}, "constraint='rank'; write one of group, low_rank"),
    ({"begin": "middle"}, "begin is scratch or dense"),
    ({"constraint": "low_rank", "strength": 0.1}, "does not look at strength"),
    ({"kernels": "params/first"}, "does not look at rank_strength"),
    ({"how": "newton"}, "how='newton'"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    train = Train(1, 0.1)
    with pytest.raises(errors.ArgumentError, match=message):
        recipes.find("less_is_more")(Budget(macs=0.5), train, train, **options)


def test_what_cannot_be_is_refused_before_training():
    method, finetune = recipes.find("less_is_more"), Train(1, 0.1, name="finetune")
    with pytest.raises(errors.ArgumentError, match="begin='dense'"):
        method(Budget(macs=0.5), None, finetune)
    task = toy_task()
    both = ("group", "low_rank")
    for options, error, message in (
        ({"kernels": "params/fc/kernel"}, errors.StructureError, "kernels whose rank"),
        ({"rank_strength": -1.0}, errors.ArgumentError, "a number of 0 or more"),
        ({"every": 0}, errors.ArgumentError, "every=0"),
        ({"rank_strength": (1.0, 2.0)}, errors.ArgumentError, "rank_strength has 2 numbers"),
    ):
        recipe = method(Budget(macs=0.5), None, finetune, begin="dense", constraint=both, **options)
        with pytest.raises(error, match=message):
            check(recipe, task)
