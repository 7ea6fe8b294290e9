"""Han: the std rule, sensitivity, dropout, units that are cut off, rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jprune
from experiments.claims import e04
from experiments.claims.claim import run as run_claim
from jprune import criteria, errors, train, zoo
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.han import han
from jprune.stages.dead_units import RemoveDead
from jprune.stages.dropout import RescaleDropout
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.std_rule import StdPrune
from jprune.train.net import Net
from tests.toys import drawn, toy_data, toy_task

KEY = jax.random.key(3)
SHORT = Train(1, 0.05, 16, max_steps=2, name="finetune")


@pytest.fixture(scope="module")
def lenet():
    task = toy_task("lenet300")
    return task, Pruned(drawn(task), None)


@pytest.fixture(scope="module")
def lenet5():
    net = zoo.build("lenet5", 3, (16, 16, 1), dropout=0.5)
    images = toy_data()
    grown = lambda *given, **more: (
        {**batch, "image": np.kron(batch["image"], np.ones((1, 2, 2, 1), np.float32))}
        for batch in images.batches(*given, **more)
    )
    task = train.task(net, images._replace(shape=(16, 16, 1), batches=grown))
    return task, Pruned(
        jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(0.5) if path[-1].key == "dropout" else leaf, drawn(task)
        ),
        None,
    )


def kernels(tree):
    return {
        name: np.asarray(layer["kernel"])
        for name, layer in tree["params"].items()
        if layer.get("kernel") is not None
    }


def scores(rule, w):
    return jprune.run_criterion(rule, {"w": jnp.asarray(w)}, ())["w"]


def test_the_std_rule_is_the_papers():
    """Checks [4] P1: population std 2.0, threshold 1.5."""
    w = [-3.0, -1.0, 0.0, 1.0, 3.0]
    rule = lambda over: scores(criteria.std_rule(0.75, over), w)
    np.testing.assert_array_equal(rule("all") > 1, [True, False, False, False, True])
    np.testing.assert_allclose(rule("all")[0], 3 / 1.5)
    np.testing.assert_allclose(rule("alive")[0], 3 / (0.75 * np.sqrt(5)), rtol=1e-6)


def test_fractions_of_a_normal_layer_do_not_depend_on_its_scale():
    """Checks [4] P2."""
    w = jax.random.normal(KEY, (1_000_000,))
    for q, fraction in ((0.5, 0.3829), (1, 0.6827), (1.5, 0.8664), (2, 0.9545)):
        for scale in (1.0, 1e-3):
            pruned = float(jnp.mean(scores(criteria.std_rule(q), scale * w) <= 1))
            assert pruned == pytest.approx(fraction, abs=3e-3)


def test_one_multiplier_of_all_q_meets_the_budget(lenet):
    task, start = lenet
    start, (said,) = Sensitivity(Budget(density=0.3), (2.0, 1.0, 0.5))(start, task, KEY)
    assert list(said["metrics"].values()) == [2, 1, 0.5]
    for budget in (Budget(density=0.3), Budget(params=0.3)):
        pruned, (seen,) = StdPrune(budget)(start, task, KEY)
        assert seen["metrics"][budget.kind] == pytest.approx(0.3, abs=1e-4)
        m = seen["metrics"]["multiplier"]
        q = {"fc1": 2.0, "fc2": 1.0, "fc3": 0.5}
        for name, kernel in kernels(start.variables).items():
            expected = np.abs(kernel) > m * q[name] * kernel.std() * (1 + 1e-6)
            mask = kernels(pruned.masks)[name]
            assert (mask != expected).sum() <= 1  # rounding at the threshold itself
            np.testing.assert_array_equal(
                kernels(pruned.variables)[name], np.where(mask, kernel, 0)
            )


def test_the_std_of_later_rounds_is_that_of_the_living_or_of_all(lenet):
    task, start = lenet
    start, _ = Sensitivity(Budget(density=0.3), 1.0)(start, task, KEY)
    first, _ = StdPrune(Budget(density=0.3))(start, task, KEY)
    for over in ("alive", "all"):
        second, (seen,) = StdPrune(Budget(density=0.1), over)(first, task, KEY)
        name, m = "fc2", seen["metrics"]["multiplier"]
        kernel, before = kernels(first.variables)[name], kernels(first.masks)[name]
        std = kernel[before].std() if over == "alive" else kernel.std()
        mask = kernels(second.masks)[name]
        assert not (mask & ~before).any()
        assert (mask != (np.abs(kernel) > m * std * (1 + 1e-6))).sum() <= 1
    assert seen["metrics"]["density"] == pytest.approx(0.1, abs=1e-4)


def test_the_scan_prunes_one_layer_at_a_time(lenet5, monkeypatch):
    """A made-up accuracy: that of the least layer that is left, conv2 bearing least."""
    task, start = lenet5
    bears = {"conv1": 2.0, "conv2": 0.6, "fc1": 3.1, "fc2": 1.0}
    dense = kernels(start.variables)

    def accuracy(few, variables, split):
        assert split == "validation"
        changed = [n for n, k in kernels(variables).items() if not np.array_equal(k, dense[n])]
        assert len(changed) <= 1
        cut = [np.abs(dense[n])[kernels(variables)[n] == 0].max() / dense[n].std() for n in changed]
        return 0.5 if changed and cut[0] > bears[changed[0]] else 0.9

    monkeypatch.setattr("jprune.stages.sensitivity.mean_quality", accuracy)
    _, (said,) = Sensitivity(Budget(density=0.5))(start, task, KEY)
    found = {path.split("/")[1]: q for path, q in said["metrics"].items()}
    assert list(found) == ["conv1", "conv2", "fc1", "fc2"]
    # Weights are dense enough that a threshold shows at once, but for the few of conv2 at 0.6.
    assert found == {"conv1": 0.5, "conv2": 0.5, "fc1": 3.0, "fc2": 1.0}


def test_dropout_follows_the_density_of_its_layer(lenet5):
    """Checks [4] P3."""
    task, start = lenet5
    start = start._replace(saved={"dense": start.variables})
    for density, rate in ((0.1, 0.158114), (0.08, 0.141421), (1.0, 0.5)):
        kernel = start.variables["params"]["fc1"]["kernel"]
        mask = np.arange(kernel.size).reshape(kernel.shape) < density * kernel.size
        masks = jax.tree.map(lambda leaf: None, start.variables)
        masks["params"]["fc1"]["kernel"] = mask
        after, (said,) = RescaleDropout()(start._replace(masks=masks), task, KEY)
        assert after.variables["stats"]["fc1"]["dropout"] == pytest.approx(rate, abs=1e-6)
        assert said["metrics"] == {"stats/fc1/dropout": pytest.approx(rate, abs=1e-6)}
        again, _ = RescaleDropout()(after, task, KEY)  # of the dense net's rate, not of the last
        assert again.variables["stats"]["fc1"]["dropout"] == pytest.approx(rate, abs=1e-6)


def test_dropout_of_the_zoo_is_dropout(lenet5):
    task, start = lenet5
    x = jnp.ones((4, 16, 16, 1))
    net = zoo.build("lenet5", 3, (16, 16, 1))
    assert net.init(KEY)["stats"] == {}
    plain = {**start.variables, "stats": {}}
    np.testing.assert_array_equal(task.fn(start.variables, x), net.fn(plain, x))
    rate = {"fc1": {"dropout": jnp.asarray(0.75)}}  # so a unit that is kept says exactly 4
    params = jax.tree.map(jnp.zeros_like, start.variables["params"])
    params["fc1"]["bias"] = jnp.ones(500)
    params["fc2"]["kernel"] = jnp.ones((500, 3))
    out, stats = task.train_fn({"params": params, "stats": rate}, x, KEY)
    kept = np.asarray(out)[:, 0] / 4
    np.testing.assert_array_equal(kept, np.round(kept))
    assert 95 < kept.mean() < 155  # of 500
    assert len(set(kept)) > 1  # every example draws
    assert stats == rate
    with pytest.raises(errors.ArgumentError, match=r"dropout=1.0 is outside \[0, 1\)"):
        zoo.build("lenet300", 3, (4, 4, 1), dropout=1.0)
    tree = jax.eval_shape(zoo.build("lenet300", dropout=0.5).init, KEY)
    assert [leaf.shape for leaf in jax.tree.leaves(tree["stats"])] == [(), ()]


def dead_masks(task, **empty):
    """Masks of ones, but False at `layer=(axis, positions)` of kernels."""
    masks = jax.tree.map(lambda s: None, Net(task).shapes)
    for name, layer in Net(task).shapes["params"].items():
        if "kernel" in layer:
            mask = np.ones(layer["kernel"].shape, bool)
            for axis, positions in empty.get(name, ()):
                np.moveaxis(mask, axis, 0)[positions] = False
            masks["params"][name]["kernel"] = mask
    return masks


def with_biases(variables):
    draw = lambda path, leaf: (
        jax.random.normal(jax.random.key(leaf.size), leaf.shape)
        if path[-1].key in ("bias", "mean")
        else leaf
    )
    return jax.tree.map_with_path(draw, variables)


def cleaned(task, variables, masks):
    pruned = Pruned(apply_masks(variables, masks), masks)
    after, (said,) = RemoveDead()(pruned, task, KEY)
    x = jax.random.normal(jax.random.key(9), (3, *task.example.shape[1:]))
    expected = task.fn(pruned.variables, x)
    tolerance = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(task.fn(after.variables, x), expected, atol=tolerance)
    fn, small = Net(task).slim(after)
    np.testing.assert_allclose(fn(small, x), expected, atol=tolerance)
    return after, small, said["metrics"]


def test_what_a_dead_unit_says_goes_into_the_next_bias(lenet):
    task, start = lenet
    variables = with_biases(start.variables)
    masks = dead_masks(task, fc1=[(1, slice(0, 40))], fc3=[(0, slice(90, 100))])
    after, small, said = cleaned(task, variables, masks)
    assert small["params"]["fc1"]["kernel"].shape == (64, 260)
    assert small["params"]["fc2"]["kernel"].shape == (260, 90)
    says = np.maximum(variables["params"]["fc1"]["bias"][:40], 0)
    assert says.any()
    moved = variables["params"]["fc2"]["bias"] + says @ variables["params"]["fc2"]["kernel"][:40]
    found = after.variables["params"]["fc2"]["bias"]
    np.testing.assert_allclose(found[:90], moved[:90], rtol=1e-4)
    assert (said["removed"], said["kept_silent"]) == (50, 0)


def test_dead_units_are_followed_through_layers_and_pooling(lenet5):
    """Of conv2, what only dead units of conv1 fed is dead too."""
    task, start = lenet5
    variables = with_biases(start.variables)
    masks = dead_masks(task, conv1=[(3, slice(0, 7))])
    masks["params"]["conv2"]["kernel"][:, :, 7:, :20] = False
    _, small, said = cleaned(task, variables, masks)
    assert small["params"]["conv1"]["kernel"].shape[3] == 13
    assert small["params"]["conv2"]["kernel"].shape[3] == 30
    assert (said["removed"], said["kept_silent"]) == (27, 0)


class Padded(nnx.Module):
    """A border that shows, and a norm with statistics in between."""

    def __init__(self, rngs):
        conv = lambda n, m, pad, bias: zoo.layers.conv(
            n, m, 3, jnp.float32, rngs, padding=pad, bias=bias
        )
        self.conv1 = conv(1, 6, "VALID", True)
        self.conv2 = conv(6, 7, "VALID", False)
        self.norm2 = zoo.layers.norm(7, rngs)
        self.conv3 = conv(7, 5, "SAME", True)
        self.fc = zoo.layers.dense(5, 3, jnp.float32, rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm2(self.conv2(nnx.sigmoid(self.conv1(x)))))
        return self.fc(zoo.layers.global_average(nnx.relu(self.conv3(x))))


@pytest.fixture(scope="module")
def padded():
    return train.task(zoo.from_nnx(Padded, (8, 8, 1)), toy_data())


def test_a_norm_takes_the_constant_off_its_mean_and_a_padded_border_keeps_the_unit(padded):
    variables = with_biases(drawn(padded))
    masks = dead_masks(padded, conv1=[(3, slice(0, 2))], conv2=[(3, slice(0, 4))])
    after, small, said = cleaned(padded, variables, masks)
    assert small["params"]["conv1"]["kernel"].shape[3] == 4  # sigmoid(bias) is never 0
    assert np.any(after.variables["stats"]["norm2"]["mean"] != variables["stats"]["norm2"]["mean"])
    # relu(norm(0)) is a constant where it is above 0, and not one where the padding is.
    norm, stats = variables["params"]["norm2"], after.variables["stats"]["norm2"]
    says = norm["bias"] - stats["mean"] * norm["scale"] / np.sqrt(stats["var"] + 1e-5)
    loud = int((says[:4] > 0).sum())
    assert said["kept_silent"] == loud
    assert 0 < loud < 4
    assert small["params"]["conv2"]["kernel"].shape[3] == 3 + loud


def test_a_residual_branch_that_is_dead_does_not_cut_the_net():
    task = toy_task()
    masks = dead_masks(task, conv2=[(3, slice(0, 12))])
    cleaned(task, with_biases(drawn(task)), masks)


def test_a_path_that_is_silent_for_some_inputs_is_a_path():
    """relu(x_0): two random inputs below 0 say the same."""
    fn = lambda v, x: jax.nn.relu(x @ v["params"]["fc1"]) @ v["params"]["fc2"]
    first, second = np.zeros((64, 4), bool), np.zeros((4, 3), bool)
    first[0, 0], second[0] = True, True
    masks = {"params": {"fc1": first, "fc2": second}, "stats": {}}
    variables = jax.tree.map(lambda mask: jnp.asarray(mask, jnp.float32), masks)
    task = toy_task("lenet300")._replace(
        fn=fn, init=lambda key: variables, example=jax.ShapeDtypeStruct((1, 64), jnp.float32)
    )
    for seed in range(10):
        after, _ = RemoveDead()(Pruned(variables, masks), task, jax.random.key(seed))
        assert after.masks["params"]["fc1"].sum() == 1


def test_a_net_that_is_cut_is_refused(lenet):
    task, start = lenet
    masks = dead_masks(task, fc1=[(1, slice(0, 100))], fc2=[(0, slice(100, 300))])
    with pytest.raises(errors.BudgetError, match="cuts the net"):
        RemoveDead()(Pruned(apply_masks(start.variables, masks), masks), task, KEY)


def test_the_scan_is_made_anew_in_every_round():
    names = lambda q: [each.name for each in han(Budget(density=0.1), None, SHORT, rounds=3, q=q)]
    assert names("scan").count("scan") == names("scan").count("prune") == 3
    assert names((0.5, 1, 1, 1)).count("scan") == 1  # these are relative, and stay


def test_rounds_keep_trained_values_and_rise_in_q(lenet5):
    (task, start), rounds = lenet5, 2
    recipe = han(Budget(density=0.1), None, SHORT, rounds=rounds, q=(0.5, 1, 1, 1), std_over="all")
    pruned, multipliers = start, []
    for number, stage in enumerate(recipe):
        before = pruned
        pruned, records = stage(pruned, task, jax.random.fold_in(KEY, number))
        if isinstance(stage, StdPrune):
            multipliers.append(records[0]["metrics"]["multiplier"])
            for name, kernel in kernels(pruned.variables).items():
                mask = kernels(pruned.masks)[name]
                np.testing.assert_array_equal(
                    kernel, np.where(mask, kernels(before.variables)[name], 0)
                )
    assert multipliers == sorted(multipliers)
    assert len(multipliers) == rounds
    assert jprune.masks.density(pruned.masks) <= 0.1 + 1e-6
    assert pruned.variables["stats"]["fc1"]["dropout"] < 0.5
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(KEY, (2, 16, 16, 1))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())


def test_kinds_of_layers_in_turn_move_one_kind_at_a_time(lenet5):
    task, start = lenet5
    recipe = han(Budget(density=0.2), None, SHORT, rounds=1, q=1.0, alternate=True)
    pruned, moved = start, []
    for number, stage in enumerate(recipe):
        before = pruned
        pruned, records = stage(pruned, task, jax.random.fold_in(KEY, number))
        if isinstance(stage, Train):
            moved.append(
                {
                    name
                    for name, layer in pruned.variables["params"].items()
                    for leaf in layer
                    if not np.array_equal(layer[leaf], before.variables["params"][name][leaf])
                }
            )
        if isinstance(stage, StdPrune) and stage.only == "dense":
            assert kernels(pruned.masks)["conv2"].all()
            assert not kernels(pruned.masks)["fc1"].all()
        if isinstance(stage, StdPrune):
            density = records[0]["metrics"]["density"]
    assert moved == [{"fc1", "fc2"}, {"conv1", "conv2"}]
    assert density == pytest.approx(0.2, abs=1e-4)
    other = toy_task("lenet300")
    begun, _ = Sensitivity(Budget(density=0.2), 1.0)(Pruned(drawn(other), None), other, KEY)
    with pytest.raises(errors.ArgumentError, match="dense layers alone"):
        StdPrune(Budget(density=0.2), only="dense")(begun, other, KEY)


def test_an_l1_penalty_makes_zeros_in_the_dense_net(lenet):
    task, start = lenet
    long = Train(1, 0.1, 16, max_steps=12)
    recipe = han(Budget(density=0.2), long, SHORT, l1=0.3)
    dense, _ = recipe[0](start, task, KEY)
    plain, _ = long(start, task, KEY)
    assert recipe[0].weight_decay == 0
    zeros = lambda net: np.mean(kernels(net.variables)["fc1"] == 0)
    assert zeros(dense) > 0.2 > zeros(plain)


def test_equal_weights_go_by_index_and_nan_is_refused(lenet):
    task, start = lenet
    even = start._replace(variables=jax.tree.map(lambda leaf: jnp.ones(leaf.shape), drawn(task)))
    even, _ = Sensitivity(Budget(density=0.5), 1.0)(even, task, KEY)
    pruned, _ = StdPrune(Budget(density=0.5))(even, task, KEY)
    flat = np.concatenate([np.ravel(mask) for mask in kernels(pruned.masks).values()])
    kept = int(flat.sum())
    assert kept == round(0.5 * flat.size)
    assert flat[: kept - 2].all()  # the other two are one survivor a layer
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), start.variables)
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        StdPrune(Budget(density=0.5))(even._replace(variables=broken), task, KEY)


def test_what_cannot_be_is_refused(lenet):
    task, start = lenet
    with pytest.raises(errors.ArgumentError, match=r"outside \(0, 1\]"):
        han(Budget(density=0.0), None, SHORT)
    with pytest.raises(errors.ArgumentError, match="rounds and examples are 1 or more"):
        han(Budget(density=0.5), None, SHORT, rounds=0)
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        han(Budget(density=0.5), None, SHORT, l1=0.1)
    with pytest.raises(errors.ArgumentError, match=r"q has 2 numbers.*write one, or 3 "):
        Sensitivity(Budget(density=0.5), (1.0, 2.0))(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match="every q is above 0"):
        criteria.std_rule(-1.0)
    with pytest.raises(errors.ArgumentError, match="write one of alive, all"):
        criteria.std_rule(1.0, "some")
    whole = dict(Net(task).groups.sizes)
    frozen = Budget(density=0.5, floors=whole)
    begun, (said,) = Sensitivity(frozen, 1.0)(start, task, KEY)
    assert list(said["metrics"]) == ["params/fc3/kernel"]  # the last kernel has no group
    assert begun.extra["params"]["fc1"]["kernel"] is None
    nothing = task._replace(split=lambda variables: ({}, variables), merge=lambda _, rest: rest)
    with pytest.raises(errors.ArgumentError, match="nothing of lenet300 is prunable"):
        Sensitivity(Budget(density=0.5), 1.0)(start, nothing, KEY)


@pytest.mark.slow
def test_e04_has_a_row_an_arm():
    found = run_claim(e04.CLAIM, smoke=True)
    arms = ["dense", "iterative", "longer", "cut", "one_shot", "reinit", "l1", "l2"]
    assert [row["arm"] for row in found] == arms
    assert all(0 <= row["accuracy"] <= 1 for row in found)
    assert all(0.7 * row["kept"] < row["density"] <= row["kept"] + 1e-4 for row in found)
