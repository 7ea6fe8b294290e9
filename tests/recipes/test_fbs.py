"""FBS: gates for every image, winners among them, and MACs counted image by image."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.claims import p32
from experiments.claims.claim import run as run_claim
from experiments.claims.nets import WIDTHS
from jprune import errors, recipes, slim, trace, train, zoo
from jprune.base import Budget, Pruned
from jprune.cost.samples import gates_of, sample_macs
from jprune.forms.opened import read_back, written_out
from jprune.forms.winners import Winners, saliences, winners
from jprune.graph.look.affine import affine_leaves, affine_of
from jprune.learners.feature_boosting import (
    Boosting,
    as_winners,
    boosted_task,
    init_gates,
    prepared,
)
from jprune.learners.input_gates import boostable_layers, chosen_layers, counts_at
from jprune.recipes import Train
from jprune.recipes.fbs import fbs
from jprune.stages.deformed import EvaluateDeformed, deformed, mosaic, occlusion
from jprune.stages.feature_boosting import Boost
from jprune.stages.input_gates import density_for
from jprune.train.net import Net
from jprune.zoo import layers as parts
from tests.toys import CLASSES, SHAPE, drawn, tiny, toy_data, toy_task

KEY = jax.random.key(32)
TRAIN = Train(10, 0.05, 16, name="finetune")  # 30 steps
CONVS = tuple(f"params/conv{number}/kernel" for number in (1, 2, 3))


class Other(nnx.Module):
    """Three convolutions in another arrangement.

    biased: every convolution has a bias before its norm. preactivation: norms stand before the
    convolutions, and the stem is read by a norm and by the sum. concatenated: like a DenseNet.
    """

    def __init__(self, kind, rngs):
        conv = functools.partial(parts.conv, size=3, dtype=jnp.float32, rngs=rngs)
        self.kind = kind
        bias, widths = kind == "biased", (8, 12, 8) if kind != "concatenated" else (8, 20, 8)
        self.conv1 = conv(1, 8, stride=2, bias=bias)
        self.conv2 = conv(8, 12, bias=bias)
        self.conv3 = conv(widths[1], 8, bias=bias)
        if kind == "concatenated":
            widths = (8, 20, 28)
        self.norm1, self.norm2, self.norm3 = (parts.norm(width, rngs) for width in widths)
        self.fc = parts.dense(widths[2], CLASSES, jnp.float32, rngs)

    def __call__(self, x):
        if self.kind == "biased":
            x = nnx.relu(self.norm1(self.conv1(x)))
            y = nnx.relu(self.norm2(self.conv2(x)))
            x = nnx.relu(x + self.norm3(self.conv3(y)))
            return self.fc(parts.global_average(x))
        join = jnp.add if self.kind == "preactivation" else lambda *xs: jnp.concatenate(xs, -1)
        x = self.conv1(x)
        y = self.conv2(nnx.relu(self.norm1(x)))
        y = join(x, y) if self.kind == "concatenated" else y
        x = join(y if self.kind == "concatenated" else x, self.conv3(nnx.relu(self.norm2(y))))
        return self.fc(parts.global_average(nnx.relu(self.norm3(x))))


@functools.cache
def net(kind="tiny"):
    """A task, and a net whose norms do something: scales of both signs, shifts, statistics."""
    if kind in ("tiny", "bfloat16"):
        made = tiny(CLASSES, SHAPE, jnp.dtype("float32" if kind == "tiny" else kind))
    else:
        made = zoo.from_nnx(lambda rngs: Other(kind, rngs), SHAPE, name=kind)
    task, rng = train.task(made, toy_data()), np.random.default_rng(3)

    def moved(path, leaf):
        name = path[-1].key
        draws = {"scale": (0.5, 1.5), "var": (0.5, 2), "bias": (-0.3, 0.3), "mean": (-0.3, 0.3)}
        if leaf.ndim > 1 or name not in draws:
            return leaf
        values = rng.uniform(*draws[name], leaf.shape)
        flips = np.where(np.arange(len(values)) % 5 == 2, -1, 1) if name == "scale" else 1
        return jnp.asarray(values * flips, leaf.dtype)

    return task, jax.tree.map_with_path(moved, drawn(task))


def images(count=6):
    return jax.random.normal(KEY, (count, 8, 8, 1))


def begun(boosting, std=None, kind="tiny"):
    task, variables = net(kind)
    groups = Net(task).groups
    layers = boostable_layers(task, groups, Net(task).shapes)
    start, levels = prepared(groups, layers, boosting, variables)
    gates = init_gates(KEY, layers, levels, boosting.std if std is None else std)
    return task, groups, layers, {"net": start, "gates": gates, "step": jnp.zeros((), jnp.int32)}


def test_the_gate_of_the_worked_case():
    """Checks [32] P1."""
    x = jnp.array([[[1.5, -0.5], [-0.5, 0.5]]])  # two positions: mean |x| is (1, 0.5)
    predictor = jnp.array([[0.2, -1, 0.4, 0], [0.2, 0.2, 1, -0.6]])
    g = saliences(x, predictor, jnp.array([1, 1, 0, 0.1]))
    np.testing.assert_allclose(g, [[1.3, 0.1, 0.9, 0]], atol=1e-6)
    pi = winners(g, 2)
    np.testing.assert_allclose(pi, [[1.3, 0, 0.9, 0]], atol=1e-6)
    np.testing.assert_allclose([g.sum(), pi.sum()], [2.3, 2.2], rtol=1e-6)
    h, beta = jnp.array([[0.5, -1, 2, 3]]), jnp.full(4, 0.1)
    for offset, bonus, expected in (
        (beta, 0 * beta, [0.78, 0, 1.89, 0]),
        (0 * beta, beta, [0.75, 0, 1.9, 0]),
    ):
        leaf = Winners(jnp.eye(4), offset, bonus, jnp.eye(4), beta, 2)
        np.testing.assert_allclose(jax.nn.relu(leaf.boosted(h, pi)), [expected], atol=1e-6)


def test_winners_are_the_largest_with_ties_by_index_and_pass_the_gradient_alone():
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.integers(0, 4, (50, 7)), jnp.float32)
    for count in (1, 3, 7):
        expected = np.zeros(g.shape, np.float32)
        for row, values in zip(expected, np.asarray(g)):
            first = np.argsort(-values, kind="stable")[:count]
            row[first] = values[first]
        np.testing.assert_array_equal(winners(g, count), expected)
        np.testing.assert_array_equal(jax.jit(winners)(g, count), expected)
    slope = jax.grad(lambda g: (winners(g, 2) * jnp.arange(4.0)).sum())(jnp.array([[4.0, 1, 3, 2]]))
    np.testing.assert_array_equal(slope, [[0, 0, 2, 0]])


@pytest.mark.parametrize("kind", ["tiny", "biased"])
@pytest.mark.parametrize("shift_first", [True, False])
def test_a_neutral_start_is_the_dense_net(shift_first, kind):
    """Checks [32] P2, for scales of both signs."""
    boosting = Boosting(start="scale", shift_first=shift_first)
    task, groups, layers, variables = begun(boosting, std=0.0, kind=kind)
    assert tuple(layers) == CONVS
    full = counts_at(layers, 1.0)
    held = jax.jit(lambda v: as_winners(task, groups, layers, shift_first, v, full))(variables)
    wanted = task.fn(net(kind)[1], images())
    got = Net(task).fn(held, images())
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("kind", "shift_first", "rtol"),
    [
        ("tiny", True, 1e-5),
        ("tiny", False, 1e-5),
        ("biased", True, 1e-5),
        ("biased", False, 1e-5),
        ("preactivation", True, 1e-5),
        ("concatenated", True, 1e-5),
        ("bfloat16", True, 0.03),
    ],
)
def test_the_kernels_that_are_handed_over_are_the_net_that_was_trained(kind, shift_first, rtol):
    """Gates behind the norm, in inference mode, against gates folded into kernels."""
    boosting = Boosting(shift_first=shift_first)
    task, groups, layers, variables = begun(boosting, std=0.5, kind=kind)
    # Something beside reads what the stems of the other two say.
    assert tuple(layers) == (CONVS[1:] if kind in ("preactivation", "concatenated") else CONVS)
    counts = counts_at(layers, 0.5)
    still = task._replace(train_fn=lambda v, x, key: (task.fn(v, x), v["stats"]))
    table = {name: np.array([count]) for name, count in counts.items()}
    boosted = boosted_task(still, groups, layers, boosting, table, 1)
    (logits, penalty, is_open), _ = jax.jit(boosted.train_fn)(variables, images(), KEY)
    held = jax.jit(lambda v: as_winners(task, groups, layers, shift_first, v, counts))(variables)
    close = functools.partial(np.testing.assert_allclose, atol=rtol * np.abs(logits).max())
    close(Net(task).fn(held, images()), logits)
    run = jax.jit(gates_of(task.fn, groups))
    out, gates = run(held, images())
    close(out, logits)
    alive = np.mean([(np.asarray(gates[name]) > 0).mean(axis=1) for name in layers], axis=0)
    np.testing.assert_allclose(is_open, alive, rtol=max(rtol, 1e-5))
    assert (np.asarray(penalty) > 0).all()
    factor, offset = affine_of(task.fn, groups)(read_kernels(held), images(1))[CONVS[1]]
    np.testing.assert_allclose(factor, np.ones(12), rtol=rtol)  # the norm does nothing any more
    np.testing.assert_array_equal(offset, np.zeros(12))


def test_a_gated_kernel_is_cast_with_its_gates_and_loses_them_nowhere():
    leaf = Winners(jnp.ones((3, 4)), *jnp.zeros((2, 4)), jnp.eye(3, 4), jnp.ones(4), 1)
    x = jnp.array([[1.0, 0, 4], [0, 2, 0]])

    def run(change):
        fn = lambda v, x: x @ change(v["a"]) @ v["b"]
        variables = {"a": leaf.kernel, "b": jnp.ones((4, 2))}
        groups = trace(fn, variables, x)
        return slim(fn, groups, {})({**variables, "a": leaf}, x)

    cast = run(lambda kernel: kernel.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(cast, [[25, 25], [6, 6]])
    with pytest.raises(errors.StructureError, match=r"a gated kernel met 'mul' .* out of gates"):
        run(lambda kernel: 2 * kernel)


def read_kernels(held):
    plain = lambda node: node.dense() if isinstance(node, Winners) else node
    return jax.tree.map(plain, held, is_leaf=lambda node: isinstance(node, Winners))


def test_gates_belong_to_their_image():
    """Checks [32] P3."""
    task, groups, layers, variables = begun(Boosting(), std=0.5)
    counts = counts_at(layers, 0.3)
    held = jax.jit(lambda v: as_winners(task, groups, layers, True, v, counts))(variables)
    run = jax.jit(gates_of(task.fn, groups))
    gates = run(held, images())[1]
    exchanged = run(held, images()[::-1])[1]
    for name, layer in layers.items():
        there = np.asarray(gates[name]) > 0
        assert there.shape == (6, layer.outputs)
        assert there.sum(axis=1).max() <= counts[name] == int(np.ceil(0.3 * layer.outputs))
        np.testing.assert_allclose(exchanged[name], gates[name][::-1], rtol=1e-6)
    assert len({row.tobytes() for row in np.asarray(gates[CONVS[2]]) > 0}) > 1
    back = read_back(written_out(held))
    np.testing.assert_array_equal(Net(task).fn(back, images()), Net(task).fn(held, images()))


def test_macs_are_counted_image_by_image_with_inputs_and_outputs_left_out():
    task, variables = net()
    groups, rng = Net(task).groups, np.random.default_rng(1)
    widths = {CONVS[0]: 8, CONVS[1]: 12, CONVS[2]: 8}
    there = {name: rng.random((6, width)) < 0.4 for name, width in widths.items()}
    there = {
        name: jnp.asarray(mask | (np.arange(mask.shape[1]) == 1)) for name, mask in there.items()
    }
    a, b, c = (np.asarray(there[name]).sum(axis=1) for name in CONVS)
    stream = np.asarray(there[CONVS[0]] | there[CONVS[2]]).sum(axis=1)  # one of both is enough
    contractions = 16 * 9 * (1 * a + a * b + b * c)
    extra = 1 * 8 + 8 * 12 + 12 * 8 + 16 * (a + b + c)
    count = jax.jit(sample_macs(task.fn, groups))
    np.testing.assert_array_equal(
        count(variables, there, images()), contractions + 3 * stream + extra
    )
    most = jax.jit(sample_macs(task.fn, groups, whole_joins=True))(variables, there, images())
    np.testing.assert_array_equal(most, contractions + 3 * 8 + extra)
    np.testing.assert_array_equal(
        count(variables, {}, images()), np.full(6, float(Net(task).cost({}).macs))
    )


def test_macs_of_grouped_convolutions():
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
        dimension_numbers=numbers,
    )  # fmt: skip

    def fn(v, x):
        x = jax.nn.relu(conv(x, v["a"]))
        x = jax.nn.relu(conv(x, v["b"], feature_group_count=3))
        return x.mean(axis=(1, 2)) @ v["c"]

    variables = {"a": jnp.ones((1, 1, 2, 6)), "b": jnp.ones((3, 3, 2, 9)), "c": jnp.ones((9, 4))}
    x = jnp.ones((2, 5, 4, 2))
    groups = trace(fn, variables, x)
    there = jnp.array([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    macs = sample_macs(fn, groups)(variables, {"a": there}, x)
    outside = 2 * 6 + 20 * there.sum(axis=1)
    expected = 20 * 2 * there.sum(axis=1) + 20 * 9 * 3 * there.sum(axis=1) + 9 * 4
    np.testing.assert_array_equal(macs, expected + outside)


@functools.cache
def boosted_net():
    task, variables = net()
    recipe = fbs(Budget(macs=0.6), None, TRAIN, drop=0.25, std=1.0)
    return task, recipes.run(recipe, Pruned(variables, None), task, KEY)


def test_a_run_meets_its_budget_on_every_image_and_gates_differ_between_images():
    task, (pruned, records) = boosted_net()
    seen = {entry["stage"]: entry["metrics"] for entry in records}
    assert list(seen) == ["dense", "boost", "mosaic", "occlusion"]
    assert pruned.masks is None  # nothing is removed: all parameters stay
    weights = seen["mosaic"]["params"] - seen["dense"]["params"]
    assert weights >= 1 * 8 + 8 * 12 + 12 * 8  # and the predictors come on top
    assert 0.3 < seen["boost"]["gates_open"] < 0.9
    groups = Net(task).groups
    batch = next(task.data.batches("test", 12))
    _, gates = jax.jit(gates_of(task.fn, groups))(pruned.variables, batch["image"])
    macs = sample_macs(task.fn, groups)(read_kernels(pruned.variables), gates, batch["image"])
    assert float(macs.max()) <= 0.6 * seen["dense"]["macs"]
    found = recipes.run((recipes.Evaluate("test", slim=True),), pruned, task, KEY)[1][0]["metrics"]
    assert found["macs"] == round(float(macs.mean()))
    apart = [mean_distance(np.asarray(gate) > 0) for gate in gates.values()]
    assert max(apart) > 0.05  # P32 asks it of half of the layers, on real images
    fn, small = Net(task).slim(pruned)
    expected = Net(task).fn(pruned.variables, batch["image"])
    np.testing.assert_allclose(fn(small, batch["image"]), expected, atol=1e-5)


def mean_distance(supports):
    """Mean Jaccard distance of all pairs."""
    pairs = itertools.combinations(supports, 2)
    return np.mean([1 - (a & b).sum() / max(1, (a | b).sum()) for a, b in pairs])


def test_scales_of_gated_layers_are_1_and_stay_so():
    pruned, _ = boosted_net()[1]
    for number, width in ((1, 8), (2, 12), (3, 8)):
        leaf = pruned.variables["params"][f"conv{number}"]["kernel"]
        assert isinstance(leaf, Winners)
        assert leaf.plan() == {"outputs": int(leaf.count)}
        norm, stats = (pruned.variables[k][f"norm{number}"] for k in ("params", "stats"))
        factor = norm["scale"] / jnp.sqrt(stats["var"] + 1e-5)
        np.testing.assert_allclose(factor, np.ones(width), rtol=1e-5)
        assert not norm["bias"].any()
    with pytest.raises(errors.StructureError, match="a plan cannot make gates"):
        Winners.planned(leaf.kernel, leaf.plan())


def test_densities_are_solved_for_budgets():
    task, _ = net()
    layers = boostable_layers(task, Net(task).groups, Net(task).shapes)
    assert density_for(task, layers, Budget(density=0.3)) == 0.3
    found = [density_for(task, layers, Budget(macs=share)) for share in (0.3, 0.5, 0.8)]
    assert found == sorted(found)
    floored = Budget(density=0.1, min_units=2, floors={CONVS[1]: 5})
    few = Boost(TRAIN, floored, Boosting()).layers(task)
    assert counts_at(few, 0.1) == dict(zip(CONVS, (2, 5, 2)))
    with pytest.raises(errors.BudgetError, match=r"with the fewest winners an image costs up to"):
        Boost(TRAIN, Budget(macs=0.01), Boosting()).check(task)


def test_budgets_are_kept_where_norms_read_what_is_suppressed():
    """Behind a concatenation and a norm a channel of zeros is there all the same."""
    task, variables = net("concatenated")
    groups = Net(task).groups
    layers = boostable_layers(task, groups, Net(task).shapes)
    density = density_for(task, layers, Budget(macs=0.6))
    counts = counts_at(layers, density)
    there = {n: jnp.arange(layers[n].outputs)[None] < kept for n, kept in counts.items()}
    macs = sample_macs(task.fn, groups)(variables, there, images(1))
    dense = float(Net(task).cost({}).macs)
    assert density < 1
    assert 0.4 * dense < float(macs[0]) <= 0.6 * dense


def test_a_sum_of_two_activations_ends_a_chain_at_one_position():
    """At one position an activation of one image is a number a channel, as a bias is."""

    def fn(v, x):
        stream = jax.nn.relu(x @ v["a"] * v["s1"])
        return (stream + (stream @ v["b"]) * v["s2"]) * v["s3"] @ v["c"]

    shapes = {"a": (3, 5), "b": (5, 5), "c": (5, 2), "s1": 5, "s2": 5, "s3": 5}
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    seen = []
    for x in (jnp.ones((1, 1, 1, 3)), jnp.ones((1, 2, 2, 3))):
        sites = trace(fn, variables, x).sites
        seen.append([(site.kind, site.layer) for site in sites])
        assert ("join", "b") in seen[-1]
        assert affine_leaves(fn, trace(fn, variables, x), variables, x)["b"] == ("s2",)
    assert seen[0] == seen[1]


def test_a_gate_on_a_frozen_group_is_refused():
    task, _ = net()
    groups = Net(task).groups
    known = boostable_layers(task, groups, Net(task).shapes)
    with pytest.raises(errors.FrozenError, match="params/fc/kernel, which is frozen: its axis 1"):
        chosen_layers(groups, known, "params/fc/*")
    with pytest.raises(errors.ArgumentError, match=r"did you mean params/conv2/kernel\?"):
        chosen_layers(groups, known, "params/conv2/kern")
    frozen = Budget(macs=0.9, floors={"params/conv2/kernel": 12})
    with pytest.raises(errors.FrozenError, match="the budget's floor leaves it whole"):
        Boost(TRAIN, frozen, Boosting(), "params/conv2/*").check(task)
    assert tuple(Boost(TRAIN, frozen, Boosting()).layers(task)) == (CONVS[0], CONVS[2])
    with pytest.raises(errors.ArgumentError, match="no convolution of this net can have gates"):
        Boost(TRAIN, Budget(macs=0.5), Boosting()).check(toy_task("lenet300"))


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (Budget(params=0.5), {}, r"fbs came with Budget\(params=0.5\): it keeps all parameters"),
        (Budget(macs=0.5), {"drop": 0.0}, r"fbs\(drop=0.0\); it is in \(0, 1\)"),
        (Budget(macs=0.5), {"over": "all"}, "over is gates or winners"),
        (Budget(macs=0.5), {"lasso": -1.0}, "both are 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(budget, options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        fbs(budget, None, TRAIN, **options)


def test_distillation_is_refused():
    with pytest.raises(errors.ArgumentError, match="fbs learns from labels alone"):
        fbs(Budget(macs=0.5), None, dataclasses.replace(TRAIN, distill=0.5))


def test_mosaics_are_means_of_tiles_and_occlusions_a_square():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 6, 2)).astype(np.float32)
    tiles = mosaic(x, rng, parts=2)
    expected = x.reshape(3, 2, 4, 2, 3, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(tiles[:, ::4, ::3], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tiles, np.repeat(np.repeat(tiles[:, ::4, ::3], 4, 1), 3, 2))
    hidden = occlusion(x, rng)
    changed = (hidden != x).any(axis=-1)
    assert changed.sum(axis=(1, 2)).tolist() == [4 * 3] * 3
    for image, before, where in zip(hidden, x, changed):
        np.testing.assert_allclose(image[where], np.tile(before.mean(axis=(0, 1)), (12, 1)))
    data = deformed(toy_data(), occlusion)
    once, again = (next(data.batches("test", 12)) for _ in range(2))
    plain = next(toy_data().batches("test", 12))
    np.testing.assert_array_equal(once["image"], again["image"])
    np.testing.assert_array_equal(once["label"], plain["label"])
    assert (once["image"] != plain["image"]).any()
    with pytest.raises(errors.ArgumentError, match="write one of mosaic, occlusion"):
        EvaluateDeformed("blur")


def test_resnets_are_gated_at_every_convolution():
    task = toy_task("resnet8")
    layers = boostable_layers(task, Net(task).groups, Net(task).shapes)
    assert len(layers) == 7
    assert {len(layer.scales) for layer in layers.values()} == {1}


@pytest.mark.slow
def test_p32_has_a_row_an_arm():
    found = run_claim(p32.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", *list(p32.COLOURS)[1:]]
    assert found[1]["macs"] < 0.35 * found[0]["macs"]
    assert found[1]["params"] > found[0]["params"]
    assert len(found[1]["apart"]) == len(WIDTHS)
