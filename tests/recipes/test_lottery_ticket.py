"""The lottery ticket: counts of the rounds, rewinding bit for bit, controls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import data, errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Rewind, Train
from jprune.recipes.lottery_ticket import lottery_ticket
from jprune.stages.frame import fractions
from jprune.stages.tickets import PruneRound, after
from jprune.train.net import Net
from tests.nets import conv
from tests.toys import toy_task

SHORT = Train(1, 0.05, 64, max_steps=3)
KEY = jax.random.key(4)


def drawn(name, shape):
    task = train.task(zoo.build(name, shape=shape), data.load("digits"))
    return task, Pruned(task.init(jax.random.key(0)), None)


def own(fn, shapes):
    """A task around a function of arrays of these shapes and images [batch, 16, 16, 3]."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=s) / np.sqrt(np.prod(s[:-1])) for name, s in shapes.items()}
    start = {"params": jax.tree.map(jnp.asarray, params), "stats": {}}
    task = toy_task("lenet300")._replace(
        fn=lambda variables, x: fn(variables["params"], x),
        example=jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32),
        init=lambda key: start,
    )
    return task, Pruned(start, None)


@pytest.fixture(scope="module")
def digits():
    return drawn("lenet300", (8, 8, 1))


def kernels(tree):
    return {name: np.asarray(layer["kernel"]) for name, layer in tree["params"].items()}


def test_counts_are_the_papers():
    """Checks [9] P2: 20 % of both hidden layers and 10 % of the last one, 18 times."""
    paper = {1: 80.04, 2: 64.06, 3: 51.28, 4: 41.05, 7: 21.07, 9: 13.52, 12: 6.95, 15: 3.58}
    for rounds, percent in {**paper, 16: 2.87, 18: 1.85}.items():
        counts = [after(235200, 0.2, rounds), after(30000, 0.2, rounds), after(1000, 0.1, rounds)]
        assert round(100 * sum(counts) / 266200, 2) == percent
        if rounds in (1, 3):
            assert counts == {1: [188160, 24000, 900], 3: [120422, 15360, 729]}[rounds]


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_round_removes_the_same_fraction_of_what_is_left(digits, rounds):
    task, pruned = digits
    budget, before = Budget(density=0.3), None
    for left in range(rounds, 0, -1):
        pruned, (record,) = PruneRound(budget, left)(pruned, task, KEY)
        masks = kernels(pruned.masks)
        density = {name: mask.mean() for name, mask in masks.items()}
        number = rounds - left + 1
        # The last layer loses half the fraction: with few of 50,200 weights, about 0.3^(1/rounds).
        assert density["fc1"] == pytest.approx(density["fc2"], abs=1e-4)
        assert density["fc1"] == pytest.approx(0.3 ** (number / rounds), abs=0.01)
        p = 1 - density["fc1"] ** (1 / number)
        assert density["fc3"] == pytest.approx((1 - p / 2) ** number, abs=2e-3)
        if before is not None:
            assert all((masks[name] <= before[name]).all() for name in masks)
        before = masks
    assert record["metrics"]["density"] == pytest.approx(0.3, abs=1e-4)


def test_the_smallest_of_the_living_go(digits):
    """Checks [9] P3."""
    task, start = digits
    first, _ = PruneRound(Budget(density=0.5), 1)(start, task, KEY)
    moved = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim > 1 else leaf, start.variables)
    moved = first._replace(variables=apply_masks(moved, first.masks))
    second, _ = PruneRound(Budget(density=0.25), 1)(moved, task, KEY)
    for name, kernel in kernels(moved.variables).items():
        alive, kept = kernels(first.masks)[name], kernels(second.masks)[name]
        gone = alive & ~kept
        assert not (kept & ~alive).any()
        assert gone.any()
        assert np.abs(kernel[gone]).max() <= np.abs(kernel[kept]).min()


