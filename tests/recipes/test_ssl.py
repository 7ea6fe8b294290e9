"""SSL [13]: penalties, the proximal step, coupled groups, zeros that are the pruning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import blocks, errors, forms, recipes
from jprune.base import Budget, Pruned
from jprune.blocks import Block, Blocks, Member
from jprune.recipes import Train
from jprune.sparsify import group_lasso, group_penalty
from jprune.sparsify.group_lasso import Term, cleared, shrunk
from jprune.stages.group_lasso import Penalty, ReadOff, Shrink, scores_of
from jprune.train.net import Net
from tests.blocks.test_grains import groups_of
from tests.nets import FIRST_CUT, draw
from tests.toys import drawn, toy_task

NETS = {net.name: net for net in FIRST_CUT}
WHOLE = {"h": 9, "w": 9, "outputs": 9}
KINDS = {
    "filter": blocks.rows,
    "channel": lambda groups: blocks.block(groups, **WHOLE),
    "shape": blocks.columns,
    "layer": lambda groups: blocks.block(groups, inputs=9, **WHOLE),
}
KEY = jax.random.key(3)


def traced(name):
    net = NETS[name]
    variables, (x,) = draw(net)
    return net.fn, variables, x, jprune.trace(net.fn, variables, x)


def one_kernel(shape, kind, path="w"):
    return KINDS[kind](groups_of({path: shape}))


def rows_of(size, path="w", **settings):
    """The rows of a matrix, as groups of one block."""
    name = settings.get("name", path)
    block = Block(size, (Member(path, (1, None)),))
    return Blocks(settings.get("kind", "row"), settings.get("per", "weight"), {name: block})


@pytest.mark.parametrize(("values", "expected"), [
    (np.ones(24), (6.928203, 8.485281, 16.970563, 4.898979)),
    (np.arange(1.0, 25.0), (90.687122, 118.701350, 236.794173, 70.0)),
])  # fmt: skip
def test_penalties_of_the_four_families(values, expected):
    kernel = jnp.asarray(values.reshape(2, 3, 2, 2).transpose(2, 3, 1, 0))  # OIHW to HWIO
    for kind, number in zip(KINDS, expected):
        groups = one_kernel(kernel.shape, kind)
        assert group_penalty(groups, 1.0, {"w": kernel}) == pytest.approx(number)


def test_the_gradient_is_lambda_times_the_direction_and_0_at_0():
    loss = lambda w: group_penalty(rows_of(2), 0.1, {"w": w})
    found = jax.jit(jax.grad(loss))(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.06, 0.08], [0, 0]], atol=1e-8)


def test_zero_filters_and_columns_leave_the_matrix(float64):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 3, 4, 5))
    kernel[..., [1, 3]] = 0
    for tap in [(0, 1, 2), (1, 2, 0), (1, 0, 3)]:
        kernel[tap] = 0
    kernel, x = jnp.asarray(kernel), jnp.asarray(rng.normal(size=(2, 7, 6, 4)))
    alive = {
        name: blocks.alive(one_kernel(kernel.shape, name), {"w": kernel})["w"]
        for name in ("filter", "shape")
    }
    mask = alive["shape"].reshape(2, 3, 4)[..., None] & alive["filter"]
    held = forms.leaf_of(kernel, mask)
    assert isinstance(held, forms.Thin)
    assert held.weights.shape == (24 - 3, 3)
    fn = lambda v, x: jax.lax.conv_general_dilated(
        x, v["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    groups = jprune.trace(fn, {"w": kernel}, x)
    thin = jprune.slim(fn, groups, {})({"w": held}, x)
    np.testing.assert_allclose(thin, fn({"w": kernel}, x), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_the_step_solves_the_proximal_problem(seed, strength):
    """v - w is t lambda times the direction of w, or at most so long where w is 0."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(3, 4)) * rng.uniform(0, 2, (3, 1))
    with jax.enable_x64(True):
        term = Term(rows_of(3), {"w": strength})
        after = np.asarray(shrunk([term], {"w": jnp.asarray(before)}, 0.7)["w"])
    for v, w in zip(before, after):
        if np.linalg.norm(v) <= 0.7 * strength:
            assert not w.any()
        else:
            np.testing.assert_allclose(w + 0.7 * strength * w / np.linalg.norm(w), v, atol=1e-12)


