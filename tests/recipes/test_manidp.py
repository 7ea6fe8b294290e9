"""ManiDP: thresholds for all images, easy ones that pay, and similarities that are held."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.cost.samples import gates_of
from jprune.forms.opened import read_back, written_out
from jprune.forms.thresholded import Thresholded, passing, squeezed
from jprune.graph import taps
from jprune.learners import to_the_end
from jprune.learners.input_gates import boostable_layers
from jprune.learners.manifold import (
    OPEN,
    Manifold,
    as_thresholded,
    complexity_weights,
    first_thresholds,
    init_branches,
    manifold_task,
    refreshed,
    remaining,
    similarity_gap,
)
from jprune.recipes import Train
from jprune.recipes.manidp import manidp
from jprune.stages.difficulty import EvaluateDifficulty
from jprune.stages.manifold import KeepManifold
from jprune.train.net import Net
from tests.contracts import own
from tests.recipes.test_fbs import CONVS, images, net
from tests.toys import toy_task

KEY = jax.random.key(38)
TRAIN = Train(8, 0.05, 24, name="finetune")  # 32 steps
LOSSES = jnp.array([0.2, 0.4, 0.8, 1.5])


@pytest.mark.parametrize(
    ("easy", "gamma", "expected"),
    [
        (1.0, 1.0, [0.75, 0.5, 0, 0]),
        (0.5, 1.0, [0.5, 0, 0, 0]),
        (1.0, 2.0, [0.5625, 0.25, 0, 0]),
        (float("inf"), 1.0, [1, 1, 1, 1]),
    ],
)
def test_weights_of_the_worked_case(easy, gamma, expected):
    """Checks [38] P1; without end, all images are easy."""
    found = complexity_weights(LOSSES, 0.8, easy, gamma)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_loss_is_under_a_mean_of_0_and_its_slope_is_a_number():
    weights = lambda losses: complexity_weights(losses, 0.0).sum()
    np.testing.assert_array_equal(jax.value_and_grad(weights)(LOSSES)[0], 0)
    assert np.isfinite(jax.grad(weights)(LOSSES)).all()


def test_the_gap_of_the_worked_case():
    """Checks [38] P2."""
    pi = jnp.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 2]])
    features = jnp.array([[1.0, 0], [0, 1], [1, 1]])
    np.testing.assert_allclose(similarity_gap(pi, features), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(similarity_gap(pi, pi), 0, atol=1e-12)
    scaled = pi * jnp.array([[0.5], [3.0], [20.0]])
    np.testing.assert_allclose(similarity_gap(scaled, features), 1 / 3, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_gap_is_the_sum_over_pairs(seed):
    rng = np.random.default_rng(seed)
    pi, features = rng.uniform(size=(5, 4)), rng.normal(size=(5, 3))
    cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
    pairs = [(i, j) for i in range(5) for j in range(5)]
    expected = sum((cosine(features[i], features[j]) - cosine(pi[i], pi[j])) ** 2 for i, j in pairs)
    found = similarity_gap(jnp.asarray(pi), jnp.asarray(features))
    np.testing.assert_allclose(found, expected / 25, rtol=1e-4)


def test_an_image_without_saliences_is_like_none_and_has_no_slope():
    pi, features = jnp.array([[0.0, 0], [1, 2]]), jnp.array([[1.0, 0], [1, 0]])
    np.testing.assert_allclose(similarity_gap(pi, features), 3 / 4, rtol=1e-6)
    slope = jax.grad(similarity_gap)(pi, features)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[0], 0)


def test_the_schedule_of_the_worked_case():
    """Checks [38] P3."""
    expected = """
    0.99021130 0.96180340 0.91755705 0.86180340 0.8 0.73819660 0.68244295 0.63819660 0.60978870 0.6
    """
    found = [remaining(number, 10, 0.6) for number in range(10)]
    np.testing.assert_allclose(found, [float(n) for n in expected.split()], atol=1e-8)


def test_saliences_above_the_threshold_pass_and_their_gradient_alone():
    pi = jnp.array([[0.5, 2.0, 1.0], [3.0, 0.25, 0.0]])
    np.testing.assert_array_equal(passing(pi, 1.0), [[0, 2, 1], [3, 0, 0]])
    np.testing.assert_array_equal(passing(pi, OPEN), pi)
    slope = jax.grad(lambda pi: (passing(pi, 1.0) * jnp.arange(1.0, 4)).sum())(pi)
    np.testing.assert_array_equal(slope, [[0, 2, 3], [1, 0, 0]])
    huge = squeezed(jnp.ones((1, 2)), jnp.full((2, 2), 1e3), jnp.full((2, 1), 1e3), jnp.ones(1))
    assert float(huge[0, 0]) == 1000


@functools.cache
def begun(kind="tiny"):
    task, variables = net(kind)
    groups = Net(task).groups
    layers = boostable_layers(task, groups, Net(task).shapes)
    thresholds = {**first_thresholds(layers), "thresholds": {n: jnp.float32(1.05) for n in layers}}
    start = {"net": variables, "gates": init_branches(KEY, layers), **thresholds}
    return task, groups, layers, start


@pytest.mark.parametrize("kind", ["tiny", "biased", "preactivation", "concatenated"])
def test_the_kernels_that_are_handed_over_are_the_net_that_was_trained(kind):
    """Gates behind a norm with its scale and shift, against gates folded into kernels."""
    task, groups, layers, variables = begun(kind)
    still = task._replace(train_fn=lambda v, x, key: (task.fn(v, x), v["stats"]))
    made = manifold_task(still, groups, layers, Manifold())
    (logits, terms, _), _ = jax.jit(made.train_fn)(variables, images(), KEY)
    held = jax.jit(lambda v: as_thresholded(task, groups, layers, v))(variables)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5 * np.abs(logits).max())
    close(Net(task).fn(held, images()), logits)
    out, gates = jax.jit(gates_of(task.fn, groups))(held, images())
    close(out, logits)
    alive = np.mean([(np.asarray(gates[name]) > 0).mean(axis=1) for name in layers], axis=0)
    np.testing.assert_allclose(terms["open"], alive, rtol=1e-5)
    counts = np.stack([(np.asarray(gates[name]) > 0).sum(axis=1) for name in layers])
    assert len({*counts.sum(axis=0).tolist()}) > 1  # how many are open differs
    back = read_back(written_out(held))
    np.testing.assert_array_equal(Net(task).fn(back, images()), Net(task).fn(held, images()))


def test_features_are_pooled_outputs_before_the_gates_behind_relu_where_there_is_one():
    task, groups, layers, variables = begun()
    alone = {CONVS[2]: layers[CONVS[2]]}  # its norm is read by the sum

    values = taps(task.fn, groups, ("in", "norm"))(variables["net"], images())[1]
    branch = variables["gates"][CONVS[2]]
    pi = squeezed(values[CONVS[2], "in"], *(branch[p] for p in ("squeeze", "excite", "level")))
    still = task._replace(train_fn=lambda v, x, key: (task.fn(v, x), v["stats"]))
    made = manifold_task(still, groups, alone, Manifold())
    (_, terms, _), _ = made.train_fn(variables, images(), KEY)
    features = values[CONVS[2], "norm"].mean(axis=(1, 2))
    expected = similarity_gap(pi, features)
    np.testing.assert_allclose(terms["similarity"], np.full(6, expected), rtol=1e-4)
    first = {CONVS[0]: layers[CONVS[0]]}
    (_, terms, _), _ = manifold_task(still, groups, first, Manifold()).train_fn(
        variables, images(), KEY
    )
    branch = variables["gates"][CONVS[0]]
    pi = squeezed(values[CONVS[0], "in"], *(branch[p] for p in ("squeeze", "excite", "level")))
    features = jax.nn.relu(values[CONVS[0], "norm"]).mean(axis=(1, 2))
    np.testing.assert_allclose(terms["similarity"][0], similarity_gap(pi, features), rtol=1e-4)


def test_thresholds_are_order_statistics_of_mean_saliences_of_a_round():
    rng, counts = np.random.default_rng(0), {"a": np.array([4, 3, 2])}
    rest = {
        "step": jnp.int32(0),
        "thresholds": {"a": jnp.float32(OPEN)},
        "sums": {"a": jnp.zeros(4)},
        "losses": jnp.float32(0),
        "level": jnp.float32(0),
    }
    pis, losses = rng.uniform(size=(7, 4)), rng.uniform(size=7)
    thresholds, levels = [], []
    for pi, loss in zip(pis, losses):
        sums = {"a": rest["sums"]["a"] + pi}
        rest = {**rest, "step": rest["step"] + 1, "sums": sums}
        rest = refreshed(rest, jnp.float32(loss), counts, 2)
        thresholds.append(float(rest["thresholds"]["a"]))
        levels.append(float(rest["level"]))
    second, third = (np.sort(pis[i : i + 2].mean(axis=0))[::-1] for i in (2, 4))
    expected = [OPEN, OPEN, OPEN, second[2], second[2], third[1], third[1]]
    np.testing.assert_allclose(thresholds, expected, rtol=1e-5)
    means = [losses[0], *np.repeat([losses[i : i + 2].mean() for i in (0, 2, 4)], 2)]
    np.testing.assert_allclose(levels, means, rtol=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_the_weight_of_an_easy_image_is_a_path_of_the_gradient_only_where_it_is_asked_for(detach):
    task, groups, layers, _ = begun()
    made = manifold_task(task, groups, layers, Manifold(lasso=2.0, similarity=0, detach=detach))
    batch = {"label": jnp.array([0, 1]), "weight": jnp.ones(2)}
    terms = {"saliences": jnp.array([1.0, 3]), "similarity": jnp.zeros(2)}
    logits = jnp.array([[3.0, 0, 0], [0, 2, 0]])
    loss = lambda logits: made.loss((logits, terms, jnp.float32(1.0)), batch).sum()
    plain = lambda logits: task.loss(logits, batch)
    # d/dz [C + 2 (1 - 2 C) s] = (1 - 4 s) dC/dz, or dC/dz where the weight is a constant
    factors = jnp.ones(2) if detach else 1 - 4 * terms["saliences"]
    slope = jax.grad(lambda z: plain(z) @ factors)(logits)
    np.testing.assert_allclose(jax.grad(loss)(logits), slope, rtol=1e-5)
    value = plain(logits) + 2 * (1 - 2 * plain(logits)) * terms["saliences"]
    np.testing.assert_allclose(made.loss((logits, terms, 1.0), batch), value, rtol=1e-5)


@functools.cache
def graded_task():
    """A bright corner says the label; the easier an image, the fainter a second one."""
    rng = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int32) % 3
    pictures = rng.uniform(0, 0.5, (96, 8, 8, 1)).astype(np.float32)
    corner = lambda picture, label: picture[4 * (label // 2) :, 4 * (label % 2) :][:4, :4]
    for picture, label, light in zip(pictures, labels, rng.permutation(np.linspace(0.33, 0.6, 96))):
        corner(picture, label)[...] += light
        corner(picture, (label + 1) % 3)[...] += 0.6 - light
    return toy_task("tiny")._replace(data=own.data_of(pictures, labels, 3))


@functools.cache
def dense_net():
    task = graded_task()
    recipe = (dataclasses.replace(TRAIN, name="train"), recipes.Save("dense"))
    return recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)[0]


@functools.cache
def trained(**options):
    task = graded_task()
    recipe = manidp(Budget(macs=0.5), None, TRAIN, **{"lasso": 0.5, **options})
    return task, recipes.run(recipe, dense_net(), task, KEY)


def of_stage(records, name):
    return next(entry["metrics"] for entry in records if entry["stage"] == name)


def test_a_run_meets_its_budget_in_the_mean_and_images_differ_in_number():
    task, (pruned, records) = trained()
    names = ["dense", "manifold", "mosaic", "occlusion", "difficulty"]
    assert [entry["stage"] for entry in records] == names
    assert pruned.masks is None
    dense = of_stage(records, "dense")
    found = recipes.run((recipes.Evaluate("test", slim=True),), pruned, task, KEY)[1][0]["metrics"]
    assert 0.45 * dense["macs"] < found["macs"] <= 0.5 * dense["macs"]
    assert found["accuracy"] > 0.9
    batch = next(task.data.batches("test", 96))
    _, gates = jax.jit(gates_of(task.fn, Net(task).groups))(pruned.variables, batch["image"])
    counts = sum((np.asarray(gate) > 0).sum(axis=1) for gate in gates.values())
    assert np.ptp(counts) >= 1
    # And by hand, image by image.
    there = {name: np.asarray(gates[name]) > 0 for name in CONVS}
    a, b, c = (there[name].sum(axis=1) for name in CONVS)
    stream = (there[CONVS[0]] | there[CONVS[2]]).sum(axis=1)
    branches = sum((i + o) * o for i, o in ((1, 8), (8, 12), (12, 8)))
    macs = 16 * 9 * (a + a * b + b * c) + 3 * stream + 16 * (a + b + c) + branches
    assert found["macs"] == round(macs.mean())
    fn, small = Net(task).slim(pruned)
    expected = Net(task).fn(pruned.variables, batch["image"])
    np.testing.assert_allclose(fn(small, batch["image"]), expected, atol=1e-5)


def test_the_manifold_is_held():
    """P38: the gap is less than half of that without its term."""
    full, loose = (trained(**options)[1][1] for options in ({}, {"similarity": 0.0}))
    gaps = [of_stage(records, "manifold")["similarity"] for records in (full, loose)]
    assert gaps[0] < 0.5 * gaps[1]


def correlation_with(easy):
    """Of difficulty and open channels, where the penalty of easy images is all that moves."""
    kernels = own.kernels({"a": (3, 3, 2, 8), "b": (3, 3, 8, 8), "c": (8, 3)})

    def fn(v, x):
        a, b, c = (v["params"][name]["kernel"] for name in "abc")
        return jax.nn.relu(own.conv(jax.nn.relu(own.conv(x, a)), b)).mean((1, 2)) @ c

    # The first channel is bright where the image is easy, the second where it is not.
    hard = np.linspace(0, 1, 48)
    pictures = np.ones((48, 4, 4, 1)) * np.stack([1 - hard, hard], axis=-1)[:, None, None]
    task = own.task_of(
        fn, kernels, (4, 4, 2), images=pictures.astype(np.float32), labels=hard.astype(np.float32),
        loss=lambda out, batch: 2 * batch["label"] + 0 * out.sum(-1), metrics=lambda *_: {},
    )  # fmt: skip
    start = task.init(KEY)
    train = Train(20, 0.1, 16, schedule="constant", weight_decay=0.0)
    stage = KeepManifold(train, Budget(density=0.5), Manifold(2.0, 0.0, easy))
    begun = Pruned(start, None, saved={"dense": start})
    return recipes.run((stage, EvaluateDifficulty()), begun, task, KEY)[1][-1]["metrics"]


def test_difficult_images_open_more_channels():
    """P38: the correlation of difficulty and open channels, smaller where all images pay."""
    full, flat = correlation_with(0.5), correlation_with(float("inf"))
    assert full["correlation"] > 0.5
    assert full["correlation"] > flat["correlation"] + 0.1
    assert full["open_4"] > full["open_1"]


def test_the_share_of_a_density_is_that_of_mean_saliences():
    task, variables = net()
    stage = KeepManifold(TRAIN, Budget(density=0.5), Manifold(), every=3)
    learner = stage.learner(Pruned(variables, None), task, KEY)
    layers, held = stage.layers(task), to_the_end(learner)[0].variables
    batch = next(task.data.batches("test", 12))
    _, gates = jax.jit(gates_of(task.fn, Net(task).groups))(held, batch["image"])
    shares = [(np.asarray(gates[name]) > 0).mean() for name in layers]
    assert abs(np.mean(shares) - 0.5) < 0.15


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (Budget(params=0.5), {}, r"manidp came with Budget\(params=0.5\): it keeps all parameters"),
        (Budget(macs=0.5), {"easy": 0.0}, r"manidp\(easy=0.0\); easy is above 0"),
        (Budget(macs=0.5), {"gamma": -1.0}, "gamma is above 0"),
        (Budget(macs=0.5), {"similarity": -1.0}, "similarity is 0 or more"),
        (Budget(macs=0.5), {"lasso": float("nan")}, "lasso is 0 or more"),
        (Budget(macs=0.5), {"every": 0}, "every is 1 or more, or None"),
    ],
)
def test_what_cannot_be_is_refused(budget, options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        manidp(budget, None, TRAIN, **options)


def test_budgets_out_of_reach_and_nets_without_convolutions_are_refused():
    task, variables = net()
    with pytest.raises(errors.BudgetError, match="cannot be met by manidp: with the fewest"):
        KeepManifold(TRAIN, Budget(macs=0.01), Manifold()).check(task)
    with pytest.raises(errors.ArgumentError, match=r"can have gates; manidp suppresses channels"):
        KeepManifold(TRAIN, Budget(macs=0.5), Manifold()).check(toy_task("lenet300"))
    start = Pruned(variables, None, saved={"dense": variables})
    with pytest.raises(errors.ArgumentError, match="came to a net without gates"):
        EvaluateDifficulty()(start, task, KEY)


def test_a_thresholded_kernel_is_cast_with_its_gates_and_made_by_no_plan():
    branch = (jnp.eye(3), jnp.eye(3, 4), jnp.ones(4))
    leaf = Thresholded(jnp.ones((3, 4)), *jnp.zeros((2, 4)), *branch, jnp.float32(2))
    cast = leaf.cast(lambda kernel: 2 * kernel)
    x = jnp.array([[1.0, 0, 4], [0, 2, 0]])
    np.testing.assert_array_equal(cast.gates(x), leaf.gates(x))
    np.testing.assert_array_equal(leaf.gates(x), [[2, 0, 5, 0], [0, 3, 0, 0]])
    np.testing.assert_array_equal(cast.kernel, 2 * leaf.kernel)
    assert leaf.gate_macs == 3 * 3 + 3 * 4
    with pytest.raises(errors.StructureError, match="a plan cannot make gates"):
        Thresholded.planned(leaf.kernel, leaf.plan())