def test_all_layers_but_the_last_compete_where_the_scope_is_global(digits):
    task, start = digits
    pruned, _ = PruneRound(Budget(density=0.4), 1, together=True, output_rate=0.0)(start, task, KEY)
    masks, sizes = kernels(pruned.masks), kernels(start.variables)
    assert masks["fc3"].all()
    smallest_kept = min(np.abs(sizes[n][masks[n]]).min() for n in ("fc1", "fc2"))
    largest_gone = max(np.abs(sizes[n][~masks[n]]).max() for n in ("fc1", "fc2"))
    assert largest_gone <= smallest_kept
    assert sum(mask.sum() for mask in masks.values()) == pytest.approx(0.4 * 50200, abs=1)


def test_a_budget_in_macs_is_met_by_a_net_with_convolutions():
    task, start = drawn("resnet8", (8, 8, 1))
    pruned, (record,) = PruneRound(Budget(macs=0.3), 1)(start, task, KEY)
    assert record["metrics"]["macs"] == pytest.approx(0.3, abs=1e-3)
    recipe = lottery_ticket(Budget(macs=0.3), SHORT, rounds=2)
    pruned, _ = recipes.run(recipe, start, task, KEY)
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(KEY, (5, 8, 8, 1))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("budget", [Budget(macs=0.3), Budget(params=0.4), Budget(density=0.35)])
def test_competing_layers_are_priced_by_the_masks_that_they_keep(budget):
    """A weight of the first layer runs at sixteen times as many positions as one of the second."""

    def fn(variables, x):
        x = jax.nn.relu(conv(x, variables["first"]))
        x = jax.nn.relu(conv(x, variables["second"], stride=4))
        return x.mean((1, 2)) @ variables["out"]

    shapes = {"first": (3, 3, 3, 16), "second": (3, 3, 16, 32), "out": (32, 3)}
    task, start = own(fn, shapes)
    pruned, _ = PruneRound(budget, 1, together=True)(start, task, KEY)
    held = fractions(task, pruned.masks)[budget.kind]
    assert 0.99 * budget.value <= held <= budget.value + 1e-6


@pytest.mark.parametrize("together", [False, True])
def test_convolutions_lose_their_own_fraction(together):
    """By `groups.layers`, not by rank: the dense layers have kernels of four axes."""

    def fn(variables, x):
        x = jax.nn.relu(conv(x, variables["first"]))
        x = jax.nn.relu(conv(x, variables["second"], stride=4)).mean((1, 2))
        x = jax.nn.relu(jnp.einsum("ba,acde->bcde", x, variables["hidden"]))
        return jnp.einsum("bcde,cdef->bf", x, variables["out"])

    shapes = {
        "first": (3, 3, 3, 16),
        "second": (3, 3, 16, 32),
        "hidden": (32, 5, 4, 3),
        "out": (5, 4, 3, 7),
    }
    task, start = own(fn, shapes)
    prune = PruneRound(Budget(density=0.6), 1, together, output_rate=0.5, convolution_rate=0.5)
    pruned, _ = prune(start, task, KEY)
    left = {path: mask.size - mask.sum() for path, mask in Net(task).leaves(pruned.masks).items()}
    size = {path: mask.size for path, mask in Net(task).leaves(pruned.masks).items()}
    layers = Net(task).groups.layers
    convolutions = [path for path in size if layers[path].window]
    (last,) = [path for path in size if layers[path].last]
    hidden = [path for path in size if path not in (*convolutions, last)]
    assert (len(convolutions), len(hidden)) == (2, len(size) - 3)
    lost = lambda paths: sum(left[path] for path in paths) / sum(size[path] for path in paths)
    p = lost(hidden)
    assert p > 0.4
    assert lost(convolutions) == pytest.approx(p / 2, abs=1 / min(size.values()))
    assert lost([last]) == pytest.approx(p / 2, abs=1 / size[last])
    each = [left[path] / size[path] for path in convolutions]
    # Where they compete, the smaller weights of the wider one go first.
    assert (abs(each[0] - each[1]) > 0.05) == together


def test_the_authors_code_removes_one_more():
    """sorted[round(p n)] goes too: round(p n) + 1."""
    counts = [after(1000, p, rounds, more=1) for p, rounds in ((0.1, 1), (0.1, 2), (0.0, 3))]
    assert counts == [899, 808, 1000]
    task, start = drawn("lenet300", (8, 8, 1))
    # p / 2 of the last layer's 1000 weights is less than half a weight.
    prune = lambda more: PruneRound(Budget(density=0.9995), 1, one_more=more)(start, task, KEY)[0]
    lost = [int((~kernels(prune(more).masks)["fc3"]).sum()) for more in (False, True)]
    assert lost == [0, 1]