def test_nested_families_are_exact_small_groups_first(float64):
    """Columns inside channels: no point near the result has a smaller objective."""
    rng = np.random.default_rng(1)
    before = jnp.asarray(rng.normal(size=(2, 3, 4, 5)))
    small = Term(one_kernel(before.shape, "shape"), {"w": 0.6})
    large = Term(one_kernel(before.shape, "channel"), {"w": 1.5})
    objective = jax.jit(
        lambda w: (
            0.5 * jnp.sum((w - before) ** 2)
            + group_penalty([small.blocks, large.blocks], {"column": 0.6, "block": 1.5}, {"w": w})
        )
    )
    right = shrunk([small, large], {"w": before}, 1.0)["w"]
    wrong = shrunk([large, small], {"w": before}, 1.0)["w"]
    assert objective(right) < objective(wrong) - 1e-3
    for size in (1e-1, 1e-3):
        for _ in range(20):
            near = right + size * jnp.asarray(rng.normal(size=before.shape)) * (right != 0)
            assert objective(near) >= objective(right)


def test_filters_and_channels_are_those_of_coupled_units():
    _, variables, _, groups = traced("resnet_identity")
    leaves = jprune.units.leaves_by_path(groups, variables)
    axes = lambda path, axis: (np.asarray(leaves[path], float) ** 2).sum(
        tuple(a for a in range(4) if a != axis)
    )
    filters = blocks.squares(blocks.filters(groups, scales=False), leaves)
    expected = axes("stem", 3) + axes("conv2a", 3) + axes("conv2b", 3)
    np.testing.assert_allclose(filters["stem"], expected, rtol=1e-5)
    channels = blocks.squares(blocks.channels(groups), leaves)
    head = (np.asarray(variables["head"]["kernel"], float) ** 2).sum(1)
    expected = axes("conv1a", 2) + axes("conv1b", 2) + head
    np.testing.assert_allclose(channels["stem"], expected, rtol=1e-5)
    np.testing.assert_allclose(channels["conv1b"], axes("conv2b", 2), rtol=1e-5)


def test_a_group_of_factor_0_takes_its_followers_along_and_nothing_else():
    _, variables, _, groups = traced("resnet_padded")
    leaves = jprune.units.leaves_by_path(groups, variables)
    filters = blocks.filters(groups, ["conv2"], scales=False)
    after = blocks.scale(filters, leaves, {"conv2": jnp.array([0.0, 1.0, 0.5])})
    # Of the eight channels behind the join, 0, 6 and 7 are the group's, see tests/nets.py.
    ratio = np.asarray(after["conv2"] / leaves["conv2"])[0, 0, 0]
    np.testing.assert_allclose(ratio, [0, 1, 1, 1, 1, 1, 1, 0.5])
    for path in ("norm2/scale", "norm2/shift"):
        np.testing.assert_array_equal(after[path][1:], leaves[path][1:])
        assert after[path][0] == 0
    untouched = set(leaves) - {"conv2", "norm2/scale", "norm2/shift"}
    assert all(after[path] is leaves[path] for path in untouched)


PULLED = [3.0, 4.0, 0.3, 0.4, -1.0, 1.0]
REST = [2.4, 3.2, 0.0, 0.0, -0.292893, 0.292893]
PAIRS = Blocks("pair", "weight", {"w": Block(3, (Member("w", (2,)),))})


