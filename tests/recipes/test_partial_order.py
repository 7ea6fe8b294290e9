"""Partial order pruning [26]: the order, what it spares, and that no frontier loses a member."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jprune
from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.search.partial_order import PartialOrder, cannot_win, contained, frontier, members
from jprune.search.space import Space
from jprune.stages.candidates import Trial
from jprune.stages.choices import Choices, price_of
from jprune.stages.partial_order import SearchByOrder
from jprune.train.net import Net
from tests.contracts import own
from tests.recipes.test_width_mixture import residual

KEY = own.KEY
GRID = np.array([*itertools.product(range(3), repeat=3)])


def test_the_order_is_one_of_inclusion():
    small, wide, other = np.array([[16, 32]]), np.array([[16, 64]]), np.array([[32, 16]])
    assert contained(small, wide).all()
    assert not contained(other, wide).any()
    assert not contained(wide, other).any()
    below = contained(GRID, GRID)
    assert below.diagonal().all()
    assert not (below & below.T & ~np.eye(27, dtype=bool)).any()
    # a <= b and b <= c: a <= c, for all triples
    assert not ((below[:, :, None] & below[None]) & ~below[:, None, :]).any()


@pytest.mark.parametrize(
    ("of_v", "of_u", "slack", "spared"),
    [
        (0.74, 5.0, 0.0, True),
        (0.76, 5.0, 0.0, False),
        (0.74, 8.0, 0.0, False),
        (0.74, 5.0, 0.02, False),
        (-np.inf, 5.0, 0.0, False),  # a training that has diverged bounds nothing
    ],
)
def test_a_candidate_is_spared_by_what_contains_it_and_what_beats_that(of_v, of_u, slack, spared):
    """u (32, 32) of accuracy 0.75, v (64, 64) of latency 9, w (48, 48) of latency 7."""
    tried, scores = np.array([[32, 32], [64, 64]]), np.array([0.75, of_v])
    found = cannot_win(
        np.array([[48, 48]]), np.array([7.0]), tried, np.array([of_u, 9.0]), scores, slack
    )
    assert found.tolist() == [spared]


def test_a_table_of_latencies_is_summed_and_a_missing_entry_is_no_0():
    table = {(6, 8): 1.0, (6, 4): 0.75, (8, 3): 0.5, (4, 3): 0.375}

    def latency(term):
        return table[int(term.inputs), int(term.outputs)]

    fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
    v, x = {"a": jnp.ones((6, 8)), "b": jnp.ones((8, 3))}, jnp.ones((1, 6))
    model = jprune.cost_model(fn, v, x, groups=jprune.trace(fn, v, x), per_equation=latency)
    assert [float(model({"a": width}).macs) for width in (8, 4)] == [1.5, 1.125]
    with pytest.raises(KeyError):
        model({"a": 5})


def grid(high=1.0, low=0.0):
    """Three layers of four widths in a row."""
    cost = lambda genes: ((genes + 1.0) / 4).prod(axis=1)
    return Space((4, 4, 4), cost, high, low)


def to_the_end(search, score, key=KEY):
    searcher = search.searcher()
    state, asked = searcher.init(key), []
    while len(genes := searcher.ask(state)):
        asked.append(tuple(genes[0].tolist()))
        state = searcher.tell(state, genes, score(genes))
    return searcher, state, asked


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.04]))
def test_nothing_of_the_frontier_is_lost_where_the_order_holds(seed, noise):
    """Against all 64: scores that rise with every width, and are known up to half the slack."""
    rng = np.random.default_rng(seed)
    steps = [np.cumsum(rng.uniform(0, 1, 4)) for _ in range(3)]
    of_each = lambda genes: [step[gene] for step, gene in zip(steps, np.asarray(genes).T)]
    true = lambda genes: np.sum(of_each(genes), axis=0)
    off = rng.uniform(-noise / 2, noise / 2, (4, 4, 4))
    observed = lambda genes: true(genes) + off[tuple(np.asarray(genes).T)]
    space = grid()
    search = PartialOrder(space, lambda genes: genes + 1, 64, noise)
    searcher, state, asked = to_the_end(search, observed)
    every = np.array([*itertools.product(range(4), repeat=3)])
    assert len({*asked}) == len(asked)
    assert search.left(state) == 0
    assert search.spared(state) + len(asked) == 64
    tried = np.array(asked)
    costs, scores = space.cost(every), true(every)
    for place in frontier(costs, scores):
        there = tried[space.cost(tried) <= costs[place] + 1e-9]
        assert true(there).max() >= scores[place] - 1e-6
    best, top = searcher.best(state)
    assert top == pytest.approx(observed(tried).max(), rel=1e-5)
    assert tuple(best.tolist()) in asked


def test_layers_that_do_nothing_are_learned_to_do_nothing():
    """Of 64 members most are spared; a search without the order would train them all."""
    search = PartialOrder(grid(), lambda genes: genes + 1, 64)
    searcher, state, asked = to_the_end(search, lambda genes: 1.0 + genes[:, 1])
    assert search.spared(state) >= 32
    assert searcher.best(state)[0].tolist() == [0, 3, 0]
    assert [score for _, score in search.frontier(state)] == [1.0, 2.0, 3.0, 4.0]
    again = to_the_end(search, lambda genes: 1.0 + genes[:, 1])[2]
    assert again == asked  # draws are those of the key


def test_members_of_large_spaces_are_drawn_and_those_of_one_shape_are_one():
    space = grid(high=0.5, low=0.1)
    rng = np.random.default_rng(0)
    every = members(space, lambda genes: genes, rng)
    assert space.inside(every).all()
    assert len(every) == space.inside(np.array([*itertools.product(range(4), repeat=3)])).sum()
    drawn = members(space, lambda genes: genes, rng, most=20)
    assert space.inside(drawn).all()
    assert 5 < len(np.unique(drawn, axis=0)) == len(drawn) <= 20
    assert len(members(space, lambda genes: genes[:, :1], rng)) == 4


SHORT = Train(1, 0.05, 16, max_steps=2, schedule="constant", name="finetune")


@pytest.fixture(scope="module")
def net():
    task = residual()
    return task, Pruned(task.init(KEY), None)


def test_shapes_are_compared_by_widths_and_blocks_and_what_is_gone_counts_as_nothing(net):
    search, counts = SearchByOrder(Budget(macs=0.6), Choices(0.25, 4, "every")).search(net[0])
    # Groups of 8 and of 6 units, and two blocks that can go.
    assert search.space.options == (4, 4, 3)
    genes = np.array([[3, 3, 0], [3, 1, 2]])
    shape = counts(genes)
    assert shape["params/a3/kernel"].tolist() == [6, 3]
    assert shape["branch/params/b2/kernel"].tolist() == [0, 1]
    sizes = search.sizes_of(genes)
    assert sizes[0].tolist() == [8, 6, 0, 0, 0, 0]
    assert sizes[1].tolist() == [8, 3, 3, 3, 1, 1]
    net_cost = Net(net[0]).cost
    for row, cost in zip(genes, search.space.cost(genes)):
        widths = {name: int(count[0]) for name, count in counts(row[None]).items()}
        exact = float(net_cost(widths).macs) / float(net_cost({}).macs)
        assert cost == pytest.approx(exact, rel=1e-6)
    apart = SearchByOrder(Budget(macs=0.6), Choices(0.25, 4, "whole"), tied=False)
    assert apart.search(net[0])[0].space.options == (4, 4, 4, 4)


@pytest.mark.parametrize("budget", [Budget(macs=0.6), Budget(params=0.6), Budget(density=0.6)])
def test_spared_candidates_are_never_trained(net, budget, monkeypatch):
    task, start = net
    trained = []
    train = Trial.trained
    monkeypatch.setattr(
        Trial, "trained", lambda self, *args: trained.append(args[1]) or train(self, *args)
    )
    # Scores of wide nets are no better here: two steps, and labels of noise.
    trial = Trial(16, 0, 16, train=SHORT)
    # Without depths, widths apart from each other, so that there are more than twelve shapes.
    tied = budget.kind != "density"
    stage = SearchByOrder(budget, Choices(0.25, 4, "every"), tied, evaluations=12, trial=trial)
    done, (line,) = stage(start, task, KEY)
    search = stage.search(task)[0]
    metrics = line["metrics"]
    pool = len(search.pool(search.searcher().init(KEY)))
    assert metrics["spared"] > 0
    assert metrics["spared"] + metrics["left"] + metrics["evaluated"] == pool
    assert len(trained) == metrics["evaluated"] <= 12
    costs, scores = zip(*metrics["frontier"])
    assert list(costs) == sorted(costs)
    assert list(scores) == sorted(scores)
    assert metrics["best"] == pytest.approx(scores[-1])
    assert 0.3 - 1e-6 <= costs[-1] <= 0.6 + 1e-6
    # The net is the best one, of its largest units.
    assert stages.fractions(task, done.masks)[budget.kind if budget.kind != "density" else "macs"]
    sizes = {name: int(np.sum(mask)) for name, mask in done.masks.items()}
    price = price_of(task, budget)
    names = Net(task).groups.sizes if budget.kind == "density" else sizes
    # What the budget leaves room for was added: no group can have one unit more.
    spent = lambda counted: float(price({name: counted[name] for name in names}))
    assert costs[-1] - 1e-6 <= spent(sizes) <= 0.6 + 1e-6
    for name, size in Net(task).groups.sizes.items():
        if sizes[name] < size and spent(sizes) < spent({**sizes, name: sizes[name] + 1}):
            assert spent({**sizes, name: sizes[name] + 1}) > 0.6
    norms = np.abs(np.asarray(start.variables["params"]["a1"]["kernel"])).sum(0)
    mask = done.masks["params/a1/kernel"]
    assert norms[mask].min() >= norms[~mask].max(initial=0)


@pytest.mark.parametrize(
    ("budget", "options", "error"),
    [
        (Budget(macs=0.01), {}, errors.BudgetError),
        (Budget(macs=0.5), {"window": 0.0}, errors.ArgumentError),
        (Budget(macs=0.5123), {"window": 1e-9}, errors.BudgetError),
        (Budget(macs=0.5), {"evaluations": 0}, errors.ArgumentError),
        (Budget(macs=0.5), {"slack": -1.0}, errors.ArgumentError),
        (Budget(macs=0.5), {"depths": "deep"}, errors.ArgumentError),
        (Budget(latency=0.5), {}, errors.ArgumentError),
    ],
)
def test_what_cannot_be_searched_is_refused_before_training(net, budget, options, error):
    train = dataclasses.replace(SHORT, name="train")
    with pytest.raises(error):
        stages.check(recipes.find("partial_order")(budget, train, SHORT, **options), net[0])