def test_survivors_go_back_bit_for_bit_and_the_optimizer_begins_anew(digits):
    """Checks [9] P1."""
    task, start = digits
    recipe = lottery_ticket(Budget(density=0.5), SHORT, rounds=2)
    pruned, seen = start, []
    for number, stage in enumerate(recipe):
        if isinstance(stage, Train):
            begun = stage.learner(pruned, task, KEY).init()
            seen.append((pruned, begun))
        pruned, _ = stage(pruned, task, jax.random.fold_in(KEY, number))
    assert len(seen) == 3
    for before, begun in seen[1:]:
        expected = apply_masks(start.variables, before.masks)
        jax.tree.map(np.testing.assert_array_equal, before.variables, expected)
        jax.tree.map(np.testing.assert_array_equal, begun.params, expected["params"])
        moments = jax.tree.leaves(begun.opt_state[1])
        assert moments
        assert not any(np.any(leaf) for leaf in moments)


def test_going_back_to_a_later_step(digits):
    """Two trainings of a schedule are one: both halves see their rates and their batches."""
    task, start = digits
    whole = Train(1, 0.05, 64, momentum=0.0, max_steps=6)
    halves = [dataclasses.replace(whole, stop=4), dataclasses.replace(whole, begin=4)]
    expected, _ = whole(start, task, KEY)
    early, _ = halves[0](start, task, KEY)
    late, _ = halves[1](early, task, KEY)
    jax.tree.map(np.testing.assert_array_equal, late.variables, expected.variables)

    recipe = lottery_ticket(Budget(density=0.5), whole, rounds=1, rewind_to=4)
    assert [stage.name for stage in recipe][:3] == ["early", "save", "train"]
    pruned, _ = recipes.run(recipe[:-2], start, task, KEY)
    back = apply_masks(pruned.saved["rewind"], pruned.masks)
    jax.tree.map(np.testing.assert_array_equal, pruned.variables, back)
    assert not np.array_equal(
        kernels(pruned.saved["rewind"])["fc1"], kernels(start.variables)["fc1"]
    )


def test_controls_keep_what_they_claim(digits):
    task, start = digits
    ended = {
        control: recipes.run(
            lottery_ticket(Budget(density=0.2), SHORT, rounds=1, control=control)[:-2],
            start, task, KEY,
        )[0]
        for control in ("ticket", "reinit", "random_mask")
    }  # fmt: skip
    ticket, reinit, random = (kernels(ended[name].masks) for name in ended)
    for name, mask in ticket.items():
        np.testing.assert_array_equal(reinit[name], mask)
        assert random[name].sum() == mask.sum()
        assert not np.array_equal(random[name], mask)
        initial = kernels(start.variables)[name]
        values = {control: kernels(pruned.variables)[name] for control, pruned in ended.items()}
        np.testing.assert_array_equal(values["ticket"], np.where(mask, initial, 0))
        np.testing.assert_array_equal(values["random_mask"], np.where(random[name], initial, 0))
        assert not np.array_equal(values["reinit"], values["ticket"])
        assert not values["reinit"][~mask].any()


def test_what_cannot_be_is_refused(digits):
    task, start = digits
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        lottery_ticket(Budget(density=0.5), None)
    with pytest.raises(errors.ArgumentError, match="control one of ticket, reinit, random_mask"):
        lottery_ticket(Budget(density=0.5), SHORT, control="shuffle")
    with pytest.raises(errors.ArgumentError, match="rounds is 1 or more"):
        lottery_ticket(Budget(density=0.5), SHORT, rounds=0)
    with pytest.raises(errors.ArgumentError, match="write 0 <= begin < stop <= 3"):
        dataclasses.replace(SHORT, begin=3).learner(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match=r"Put Save\('rewind'\) before it"):
        Rewind("rewind")(start, task, KEY)
    with pytest.raises(errors.BudgetError, match="one weight in every layer"):
        PruneRound(Budget(density=1e-6), 1)(start, task, KEY)