def minimised(how, momentum=0.0, steps=400, threshold=0.0):
    """0.5 ||w - z||^2 + sum of norms, by gradient steps and steps against the penalty."""
    rate = 0.2 * (1 - momentum)
    tx = optax.chain(
        optax.sgd(rate, momentum, nesterov=momentum > 0),
        group_lasso(PAIRS, 1.0, rate / (1 - momentum), how=how, threshold=threshold),
    )
    params = {"w": jnp.ones(6)}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update({"w": params["w"] - jnp.array(PULLED)}, state, params)
        return (optax.apply_updates(params, updates), state), params["w"]

    (params, _), path = jax.lax.scan(step, (params, tx.init(params)), None, steps)
    return np.asarray(params["w"]), np.asarray(path)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_stands_still_is_the_minimum_and_only_the_proximal_step_reaches_0(momentum, float64):
    found, _ = minimised("prox", momentum)
    np.testing.assert_allclose(found, REST, atol=1e-6)
    assert (found == 0).tolist() == [False, False, True, True, False, False]
    found, path = minimised("subgradient", momentum)
    assert np.abs(path[1:]).min() > 0  # it goes past 0 and back


def test_weights_below_the_threshold_are_cleared_and_others_are_not():
    filters = blocks.filters(traced("vgg")[3], ["conv1"], scales=False)
    leaves = {"conv1": jnp.full((3, 3, 3, 5), 2e-4).at[..., 1].set(5e-5).at[0, 0, 0, 2].set(0),
              "norm1/shift": jnp.ones(5), "conv2": jnp.full((3, 3, 5, 7), 5e-5)}  # fmt: skip
    after = cleared([Term(filters, {"conv1": 1.0})], leaves, 1e-4)
    assert not after["conv1"][..., 1].any()
    assert after["conv1"][..., 3].all()
    assert after["norm1/shift"].tolist() == [1, 0, 1, 1, 1]
    assert after["conv2"] is leaves["conv2"]


def test_the_last_groups_of_a_block_stay():
    term = Term(PAIRS, {"w": 100.0}, least={"w": 2})
    after = np.asarray(shrunk([term], {"w": jnp.array(PULLED)}, 1.0)["w"])
    np.testing.assert_allclose(after, [3, 4, 0, 0, -1, 1])


def test_the_last_units_are_the_same_by_filter_and_by_channel():
    """By filters 0 and 1 are the largest, by channels 2 and 1: unit 1 has the largest smaller one.

    Zeros stay: unit 3 has a filter of 0.
    """
    leaves = {"a": jnp.array([[5.0], [4], [3], [0]]), "b": jnp.array([[1.0], [4], [5], [9]])}

    def term(path, per):
        rows = rows_of(4, path, kind=path, per=per, name="unit")
        return Term(rows, {"unit": 100.0}, {"unit": 2})

    after = shrunk([term(path, "unit") for path in "ab"], leaves, 1.0)
    assert after["a"][:, 0].tolist() == [0, 4, 3, 0]
    assert after["b"][:, 0].tolist() == [0, 4, 5, 0]
    # Groups of other kinds may have the same name.
    after = shrunk([term(path, "weight") for path in "ab"], leaves, 1.0)
    assert after["a"][:, 0].tolist() == [5, 4, 0, 0]
    assert after["b"][:, 0].tolist() == [0, 0, 5, 9]


def test_floors_hold_under_a_penalty_that_takes_everything(net):
    task, start = net
    budget = Budget(macs=1.0, min_units=3, floors={"params/conv2/kernel": 5})
    penalty = Penalty(("filter", "channel"), 30.0)
    stage = Shrink(Train(10, 0.05, 16, max_steps=6), budget, penalty)
    pruned, _ = ReadOff(budget, penalty)(stage(start, task, KEY)[0], task, KEY)
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == {
        "params/conv1/kernel": 3, "params/conv2/kernel": 5
    }  # fmt: skip


