"""AutoCompress: numbers of checks.md [37], the walk by hand, rates and purification on a net."""

import jax
import numpy as np
import pytest

from jprune import allocate, blocks, errors, recipes
from jprune.base import Budget
from jprune.recipes.autocompress import autocompress
from jprune.search import annealing
from jprune.search.annealing import acceptance, temperatures
from jprune.stages import Purify, Searched, Train, Trial, by_size
from jprune.stages.admm import Admm
from jprune.stages.rates import Annealing, SearchRates
from jprune.train.net import Net
from jprune.units import expand
from tests.recipes.test_lcp import trap
from tests.toys import equal

KEY = jax.random.key(2)
STILL = Trial(images=10, recalibrate=1, batch_size=16)
SIZES = np.array([100.0, 400.0, 1600.0])


def test_rates_are_scaled_to_the_constraint():
    """Checks [37] P1."""
    rates = np.array([0.2, 0.4, 0.6])
    np.testing.assert_allclose(SIZES @ rates / SIZES.sum(), 0.54285714, atol=1e-8)
    scaled = by_size(SIZES, 0.5)(rates)
    np.testing.assert_allclose(scaled, [0.18421053, 0.36842105, 0.55263158], atol=1e-8)
    np.testing.assert_allclose(SIZES @ scaled / SIZES.sum(), 0.5, rtol=1e-12)
    assert by_size(SIZES, 0.5)(np.zeros(3)) is None
    assert by_size(SIZES, 0.9)(np.array([0.1, 0.1, 0.9])) is None  # 1.13 for the largest


