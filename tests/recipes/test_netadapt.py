"""NetAdapt: numbers of checks.md B18, proposals against brute force, a layer that does nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import allocate, errors, recipes
from jprune.base import Budget, Cost
from jprune.masks import apply_masks
from jprune.recipes.netadapt import netadapt
from jprune.search.narrowing import narrowing, rounds_to
from jprune.stages import NarrowByProposals, Train, Trial
from jprune.train.net import Net
from tests.recipes.test_lcp import trap
from tests.toys import equal

KEY = jax.random.key(3)
STILL = Trial(images=10, recalibrate=0, batch_size=16, of="loss")


def rounds_of(searcher, score):
    """(proposals, winner) of every round, until it ends."""
    state = searcher.init(KEY)
    while len(candidates := searcher.ask(state)):
        state = searcher.tell(state, candidates, np.array([score(each) for each in candidates]))
        yield candidates, np.asarray(state.widths), state


def test_targets_fall_less_and_less_below_what_was_measured():
    """Checks B18: 0.025 and 0.96; one group, of which a unit is next to nothing."""
    price = lambda widths: widths[0] / 2e5
    searcher = narrowing([range(1, 200_001)], price, 0.38)
    rounds = rounds_of(searcher, lambda widths: 0.0)
    found = [price(next(rounds)[1]) for _ in range(5)]
    np.testing.assert_allclose(found, [0.975, 0.951, 0.92796, 0.905842, 0.884608], atol=2.5e-5)
    # They end at 1 - 0.025 / (1 - 0.96) = 0.375, and after 10 rounds at 0.79.
    assert rounds_to(1 - 0.3751, 0.025, 0.96) > 200
    with pytest.raises(errors.BudgetError, match=r"take less than 0.6250 in all, and 0.6250"):
        rounds_to(1 - 0.375, 0.025, 0.96)
    assert rounds_to(1 - 0.79, 0.025, 0.96) == 11
    assert rounds_to(1 - 0.7906, 0.025, 0.96) == 10


@pytest.mark.parametrize("seed", range(4))
def test_proposals_are_the_fewest_units_that_meet_the_target(seed):
    """Against a loop over all widths; the goal is met in as many rounds as planned."""
    rng = np.random.default_rng(seed)
    menu = [sorted(rng.choice(np.arange(1, 30), 8, replace=False).tolist()) for _ in range(4)]
    weights = rng.uniform(0.5, 2, 4)
    whole = np.array([widths[-1] for widths in menu])
    total = lambda widths: float(weights @ widths + 0.1 * (widths[:-1] * widths[1:]).sum())
    price = lambda widths: total(np.asarray(widths)) / total(whole)
    goal, step, decay = 0.45, 0.08, 0.97
    searcher = narrowing(menu, price, goal, step, decay)
    widths, met, count = whole, 0, 0
    # The score likes some groups wide, and says nothing of the others.
    liked = np.array([1.0, 0.0, 1.0, 0.0])
    for candidates, winner, state in rounds_of(searcher, lambda each: float(liked @ each)):
        target = max(goal, price(widths) - step * decay**met)
        expected, floors = [], []
        for group in range(4):
            rows = [np.where(np.arange(4) == group, w, widths) for w in menu[group]]
            rows = [row for row in rows if row[group] < widths[group]]
            fits = [row for row in rows if price(row) <= target]
            expected += [max(fits, key=lambda row: row[group])] if fits else []
            floors += [min(rows, key=lambda row: row[group])] if rows else []
        np.testing.assert_array_equal(candidates, expected or floors)
        near = [each for each in candidates if price(each) >= goal - 0.02]
        best = max(near or candidates, key=lambda each: (liked @ each, -price(each)))
        np.testing.assert_array_equal(winner, best)
        met += price(winner) <= target
        assert int(state.met) == met
        widths, count = winner, count + 1
    assert price(widths) <= goal
    assert count <= rounds_to(1 - goal, step, decay) + len(menu)


def test_a_ratio_weighs_what_is_lost_against_what_is_saved():
    price = lambda widths: (widths[0] + 4 * widths[1]) / 50
    menu = [range(1, 11), range(0, 11, 5)]
    score = {(5, 10): 0.9, (10, 5): 0.8}
    widths = []
    for level in (None, 1.0):
        searcher = narrowing(menu, price, 0.5, step=0.1, decay=1.0, level=level)
        rounds = rounds_of(searcher, lambda each: score.get(tuple(each.tolist()), 0.0))
        candidates, winner, _ = next(rounds)
        assert candidates.tolist() == [[5, 10], [10, 5]]
        widths.append(winner.tolist())
    # 0.1 lost for 0.1 saved, or 0.2 for 0.4.
    assert widths == [[5, 10], [10, 5]]


def test_the_resource_may_be_a_table_of_latencies():
    """A cost model that measures latency in tiles of 8 channels: proposals go to whole tiles."""
    sizes = {"one": 32, "two": 64}
    table = {name: 1.0 + np.ceil(np.arange(size + 1) / 8) for name, size in sizes.items()}

    def model(masks):
        time = sum(table[name][int(np.sum(mask))] for name, mask in masks.items())
        return Cost(params=0, macs=0, bytes=0, by_group={}, latency=time)
        return Cost(params=0.0, macs=0.0, bytes=0.0, by_group={}, latency=time)

    ones = {name: np.ones(size, bool) for name, size in sizes.items()}
    masked = lambda widths: {n: np.arange(sizes[n]) < w for n, w in zip(sizes, widths)}
    price_of = allocate.price_of(ones, Budget(latency=0.6), model)
    searcher = narrowing(
        [range(1, size + 1) for size in sizes.values()], lambda w: price_of(masked(w)), 0.6
    )
    rounds = [*rounds_of(searcher, lambda widths: float(widths[0]))]
    assert all((candidates % 8 == 0).all() for candidates, _, _ in rounds)
    last = rounds[-1][1]
    assert price_of(masked(last)) <= 0.6
    assert last.tolist() == [32, 16]


def tiles_of_4(term):
    """A device that computes four channels in the time of one; in ms."""
    tiles = lambda channels: 4 * jnp.ceil(channels / 4)
    return 1e-6 * term.positions * tiles(term.inputs) * tiles(term.outputs)


@functools.cache
def useless():
    """A net whose inner group is multiplied by 0 before the residual sum.

    The loss is the distance to its outputs, so that nothing else can go for nothing.
    """
    task, pruned = trap()
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "norm3" in str(path) and "scale" in str(path) else leaf,
        pruned.variables,
    )
    loss = lambda out, batch: ((out - task.fn(variables, batch["image"])) ** 2).mean(-1)
    return task._replace(loss=loss, latency=tiles_of_4), pruned._replace(variables=variables)


@pytest.mark.parametrize(
    ("kind", "goal"), [("macs", 0.525), ("params", 0.54), ("density", 0.6), ("latency", 0.72)]
)
def test_a_layer_that_does_nothing_shrinks_first(kind, goal):
    """Round after round, at no loss, and by no more than the budget asks for."""
    task, pruned = useless()
    outer, inner = Net(task).groups.names
    stage = NarrowByProposals(Budget(**{kind: goal}), STILL, step=0.1, decay=1.0)
    stage.check(task)
    done, (record,) = stage(pruned, task, KEY)
    kept = {name: int(mask.sum()) for name, mask in done.masks.items()}
    assert kept[outer] == 8
    assert kept[inner] < 12
    # One unit more would be too many.
    wider = {outer: np.ones(8, bool), inner: np.arange(12) <= kept[inner]}
    left, over = (
        allocate.fraction_kept(Net(task).groups, masks, stage.budget, Net(task).cost)
        for masks in (done.masks, wider)
    )
    assert goal - 0.02 < left <= goal < over
    score = STILL.scorer(task, KEY)
    whole = {outer: np.ones(8, bool), inner: np.ones(12, bool)}
    before, after = (score(pruned.variables, [masks])[0] for masks in (whole, done.masks))
    assert max(abs(before), abs(after), abs(record["metrics"]["best"])) < 1e-12


def short(steps=2):
    return Train(1.0, 1e-2, 16, schedule="constant", max_steps=steps, name="proposal")


def test_the_winner_goes_on_with_its_weights_and_a_stopped_search_goes_on():
    """One round by hand: the largest units stay, both proposals train on the same batches."""
    task, pruned = trap()
    outer, inner = Net(task).groups.names
    trial = Trial(10, 1, 16, of="loss", train=short())
    stage = NarrowByProposals(Budget(macs=0.8), trial, step=0.2)
    learner = stage.learner(pruned, task, KEY)
    assert learner.epoch == 2
    states = [learner.init()]
    for _ in range(2):
        assert not learner.ends(0, states[0])
        states.append(learner.step(states[-1], {})[0])
    assert learner.ends(2, states[-1])
    # From the middle of the round, as arrays of NumPy.
    again, _ = learner.step(jax.tree.map(np.asarray, states[1]), {})
    assert equal(again, states[-1])
    done = learner.finish(states[-1])
    score, results = trial.scorer(task, KEY), {}
    for group in (outer, inner):
        norms = np.sqrt(sum(
            np.square(np.asarray(pruned.variables["params"][name]["kernel"], float)).sum((0, 1, 2))
            for name in (("conv1", "conv3") if group == outer else ("conv2",))
        ))  # fmt: skip
        for count in range(len(norms) - 1, 0, -1):
            masks = {outer: np.ones(8, bool), inner: np.ones(12, bool)}
            masks[group] = norms >= np.sort(norms)[-count]
            if allocate.fraction_kept(
                Net(task).groups, masks, stage.budget, Net(task).cost
            ) <= 0.8:  # fmt: skip
                break
        variables = trial.trained(pruned, masks, task, jax.random.fold_in(KEY, 0))
        results[score(variables, [masks])[0]] = (masks, variables)
    masks, variables = results[max(results)]
    assert equal(done.masks, masks)
    assert equal(done.variables["params"], variables["params"])
    kernels = apply_masks(done.variables, Net(task).weight_masks(masks))
    assert equal(kernels["params"], done.variables["params"])


def test_a_net_without_finite_scores_is_told():
    task, pruned = trap()
    stage = NarrowByProposals(Budget(macs=0.8), STILL, step=0.2)
    broken = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * np.nan if "fc" in str(path) else leaf, pruned.variables
    )
    with pytest.raises(errors.DivergenceError, match="no proposal of the round"):
        stage(pruned._replace(variables=broken), task, KEY)


def test_masks_of_before_and_multiples_hold():
    task, pruned = useless()
    outer, inner = Net(task).groups.names
    masks = {outer: np.arange(8) != 3, inner: np.arange(12) % 4 != 1}
    begun = pruned._replace(
        masks=masks, variables=apply_masks(pruned.variables, Net(task).weight_masks(masks))
    )
    budget = Budget(macs=0.4, multiple_of=4)
    done, (record,) = NarrowByProposals(budget, STILL, step=0.2, decay=1.0)(begun, task, KEY)
    assert record["metrics"]["macs"] <= 0.4
    assert all(not done.masks[name][~mask].any() for name, mask in masks.items())
    # What is not narrowed stays as it was, 7 and 9 units; what is has a multiple of 4.
    widths = int(done.masks[outer].sum()), int(done.masks[inner].sum())
    assert widths in {(4, 4), (4, 8), (4, 9), (7, 4), (7, 8)}


def test_steps_that_end_above_the_budget_are_larger_or_refused():
    first = lambda budget, **settings: NarrowByProposals(Budget(macs=budget), **settings)
    assert first(0.5).first_step() == 0.025
    assert first(0.5).rounds(1.0) == 40
    step = first(0.25).first_step()
    np.testing.assert_allclose(step, 0.75 * 0.04 / (1 - 0.96**40), rtol=1e-12)
    assert first(0.25).rounds(1.0) == 40
    with pytest.raises(errors.BudgetError, match="Write a larger step or decay"):
        netadapt(Budget(macs=0.25), None, Train(1, 0.1), step=0.025)


def test_short_training_is_the_codes_or_as_short_as_fine_tuning():
    of = lambda recipe: recipe[2].trial.train
    assert of(netadapt(Budget(macs=0.5), None, Train(4, 0.1))).max_steps == 10
    proposal = of(netadapt(Budget(macs=0.5), None, Train(4, 0.1, max_steps=3, warmup=0.1,
                                                         schedule="cosine")))  # fmt: skip
    assert (proposal.max_steps, proposal.learning_rate, proposal.schedule) == (3, 1e-3, "constant")
    assert of(netadapt(Budget(macs=0.5), None, Train(4, 0.1, max_steps=3), tau=20)).max_steps == 20
    assert of(netadapt(Budget(macs=0.5), None, Train(4, 0.1), tau=0)) is None


@pytest.mark.parametrize(
    "options",
    [{"winner": "loss"}, {"step": 0.0}, {"step": 1.5}, {"decay": 0.0}, {"decay": 1.1},
     {"tau": -1}, {"rate": 0.0}, {"images": 0}, {"recalibrate": -1}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.ArgumentError, match=next(iter(options))):
        netadapt(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_a_resource_that_is_not_measured_or_out_of_reach_is_refused():
    task, _ = trap()
    for budget, error in (
        (Budget(latency=0.5), errors.ArgumentError),
        (Budget(macs=1e-4), errors.BudgetError),
    ):
        with pytest.raises(error):
            NarrowByProposals(budget, STILL, step=1.0, decay=1.0).check(task)
    assert recipes.find("netadapt") is not None