def test_a_zero_channel_comes_back_and_a_zero_filter_does_not(net):
    task, start = net
    params = start.variables["params"]
    for kind, axis, name in (("channel", 2, "conv3"), ("filter", 3, "conv2")):
        kernel = params[name]["kernel"]
        gone = {**params, name: {"kernel": kernel.at[(slice(None),) * axis + (0,)].set(0)}}
        begun = start._replace(variables={**start.variables, "params": gone})
        penalty = Penalty((kind,), 1e-9, ("params/conv2/kernel",))
        after = trained((task, begun), penalty)
        found = np.asarray(after.variables["params"][name]["kernel"])
        assert np.take(found, 0, axis).any() == (kind == "channel")


def test_the_correction_compares_what_is_left_of_the_dense_net():
    both = Blocks("filter", "unit", {name: Block(2, ()) for name in ("wide", "narrow")})
    terms = {"filter": Term(both, {"wide": 0.1, "narrow": 0.1}),
             "channel": Term(both.where(("wide",)), {"wide": 0.1})}  # fmt: skip
    norms = {"filter": {"wide": np.array([8.0, 4]), "narrow": np.array([0.9, 0])},
             "channel": {"wide": np.array([1.0, 3])}}  # fmt: skip
    dense = {"filter": {"wide": np.array([10.0, 10]), "narrow": np.array([1.0, 1])},
             "channel": {"wide": np.array([4.0, 4])}}  # fmt: skip
    (units,) = scores_of(norms, dense, terms).values()
    np.testing.assert_allclose(units["wide"], [0.25, 0.4])  # a unit goes when either does
    assert units["narrow"].tolist() == [0.9, -np.inf]
    free = terms | {"filter": Term(both, {"wide": 0.0, "narrow": 0.1})}
    (units,) = scores_of({"filter": norms["filter"]}, dense, free).values()
    assert list(units) == ["narrow"]  # a strength of 0 leaves a block alone
    none = {"filter": Term(both, dict.fromkeys(both, 0.0))}
    (units,) = scores_of({"filter": norms["filter"]}, dense, none).values()
    assert set(units) == {"wide", "narrow"}


def test_kinds_take_the_names_that_they_know(net):
    task, _ = net
    (branch,) = Net(task).groups.branches
    mixed = Penalty(("filter", "depth"), 0.1, ("params/conv2/kernel", branch.name))
    terms = mixed.terms(task, Budget(macs=0.5))
    assert {kind: list(term.blocks) for kind, term in terms.items()} == {
        "filter": ["params/conv2/kernel"], "depth": [branch.name]
    }  # fmt: skip
    with pytest.raises(errors.StructureError, match="branches"):
        Penalty(("filter", "depth"), 0.1, ("params/conv2/kernel",)).terms(task, Budget(macs=0.5))
    with pytest.raises(errors.StructureError, match="no group 'conv7'"):
        Penalty(("filter", "depth"), 0.1, ("conv7", branch.name)).terms(task, Budget(macs=0.5))


@pytest.fixture(scope="module")
def net():
    task = toy_task()
    return task, Pruned(drawn(task), None)


def trained(net, penalty, steps=12, rate=0.05):
    task, start = net
    stage = Shrink(Train(10, rate, 16, max_steps=steps), Budget(macs=1.0), penalty)
    return stage(start, task, KEY)[0]


def outputs(task, variables):
    return np.asarray(task.fn(variables, next(task.data.batches("test", 12))["image"]))


def test_zero_units_of_a_residual_stream_are_the_pruning(net):
    """Under the proximal step they are exactly 0, scale and shift with them; the cut does nothing.

    Under the subgradient no group is 0.
    """
    task, _ = net
    after = trained(net, Penalty(("filter",), 0.76))
    pruned, (record,) = ReadOff(Budget(macs=1.0), Penalty(("filter",)))(after, task, KEY)
    stream = pruned.masks["params/conv1/kernel"]
    assert 0 < stream.sum() < stream.size
    params = after.variables["params"]
    for conv, norm in (("conv1", "norm1"), ("conv3", "norm3")):
        assert not np.asarray(params[conv]["kernel"])[..., ~stream].any()
        assert not np.asarray(params[norm]["bias"])[~stream].any()
    assert record["metrics"]["reached"] == record["metrics"]["macs"] < 1
    dense, masked = outputs(task, after.variables), outputs(task, pruned.variables)
    np.testing.assert_array_equal(masked, dense)
    small_fn, small = Net(task).slim(pruned)
    image = next(task.data.batches("test", 12))["image"]
    np.testing.assert_allclose(small_fn(small, image), dense, atol=1e-5 * np.abs(dense).max())
    other = trained(net, Penalty(("filter",), 0.76, how="subgradient"))
    norms = blocks.norms(blocks.filters(Net(task).groups, scales=False), other.variables)
    assert all((norm > 0).all() for norm in norms.values())


