"""LcP: numbers of checks.md [25], regularised evolution by hand, offsets against base scores."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jprune import allocate, errors, stages
from jprune.base import Budget, Pruned
from jprune.recipes.lcp import lcp
from jprune.search import aging
from jprune.stages import Aging, SearchOffsets, Train, Trial
from jprune.stages.offsets import compensated, spread_of
from jprune.stages.prune import l2_of
from jprune.train.net import Net
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(5)
SMALL = Trial(images=10, recalibrate=1, batch_size=16, of="loss")
BASE = {"one": np.array([1.0, 2.0, 3.0]), "two": np.array([10.0, 11.0, 12.0])}
ALIVE = {name: np.ones(3, bool) for name in BASE}


@functools.cache
def trap():
    """A trained net, whose outer kernels are small and matter: norms undo their size."""
    task = toy_task(train_size=96)
    values = drawn(task)
    task = task._replace(init=lambda key: values)
    pruned, _ = Train(8, 0.05, 16, max_steps=40)(Pruned(values, None), task, KEY)
    shrunk = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0.65 if "conv2" not in str(path) and leaf.ndim == 4 else leaf,
        pruned.variables,
    )
    return task, pruned._replace(variables=shrunk)


def moved(offsets, scores=BASE):
    """Scores with these offsets added."""
    genes = [offset / spread_of(s, scores) for offset, s in zip(offsets, scores.values())]
    return compensated(scores, np.array(genes))


def kept(scores, density=4 / 6):
    remove = allocate.lowest_first({n: len(s) for n, s in scores.items()}, Budget(density=density))
    alive = {name: np.ones(len(s), bool) for name, s in scores.items()}
    return {name: np.asarray(mask) for name, mask in remove(scores, alive, 0, 1.0).items()}


def test_offsets_choose_between_layers():
    """Checks [25] P2: the offset that is the optimum over all pairs."""
    damages = np.array([8, 9, 10, 1, 2, 3])
    damage = lambda offsets: damages[~np.concatenate([*kept(moved(offsets)).values()])].sum()
    assert damage((0, 0)) == 17
    assert damage((10.5, 0)) == 3
    assert min(damages[[*pair]].sum() for pair in itertools.combinations(range(6), 2)) == 3
    assert kept(moved((10.5, 0)))["two"].tolist() == [False, False, True]


def one_by_one(scores, price, goal, least):
    """The paper's cut: the lowest score goes, the cost is computed anew.

    What would end more than two points below the goal is the last choice, what wastes least first.
    """
    masks = {name: np.ones(len(score), bool) for name, score in scores.items()}
    while price(masks) > goal:
        lowest = {
            name: min(np.flatnonzero(masks[name]), key=lambda unit: score[unit])
            for name, score in scores.items()
            if masks[name].sum() > least[name]
        }
        choices = []
        for name, unit in lowest.items():
            fewer = {**masks, name: masks[name] & (np.arange(len(masks[name])) != unit)}
            far = price(fewer) < goal - 0.02
            choices.append((far, -price(fewer) if far else scores[name][unit], name, fewer))
        masks = min(choices, key=lambda choice: choice[:3])[3]
    return masks


def test_no_offset_is_the_plain_ranking_and_a_common_one_changes_nothing():
    """Checks [25] P1 and P3, against a loop, on a net with a residual sum."""
    task, pruned = trap()
    stage = SearchOffsets(l2_of, Budget(macs=0.5), trial=SMALL)
    net, scores = Net(task), stage.scores(pruned, task, KEY)
    budget = stage.floored(task)
    assert budget.floors == {name: 2 for name in scores}  # a tenth of 8 and 12, two at least
    dense = float(net.cost({}).macs)
    price = lambda masks: float(net.cost(masks).macs) / dense
    remove = jax.jit(allocate.lowest_first(net.groups.sizes, budget, net.cost))
    alive = {name: np.ones(size, bool) for name, size in net.groups.sizes.items()}
    cut = lambda s: {n: np.asarray(m) for n, m in remove(s, alive, 0, 1.0).items()}
    for offsets in ((0.0, 0.0), (40.0, 0.0), (-3.0, 2.0)):
        by_hand = one_by_one(moved(offsets, scores), price, 0.5, budget.floors)
        masks = cut(moved(offsets, scores))
        assert equal(masks, by_hand)
        assert equal(cut(moved([offset + 7 for offset in offsets], scores)), masks)
        # It fits, and does not with the unit that went last.
        assert price(masks) <= 0.5
        free = {n: s for n, s in moved(offsets, scores).items() if masks[n].sum() > 2}
        last = max((s[~masks[n]].max(), n) for n, s in free.items() if not masks[n].all())
        again = {n: m | (moved(offsets, scores)[n] == last[0]) for n, m in masks.items()}
        assert price(again) > 0.5


def test_equal_scores_can_be_moved_and_factors_multiply():
    scores = {"one": np.full(2, 3.0), "two": np.array([1.0, 3.0, -np.inf])}
    genes = np.array([1.0, 0.0, 0.0, np.log(2)])
    found = compensated(scores, genes)
    np.testing.assert_allclose(found["two"], [2, 6, -np.inf])
    assert (found["one"] > 3).all()
    assert spread_of(np.ones(2), {"a": np.ones(2)}) == 1


def by_hand(score, layers, evaluations, population, tournament, seed):
    """Regularised evolution with a queue, as the paper has it; its own draws."""
    rng = np.random.default_rng(seed)
    queue = [rng.normal(size=layers) for _ in range(population - 1)] + [np.zeros(layers)]
    best = max(map(score, queue))
    for _ in range(evaluations - population):
        parent = max((queue[n] for n in rng.integers(0, population, tournament)), key=score)
        child = parent.copy()
        for layer in {*rng.integers(0, layers, max(1, int(0.1 * layers)))}:
            child[layer] += rng.normal()
        queue = [*queue[1:], child]
        best = max(best, score(child))
    return best


def test_the_search_is_regularised_evolution():
    """What it reaches is what a queue by hand reaches; and its mutants are of the queue."""
    goal = np.linspace(-2, 2, 6)
    score = lambda row: -float(((row - goal) ** 2).sum())
    ends = {"ours": [], "hand": [], "chance": []}
    for seed in range(12):
        for name, population in (("ours", 10), ("chance", 100)):
            searcher = aging(6, evaluations=100, population=population, tournament=4)
            state = searcher.init(jax.random.key(seed))
            while len(genes := searcher.ask(state)):
                state = searcher.tell(state, genes, np.array([*map(score, genes)]))
            assert int(state.tried) == 100
            ends[name].append(searcher.best(state)[1])
            table = np.asarray(state.genes)
            assert not table[population - 1].any()
            for n in range(population, 100):
                # One layer of one of the ten before it changed: parents die of age.
                assert ((table[n] != table[n - population : n]).sum(1) == 1).any()
        ends["hand"].append(by_hand(score, 6, 100, 10, 4, seed))
    ours, hand, chance = (np.mean(ends[name]) for name in ("ours", "hand", "chance"))
    assert abs(ours - hand) < 1
    assert ours > chance + 2  # at equal evaluations


def test_noise_of_factors_falls():
    searcher = aging(40, 2, evaluations=500, population=500, tournament=1, falling=(1,))
    genes = searcher.ask(searcher.init(KEY)).reshape(500, 2, 40)
    # 1 - i / (1.25 N) for the first and the last tenth
    for part, size in ((slice(0, 50), 0.96), (slice(449, 499), 0.24)):
        assert abs(genes[part, 1].std() - size) < 0.03
        assert abs(genes[part, 0].std() - 1) < 0.05


def test_a_nan_is_the_worst_score_and_a_search_of_them_ends_with_an_error():
    task, pruned = trap()
    searcher = aging(2, evaluations=3, population=2, tournament=1)
    state = searcher.init(KEY)
    state = searcher.tell(state, searcher.ask(state), np.array([np.nan, -5.0]))
    assert searcher.best(state)[1] == -5
    broken = task._replace(loss=lambda out, batch: out.sum(-1) * np.nan)
    stage = SearchOffsets(l2_of, Budget(macs=0.5), trial=SMALL, aging=Aging(2, 2, 1))
    with pytest.raises(errors.DivergenceError, match="none of the 2 candidates"):
        stage(pruned, broken, KEY)


def test_offsets_are_better_than_the_same_scores_without():
    """The kernels of a group are small: plain ranking takes most of them."""
    task, pruned = trap()
    for scale in (False, True):
        stage = SearchOffsets(
            l2_of, Budget(macs=0.6), trial=SMALL, aging=Aging(32, 16, 4, scale=scale)
        )
        done, (record,) = stage(pruned, task, KEY)
        metrics = record["metrics"]
        assert metrics["evaluated"] == 32
        assert metrics["best"] > metrics["plain"] + 0.2
        assert metrics["macs"] <= 0.6
        # Plain ranking leaves 5 of the 8 that the residual sum stands on.
        assert done.masks[Net(task).groups.names[0]].sum() >= 6
        # What is handed on is what was scored.
        score = SMALL.scorer(task, KEY)(pruned.variables, [done.masks])
        np.testing.assert_allclose(score[0], metrics["best"], rtol=1e-4)


def test_a_stopped_search_goes_on_with_the_same_candidates():
    task, pruned = trap()
    stage = SearchOffsets(l2_of, Budget(macs=0.5), trial=SMALL, aging=Aging(12, 6, 3))
    whole = stage.learner(pruned, task, KEY)
    assert (whole.steps, whole.epoch) == (7, 6)
    states = [whole.init()]
    for _ in range(whole.steps):
        states.append(whole.step(states[-1], {})[0])
    again = stage.learner(pruned, task, KEY)
    state = jax.tree.map(np.asarray, states[3])
    for _ in range(4):
        state, _ = again.step(state, {})
    assert equal(state, states[-1])
    assert equal(again.finish(state).masks, whole.finish(states[-1]).masks)


def test_candidates_can_train_before_they_are_scored():
    task, pruned = trap()
    short = {"evaluations": 3, "population": 2, "tournament": 1, "images": 10, "recalibrate": 1}
    train = Train(1, 0.05, 16, max_steps=2)
    recipe = lcp(Budget(macs=0.4), None, train, tau=8, rate=0.05, **short)
    (stage,) = (stage for stage in recipe if isinstance(stage, SearchOffsets))
    assert stage.trial.train.steps(96) == 8
    trained = stage(pruned, task, KEY)[1][0]["metrics"]
    still = stages.SearchOffsets(l2_of, Budget(macs=0.4), trial=SMALL, aging=stage.aging)
    assert trained["plain"] > still(pruned, task, KEY)[1][0]["metrics"]["plain"] + 0.02


@pytest.mark.parametrize(
    "options",
    [
        {"score": "l3"},
        {"fitness": "error"},
        {"evaluations": 0},
        {"population": 0},
        {"tournament": 0},
        {"mutated": 0.0},
        {"tau": -1},
        {"rate": 0.0},
        {"images": 0},
        {"recalibrate": -1},
        {"least": 1.0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.ArgumentError, match=next(iter(options))[:2]):
        lcp(Budget(macs=0.5), None, Train(1, 0.1), **options)


def test_floors_out_of_reach_are_refused_before_training():
    task, _ = trap()
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        stages.check(lcp(Budget(macs=0.05), None, Train(1, 0.1), least=0.5), task)