def test_rates_rise_with_sizes_after_every_perturbation():
    """Checks [37] P2, with layers in any order, and sorted within kinds."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.array([30.0, 50.0, 70.0, 200.0, 450.0, 900.0]))
    searcher = annealing(6, by_size(sizes, 0.6), evaluations=80)
    state = searcher.init(KEY)
    while len(candidates := searcher.ask(state)):
        (rates,) = candidates
        assert (np.diff(rates[np.argsort(sizes)]) >= 0).all()
        assert rates.min() >= 0
        assert rates.max() < 1
        assert abs(sizes @ rates / sizes.sum() - 0.6) < 1e-9
        state = searcher.tell(state, candidates, rng.random(1))
    kinds = np.array([0, 1, 0, 1, 0, 1])
    rates = by_size(sizes, 0.3, kinds)(rng.random(6))
    for kind in (0, 1):
        own = kinds == kind
        assert (np.diff(rates[own][np.argsort(sizes[own])]) >= 0).all()


def test_a_price_takes_the_place_of_weights():
    """The smallest factor under the budget: brute force over a fine grid says the same."""
    price = lambda rates: float(np.prod(1 - rates[:2]) + (1 - rates[2]) ** 2) / 2
    rates = np.array([0.1, 0.3, 0.5])
    found = by_size(np.array([1.0, 2.0, 3.0]), 0.5, price=price)(rates)
    grid = np.linspace(0, 2, 200001)[:-1]
    best = next(factor for factor in grid if price(factor * rates) <= 0.5)
    np.testing.assert_allclose(found, best * rates, rtol=1e-4)
    assert price(found) <= 0.5
    assert by_size(np.ones(3), 0.999, price=price)(rates) is None


def test_temperatures_and_acceptance():
    """Checks [37] P3."""
    heats = temperatures(100, 20, 0.9)
    assert len(heats) == 16
    assert round(heats[-1], 3) == 20.589
    np.testing.assert_allclose([0.35 * heat / 100 for heat in heats[:3]], [0.35, 0.315, 0.2835])
    assert acceptance(0.5, 0.500001, 1e-9) == 1
    np.testing.assert_allclose(acceptance(0.5, 0.48, 0.01), 0.13533528, rtol=1e-6)
    np.testing.assert_allclose(acceptance(1.0, 0.0, 100), 0.99004983, rtol=1e-6)
    assert acceptance(0.5, -np.inf, 100) == 0
    draws = np.random.default_rng(0).random(10_000)
    assert abs((draws < acceptance(0.5, 0.48, 0.01)).mean() - 0.13533528) < 0.012


def test_the_walk_accepts_cools_and_redraws():
    searcher = annealing(2, lambda s: s, 60, hot=1.0, cold=0.1, cool=0.5, size=0.3, redraws=3)
    state = searcher.init(KEY)
    place, level, cooled, refused = None, -np.inf, 0, 0
    for number in range(60):
        candidates = searcher.ask(state)
        if place is not None:
            reach = 0.3 * 0.5 ** min(cooled, 3)
            inside = np.abs(candidates[0] - place) <= reach + 1e-6
            assert (inside | (candidates[0] == 0)).all()
        score = [5.0, 6.0, -90.0, np.nan][number % 4] + number
        state = searcher.tell(state, candidates, np.array([score]))
        if score > level:  # the others are so much worse that they never are accepted
            place, level, cooled, refused = candidates[0].astype(np.float32), score, cooled + 1, 0
        elif not score > level - 1:
            refused += 1
            if refused == 3:
                cooled, refused = cooled + 1, 0
        assert (int(state.cooled), int(state.refused)) == (cooled, refused)
        assert float(state.level) == level
        np.testing.assert_array_equal(state.place, place)
    assert not len(searcher.ask(state))
    assert searcher.best(state)[1] == level


def test_annealing_is_better_than_chance_at_equal_evaluations():
    """A smooth quality with one optimum among rates that meet the constraint, ten seeds."""
    sizes = np.array([10.0, 20.0, 40.0, 80.0, 160.0])
    goal = by_size(sizes, 0.6)(np.array([0.05, 0.2, 0.25, 0.6, 0.7]))
    quality = lambda rates: -float(((rates - goal) ** 2).sum())
    ends = {"annealing": [], "random": []}
    for seed in range(10):
        for name, size in (("annealing", 0.35), ("random", None)):
            searcher = annealing(5, by_size(sizes, 0.6), 100, size=size, hot=0.02, cold=0.001)
            state = searcher.init(jax.random.key(seed))
            while len(rates := searcher.ask(state)):
                state = searcher.tell(state, rates, np.array([quality(rates[0])]))
            assert int(state.tried) == 100
            ends[name].append(searcher.best(state)[1])
    assert np.mean(ends["annealing"]) > np.mean(ends["random"]) / 2  # half as far away


@pytest.mark.parametrize("kinds", [("filter",), ("filter", "column")])
def test_searched_counts_meet_the_budget_and_admm_takes_them(kinds):
    task, pruned = trap()
    sets = Searched(Budget(macs=0.6), kinds)
    stage = SearchRates(sets, STILL, Annealing(evaluations=5))
    done, (record,) = stage(pruned, task, KEY)
    assert record["metrics"]["evaluated"] == 5
    families, counts = sets.families(task), done.extra["counts"]
    norms = {each.kind: blocks.norms(each, pruned.variables) for each in families}
    alive = {
        kind: {name: np.asarray(allocate.keep_best(norms[kind][name], n)) for name, n in of.items()}
        for kind, of in counts.items()
    }
    masks = blocks.masks(families, alive)
    kept = allocate.fraction_kept(Net(task).groups, masks, sets.budget, Net(task).cost)
    assert 0.45 < kept <= 0.6
    # The score is that of these masks.
    score = STILL.scorer(task, KEY)(pruned.variables, [masks])[0]
    np.testing.assert_allclose(score, record["metrics"]["best"], rtol=1e-5)
    assert sets.counts(task, done) == counts
    with pytest.raises(errors.ArgumentError, match="put SearchRates before it"):
        sets.counts(task, pruned)


def test_a_stopped_search_goes_on():
    task, pruned = trap()
    sets = Searched(Budget(macs=0.6))
    learner = SearchRates(sets, STILL, Annealing(evaluations=6)).learner(pruned, task, KEY)
    states = [learner.init()]
    for _ in range(6):
        states.append(learner.step(states[-1], {})[0])
    state = jax.tree.map(np.asarray, states[2])
    for _ in range(4):
        state, _ = learner.step(state, {})
    assert equal(state, states[-1])


def test_purification_cuts_what_is_near_0_and_nothing_that_counts():
    task, pruned = trap()
    names = Net(task).groups.names
    # Two units of the inner group are next to nothing.
    gone = np.arange(12) < 2
    small = {name: np.ones(size) for name, size in Net(task).groups.sizes.items()}
    small[names[1]] = np.where(gone, 1e-4, 1.0)
    variables = jax.tree.map(
        lambda leaf, factor: leaf if factor is None else leaf * factor,
        pruned.variables, expand(Net(task).groups, small, ("kernel", "scale", "shift")),
    )  # fmt: skip
    pruned = pruned._replace(variables=variables)
    sets = Searched(Budget(macs=0.6))
    still = Trial(images=10, recalibrate=0, batch_size=16)
    done, (record,) = Purify(sets, still, Annealing(evaluations=20))(pruned, task, KEY)
    metrics = record["metrics"]
    assert not done.masks[names[1]][gone].any()
    score = still.scorer(task, KEY)
    whole = {name: np.ones(size, bool) for name, size in Net(task).groups.sizes.items()}
    before, after = (score(variables, [masks])[0] for masks in (whole, done.masks))
    assert after >= before - 1e-6
    np.testing.assert_allclose(metrics["best"], 1 - metrics["macs"], atol=1e-6)


def test_rounds_multiply_and_stages_are_those_of_the_paper():
    recipe = autocompress(Budget(macs=0.125), None, Train(10, 0.01, name="finetune"))
    goals = [stage.sets.budget.macs for stage in recipe if isinstance(stage, SearchRates)]
    np.testing.assert_allclose(goals, [0.5, 0.25, 0.125])
    trained = [stage.train.epochs for stage in recipe if isinstance(stage, Admm)]
    after = [stage.epochs for stage in recipe if isinstance(stage, Train)]
    np.testing.assert_allclose(sum(trained) + sum(after), 10)


@pytest.mark.parametrize(
    "options",
    [{"search": "grid"}, {"rounds": 0}, {"evaluations": 0}, {"hot": 0.0}, {"cold": 1.0},
     {"cool": 1.0}, {"perturbation": 0.0}, {"redraws": 0}, {"images": 0}, {"stop": 1.0},
     {"rho": 0.0}, {"drop": -0.1}, {"groups": "kernel"}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.JpruneError, match=next(iter(options))[:4]):
        autocompress(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_it_is_a_method():
    assert recipes.find("autocompress") is not None