def test_a_whole_branch_vanishes(net):
    task, _ = net
    (branch,) = Net(task).groups.branches
    after = trained(net, Penalty(("depth",), 3.0))
    pruned, (record,) = ReadOff(Budget(macs=1.0), Penalty(("depth",)))(after, task, KEY)
    assert not pruned.masks[branch.name].any()
    assert all(mask.all() for name, mask in pruned.masks.items() if name != branch.name)
    dense = outputs(task, after.variables)
    small_fn, small = Net(task).slim(pruned)
    assert small["params"]["conv2"]["kernel"] is None
    assert record["metrics"]["macs"] < 0.5
    image = next(task.data.batches("test", 12))["image"]
    np.testing.assert_allclose(small_fn(small, image), dense, atol=1e-5 * np.abs(dense).max())


def test_columns_become_masks_of_weights(net):
    task, _ = net
    after = trained(net, Penalty(("shape",), 0.3), steps=6)
    pruned, (record,) = ReadOff(Budget(macs=1.0), Penalty(("shape",)))(after, task, KEY)
    mask = np.asarray(pruned.masks["params"]["conv2"]["kernel"])
    kernel = np.asarray(after.variables["params"]["conv2"]["kernel"])
    np.testing.assert_array_equal(mask.all(-1), mask.any(-1))
    np.testing.assert_array_equal(mask.any(-1), kernel.any(-1))
    assert 0 < mask.mean() < 1
    assert 0 < record["metrics"]["macs"] < 1


def test_a_group_inside_a_vanished_branch_goes_with_it(net):
    task, start = net
    (branch,) = Net(task).groups.branches
    params = dict(start.variables["params"])
    params["conv2"] = {"kernel": jnp.zeros_like(params["conv2"]["kernel"])}
    empty = start._replace(variables={**start.variables, "params": params})
    read = ReadOff(Budget(macs=1.0), Penalty(("filter",), scales=False))
    pruned, _ = read(empty, task, KEY)
    assert not pruned.masks[branch.name].any()
    Net(task).slim(pruned)
    params["conv1"] = {"kernel": jnp.zeros_like(params["conv1"]["kernel"])}
    params["conv3"] = {"kernel": jnp.zeros_like(params["conv3"]["kernel"])}
    empty = start._replace(variables={**start.variables, "params": params})
    with pytest.raises(errors.BudgetError, match="no unit of params/conv1/kernel is left"):
        read(empty, task, KEY)


@pytest.mark.parametrize(("families", "part"), [
    (("filter", "channel"), 0.5), (("filter", "shape"), 0.5), ("depth", 0.4),
    (("filter", "depth"), 0.5),
])  # fmt: skip
def test_a_budget_is_met_by_the_smallest_norms(net, families, part):
    task, start = net
    budget = Budget(macs=part)
    recipe = recipes.find("ssl")(budget, None, Train(1, 0.01, 16), families=families)
    read = next(stage for stage in recipe if isinstance(stage, ReadOff))
    pruned, (record,) = read(start, task, KEY)
    assert record["metrics"]["reached"] == 1
    assert record["metrics"]["zeros"] == 0
    assert (0 if families == "depth" else 0.8 * part) < record["metrics"]["macs"] <= part
    Net(task).slim(pruned)


def test_a_budget_that_the_penalty_cannot_reach_says_what_was_reached(net):
    task, start = net
    with pytest.raises(errors.BudgetError) as caught:
        ReadOff(Budget(macs=0.5), Penalty(("filter",)), correct=False)(start, task, KEY)
    assert "the penalty reached macs=1.0000" in str(caught.value)
    assert "macs=0.5 was asked for: 0 of 20 groups are 0" in str(caught.value)
    assert "larger strength" in str(caught.value)
    with pytest.raises(errors.BudgetError, match=r"without all 1 branches 0.* of the dense net"):
        ReadOff(Budget(macs=0.01), Penalty(("depth",)))(start, task, KEY)


def test_a_penalty_on_a_frozen_group_is_refused(net):
    task, _ = net
    on_frozen = Penalty(("filter",), names=("params/fc/kernel",))
    with pytest.raises(errors.FrozenError) as caught:
        Shrink(Train(1, 0.1), Budget(macs=0.5), on_frozen).check(task)
    assert "'params/fc/kernel' is frozen: axis 1" in str(caught.value)
    assert "The groups are params/conv1/kernel" in str(caught.value)
    with pytest.raises(errors.StructureError, match="no group 'params/conv7/kernel'; did you mean"):
        Penalty(("filter",), names=("params/conv7/kernel",)).terms(task, Budget(macs=0.5))
    with pytest.raises(errors.StructureError, match="the net has no branches"):
        blocks.branches(traced("vgg")[3])
    whole = dict.fromkeys(Net(task).groups.names, 99)
    with pytest.raises(errors.StructureError, match="the net has no filter to make sparse"):
        Penalty(("filter",)).terms(task, Budget(macs=0.5, floors=whole))


@pytest.mark.parametrize(("options", "message"), [
    ({"families": "filters"}, "families='filters'; write one of shape, filter"),
    ({"families": ("depth", "shape")}, "hold no branches"),
    ({"how": "newton"}, "how='newton'"),
    ({"threshold": -1.0}, "threshold of 0 or more"),
    ({"stop": 1.0}, r"stop=1.0\); it is in \(0, 1\)"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(errors.ArgumentError, match=message):
        recipes.find("ssl")(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_strengths_are_one_a_family_or_one_a_block(net):
    task, _ = net
    terms = Penalty(("channel", "filter"), ((0.1, 0.2), (0.3,))).terms(task, Budget(macs=0.5))
    assert list(terms) == ["filter", "channel"]
    assert list(terms["channel"].strengths.values()) == [0.1, 0.2]
    assert set(terms["filter"].strengths.values()) == {0.3}
    named = Penalty(("filter", "channel"), {"filter": 0.3, "channel": (0.1, 0.2)})
    assert {k: t.strengths for k, t in named.terms(task, Budget(macs=0.5)).items()} == {
        kind: term.strengths for kind, term in terms.items()
    }
    for numbers, message in (
        (((0.1,), (0.2,), (0.3,)), "one for each of"),
        ((1.0, 2.0, 3.0), "or 2 .*with ':'"),
        ({"filter": 0.1}, "one for each of filter, channel"),
        (-1.0, "each is 0 or more"),
    ):
        with pytest.raises(errors.ArgumentError, match=message):
            Penalty(("filter", "channel"), numbers).terms(task, Budget(macs=0.5))


def test_the_recipe_with_the_penalty_it_was_given(net):
    task, start = net
    short = Train(2, 0.02, 16, max_steps=2, name="finetune")
    recipe = recipes.find("ssl")(Budget(macs=0.5), None, short, strength=0.01)
    done, records = recipes.run(recipe, start, task, KEY)
    (seen,) = (r["metrics"] for r in records if r["stage"] == "prune")
    assert seen["macs"] <= 0.5
    assert seen["reached"] == 1
    for leaf, mask in zip(jax.tree.leaves(done.variables),
                          jax.tree.leaves(Net(task).weight_masks(done.masks))):  # fmt: skip
        assert not np.asarray(leaf)[~np.asarray(mask)].any()
    assert recipe[2].train.epochs == pytest.approx(1.2)
