"""Conditional channel pruning: numbers of checks.md [48], the agent against chance, three nets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import errors, recipes, stages
from jprune.base import Budget, Problem, Pruned
from jprune.recipes import Train
from jprune.recipes.cacp import cacp
from jprune.reconstruct import least_squares, masked_refit
from jprune.search import Agent, actor_critic, bound, rounded_up
from jprune.search.policy import Memory, begun, improver, proposed
from jprune.stages import Repair, SearchRatios, TakeGoal
from jprune.stages.repair import ranks_of, repaired
from jprune.train.net import Net
from tests.contracts import own
from tests.search_problems import FLOPS, Dial, chain, chained, chained_own
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(4)
SMALL = Agent(hidden=16, warmup=2, batch=8, replay=4)
LOWEST = np.full(3, 0.2)
HALF = Budget(macs=0.5)
FINE = Train(1, 0.01, 16, max_steps=2, name="finetune")


@functools.cache
def trained():
    """The tiny net, trained for a moment, so that widths matter."""
    task = toy_task("tiny", validation_size=60)
    dense = Pruned(drawn(task), None)
    return task, Train(1, 0.1, 16, max_steps=30)(dense, task, KEY)[0]


def search(**changes):
    usual = {"agent": SMALL, "episodes": 4, "repair": Repair(2, 16, 6), "streams": True}
    return SearchRatios(HALF, **{**usual, "goals": (0.4, 0.7), **changes})


def steps_of(learner, count, state=None, start=0):
    state, told = learner.init() if state is None else state, []
    for _, batch in zip(range(start, count), learner.batches(start)):
        state, metrics = learner.step(state, batch)
        told.append(metrics)
    return state, told


# ---- numbers ------------------------------------------------------------------------------------


def test_bounds_of_actions():
    """Checks [48] P1: an agent that always wants all gets (1, .4, .5), half of the MACs."""
    actions, bounds = np.zeros(0), []
    for _ in range(3):
        bounds.append(bound(chained, actions, LOWEST, 0.5, chained_own))
        actions = np.append(actions, max(min(1.0, bounds[-1]), 0.2))
    np.testing.assert_allclose(bounds, [1.56, 0.4, 0.5])
    np.testing.assert_allclose(actions, [1, 0.4, 0.5])
    assert 40 * chained(actions[None])[0] == pytest.approx(20)
    assert FLOPS.sum() == 40


def test_the_policy_sees_the_budget():
    """Checks [48] P2."""
    environment = chain([10, 20, 10], [16, 16, 16], (0.3, 0.7))
    actor = begun(KEY, environment.width, Agent()).actor
    for genes in (np.zeros(0, int), np.array([8])):
        low, high = (environment.look(genes, goal) for goal in (0, 1))
        np.testing.assert_array_equal(low[:-1], high[:-1])
        np.testing.assert_allclose([low[-1], high[-1]], [0.3, 0.7], rtol=1e-6)
        first, second = proposed(actor, np.stack([low, high]))
        assert abs(first - second) > 1e-4


def test_channels_are_rounded_up():
    """Checks [48] P3; all are kept only where all are wanted."""
    assert [rounded_up(*of, 8) for of in ((64, 0.4), (64, 0.5), (16, 0.1), (12, 0.99))] == [
        32, 32, 8, 8,
    ]  # fmt: skip
    assert rounded_up(12, 1.0, 8) == 12


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(4, 40)), min_size=1, max_size=6),
    st.floats(0.15, 1.0),
    st.integers(1, 8),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_no_proposals_exceed_the_budget(layers, goal, step, of_paper, rng):
    """Whatever is proposed: the law that rounding up alone would break."""
    flops, sizes = zip(*layers)
    step = min(step, *sizes)
    environment = chain(flops, sizes, (goal,), step, own=of_paper)
    environment = environment._replace(lowest=np.minimum(environment.lowest, sizes))
    if environment.price(environment.lowest[None])[0] > goal:
        return
    genes = np.zeros(0, int)
    for lowest, size in zip(environment.lowest, sizes):
        gene = environment.decide(genes, 0, rng.random() if rng.random() < 0.5 else 1.0)
        assert lowest <= gene <= size
        assert gene in (lowest, size) or gene % step == 0
        genes = np.append(genes, gene)
    assert environment.price(genes[None])[0] <= goal + 1e-6


# ---- the agent ----------------------------------------------------------------------------------


def test_an_update_by_hand():
    """Two updates on one remembered decision, in optax and autodiff outside of the searcher."""
    agent = Agent(hidden=8, batch=4, soft=0.25, discount=0.5, baseline=0.25, critic_rate=1e-2)
    policy, rng = begun(KEY, 3, agent), np.random.default_rng(0)
    seen, then = rng.normal(size=(2, 1, 3)).astype(np.float32)
    action, reward, more = (np.array([v], np.float32) for v in (0.3, 0.8, 1.0))
    done = improver(agent, 2)(policy, Memory(seen, action, reward, then, more), 1, KEY)

    def net(layers, x):
        for weight, shift in layers[:-1]:
            x = jnp.maximum(x @ weight + shift, 0)
        return (x @ layers[-1][0] + layers[-1][1])[0, 0]

    worth = lambda critic, s, a: net(critic, jnp.concatenate([s, jnp.reshape(a, (1, 1))], 1))
    act = lambda actor, s: jax.nn.sigmoid(net(actor, s))
    adams = optax.adam(agent.actor_rate), optax.adam(agent.critic_rate)

    @jax.jit
    def by_hand(actor, critic, slow, states):
        # The mean of one reward is that reward: nothing of it is left.
        target = 0.5 * worth(slow[1], then, act(slow[0], then))
        slope = jax.grad(lambda c: (worth(c, seen, 0.3) - target) ** 2)(critic)
        change, of_critic = adams[1].update(slope, states[1])
        critic = optax.apply_updates(critic, change)
        slope = jax.grad(lambda a: -worth(critic, seen, act(a, seen)))(actor)
        change, of_actor = adams[0].update(slope, states[0])
        actor = optax.apply_updates(actor, change)
        blend = lambda new, old: 0.25 * new + 0.75 * old
        slow = [jax.tree.map(blend, *pair) for pair in zip((actor, critic), slow)]
        return actor, critic, slow, [of_actor, of_critic]

    actor, critic, slow = policy.actor, policy.critic, [policy.slow_actor, policy.slow_critic]
    states = [adams[0].init(actor), adams[1].init(critic)]
    for _ in range(2):
        actor, critic, slow, states = by_hand(actor, critic, slow, states)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    jax.tree.map(close, (done.actor, done.critic), (actor, critic))
    jax.tree.map(close, [done.slow_actor, done.slow_critic], slow)
    assert float(done.mean) == pytest.approx(0.8)
    assert int(done.updates) == 2


def test_the_mean_of_rewards_moves_by_its_share():
    agent = Agent(hidden=4, batch=2, baseline=0.5)
    policy, row = begun(KEY, 1, agent), np.zeros((1, 1), np.float32)
    memory = lambda reward: Memory(row, row[0], np.array([reward], np.float32), row, row[0])
    policy = improver(agent, 1)(policy, memory(4.0), 1, KEY)
    assert float(policy.mean) == 4
    assert float(improver(agent, 1)(policy, memory(2.0), 1, KEY).mean) == 3


def played(environment, score, goals, agent, episodes, seed=0, draw="uniform"):
    searcher = actor_critic(environment, goals, episodes, agent, draw)
    state = searcher.init(jax.random.key(seed))
    for _ in range(episodes + goals):
        asked = searcher.ask(state)
        state = searcher.tell(state, asked, [score(asked[0])])
    return state


def test_one_policy_for_several_goals_needs_to_see_them():
    """With the goal it is right for both; without it for neither, however long it learns."""
    agent = Agent(hidden=16, warmup=5, actor_rate=1e-2, critic_rate=1e-2, noise=0.2)
    right = np.array([0.9, 0.1])
    score = lambda row: -abs(row[1] / 1000 - right[row[0]])
    off = {}
    for shown in (True, False):
        searcher = actor_critic(Dial(shown), 2, 60, agent, "cycle")
        state = played(Dial(shown), score, 2, agent, 60, draw="cycle")
        read = [searcher.ask(state._replace(episode=np.int32(60 + goal)))[0] for goal in (0, 1)]
        off[shown] = max(-score(row) for row in read)
    assert off[True] < 0.15
    assert off[False] > 0.35


def test_what_the_policy_proposes_is_better_than_chance():
    """Behind 50 nets, 20 of them drawn evenly: no better than their best, but than their mean."""
    environment = chain([4, 4, 4], [64] * 3, (1.0,))
    score = lambda row: 1 - float(((row[1:] / 64 - [0.95, 0.8, 0.9]) ** 2).mean())
    agent = Agent(16, 1e-3, 1e-2, soft=0.05, warmup=20, noise=0.3)
    searcher, scores = actor_critic(environment, 1, 50, agent), []
    state = searcher.init(KEY)
    for _ in range(51):
        asked = searcher.ask(state)
        scores.append(score(asked[0]))
        state = searcher.tell(state, asked, scores[-1:])
    assert scores[-1] > np.mean(scores[:20]) + 0.5 * np.std(scores[:20])
    chance = actor_critic(environment, 1, 50, agent._replace(warmup=50))
    evenly = chance.init(KEY)
    for _ in range(51):
        evenly = chance.tell(evenly, chance.ask(evenly), [0.5])
    assert int(evenly.policy.updates) == 0


def test_a_reward_that_is_not_finite_teaches_nothing():
    environment = chain([10, 20, 10], [16] * 3, (0.5,))
    searcher = actor_critic(environment, 1, 6, SMALL)
    state = searcher.init(KEY)
    for value in (0.5, 0.6, 0.7):
        state = searcher.tell(state, searcher.ask(state), [value])
    after = searcher.tell(state, searcher.ask(state), [np.nan])
    assert equal(after.policy, state.policy)
    assert equal(after.memory, state.memory)
    assert (int(after.failed), int(after.episode)) == (1, 4)
    assert searcher.best(after)[1] == np.float32(0.7)
    # An update that overflows is not taken either.
    huge = searcher.tell(after, searcher.ask(after), [3e38])
    assert equal(huge.policy, state.policy)
    assert not equal(searcher.tell(after, searcher.ask(after), [0.5]).policy, state.policy)


# ---- the refit ----------------------------------------------------------------------------------


def test_the_refit_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 6, 3)) @ np.diag([1.0, 2.0, 0.5])
    weight = rng.normal(size=(6, 3, 4))
    flat = x.reshape(90, 18)
    run = jax.jit(masked_refit)
    with jax.enable_x64(True):
        for keep in (np.arange(6) % 2 > 0, np.arange(6) < 5, np.ones(6, bool), np.zeros(6, bool)):
            targets = flat @ weight.reshape(18, 4)
            # The ridge there is over the mean of what stays, here over that of all.
            used = np.diagonal(flat.T @ flat)[np.repeat(keep, 3)]
            share = np.diagonal(flat.T @ flat).mean() / used.mean() if keep.any() else 1.0
            right, _ = least_squares(Problem(x, targets, weight, keep, ridge=1e-3 * share))
            mine = run(flat.T @ flat, weight.reshape(18, 4), np.repeat(keep, 3), 1e-3)
            np.testing.assert_allclose(mine.reshape(6, 3, 4), right, rtol=1e-6, atol=1e-9)
    assert run._cache_size() == 1
    assert not np.isnan(masked_refit(np.zeros((2, 2)), np.ones((2, 1)), np.ones(2))).any()


def test_refitted_nets_are_nearer_to_the_dense_one_and_nothing_is_compiled_for_a_choice():
    task, pruned = trained()
    net, variables = Net(task), pruned.variables
    names = net.groups.names
    ranks = ranks_of(task, variables, names)
    grams = Repair(3, 16, 16).grams(task, variables, KEY)
    assert {*grams} == {f"params/{name}/kernel" for name in ("conv2", "conv3", "fc")}
    run = jax.jit(lambda grams, masks: repaired(task, variables, grams, masks, 1e-4))
    x = next(task.data.batches("test", 12))["image"]
    out = jax.jit(task.fn)
    for inner in (4, 6, 9):
        masks = {names[0]: ranks[names[0]] < 8, names[1]: ranks[names[1]] < inner}
        refit, cut = run(grams, masks), run({}, masks)
        off = [float(jnp.abs(out(v, x) - out(variables, x)).mean()) for v in (refit, cut)]
        assert off[0] < off[1]
        small = jprune.slim_params(net.groups, masks, refit)
        slim = jprune.slim(task.fn, net.groups, masks)(small, x)
        np.testing.assert_allclose(slim, out(refit, x), rtol=1e-3, atol=1e-4)
    assert run._cache_size() == 2  # with the refit and without


def test_what_readers_weigh_least_goes_first():
    """The l1 norm over the weights that read a unit, whatever makes it."""
    task, pruned = trained()
    group = Net(task).groups.names[1]
    kernel = np.asarray(pruned.variables["params"]["conv3"]["kernel"])
    norms = np.abs(kernel).sum((0, 1, 3))
    order = np.argsort(ranks_of(task, pruned.variables, (group,))[group])
    np.testing.assert_array_equal(order, np.argsort(-norms, kind="stable"))


# ---- the search ---------------------------------------------------------------------------------


def test_one_search_ends_with_a_net_for_each_of_three_budgets():
    task, pruned = trained()
    stage = search(episodes=10)
    done, records = stage(pruned, task, KEY)
    net, dense = Net(task), float(Net(task).cost({}).macs)
    assert {*done.extra["masks"]} == {"macs 0.5", "macs 0.4", "macs 0.7"}
    for name, masks in done.extra["masks"].items():
        goal = float(name.split()[1])
        assert float(net.cost(masks).macs) / dense <= goal + 1e-6
        score = float(done.extra["scores"][name])
        evaluated = stages.Evaluate("validation")
        taken, taking = TakeGoal(name)(done, task, KEY)
        _, [measured] = evaluated(taken, task, KEY)
        assert measured["metrics"]["accuracy"] == pytest.approx(score, abs=1e-6)
        assert taking[0]["metrics"]["score"] == score
    assert equal(done.masks, done.extra["masks"]["macs 0.5"])
    assert records[-1]["metrics"]["macs"] <= 0.5 + 1e-6
    with pytest.raises(errors.ArgumentError, match=r"macs 0\.2.*goals are macs 0\.5"):
        TakeGoal("macs 0.2")(done, task, KEY)


def test_a_search_that_was_stopped_goes_on():
    task, pruned = trained()
    make = lambda: search(episodes=6).learner(pruned, task, KEY)
    whole, _ = steps_of(make(), 9)
    half, _ = steps_of(make(), 5)
    restored = jax.tree.map(jnp.asarray, jax.device_get(half))
    again, _ = steps_of(make(), 9, restored, start=5)
    assert equal(again, whole)
    assert int(whole.policy.updates) == (6 - 2) * 2


def test_candidates_are_scored_by_one_compiled_function():
    task, pruned = trained()
    traced = []
    watched = task._replace(fn=lambda variables, x: traced.append(1) or task.fn(variables, x))
    learner = search().learner(pruned, watched, KEY)
    state, _ = steps_of(learner, 1)
    before = len(traced)
    steps_of(learner, 5, state, start=1)
    assert len(traced) == before


def test_the_nets_of_other_goals_are_fine_tuned_too():
    task, pruned = trained()
    options = {"episodes": 3, "warmup": 1, "hidden": 8, "batches": 1, "streams": True}
    recipe = cacp(HALF, None, FINE, goals=(0.7,), each=True, **options)
    done, records = recipes.run(recipe, pruned, task, KEY)
    assert [r["stage"] for r in records if r["stage"] in ("goal_0.7", "finetune_0.7")] == [
        "finetune_0.7", "goal_0.7",
    ]  # fmt: skip
    other = done.saved["macs 0.7"]
    assert not equal(other, done.variables)
    held = Net(task).leaves(Net(task).weight_masks(done.extra["masks"]["macs 0.7"]))
    for path, leaf in Net(task).leaves(other).items():
        assert not np.asarray(leaf)[~np.asarray(held[path])].any()


def test_a_loss_that_is_not_finite_ends_the_search_before_it_begins():
    task, pruned = trained()
    broken = task._replace(
        metrics=lambda out, batch: {}, loss=lambda out, batch: task.loss(out, batch) * jnp.nan
    )
    with pytest.raises(errors.ArgumentError, match="not finite before anything is pruned"):
        search().learner(pruned, broken, KEY)


def test_a_search_in_which_no_net_was_finite_says_so():
    task, pruned = trained()
    learner = search().learner(pruned, task, KEY)
    state = learner.init()
    with pytest.raises(errors.ArgumentError, match="0 of 0 nets had no finite quality"):
        learner.finish(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learner.variables(state)))


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"goals": (0.01,)}, errors.BudgetError, r"0\.01 of the dense net cannot be met"),
        ({"goals": (1.5,)}, errors.ArgumentError, r"goals is in \(0, 1\]"),
        ({"least": 0.0}, errors.ArgumentError, r"least is in \(0, 1\]"),
        ({"least": 0.9}, errors.BudgetError, "smaller `least`"),
        ({"bound": "none"}, errors.ArgumentError, "readers, whole"),
        ({"draw": "both"}, errors.ArgumentError, "uniform, cycle"),
        ({"episodes": 0}, errors.ArgumentError, "episodes is 1 or more"),
        ({"agent": Agent(noise=float("nan"))}, errors.ArgumentError, "noise is above 0"),
        ({"agent": Agent(soft=0.0)}, errors.ArgumentError, r"soft is in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused_before_training(change, kind, says):
    task, _ = trained()
    with pytest.raises(kind, match=says):
        search(**change).check(task)


def test_usual_goals_are_those_within_reach_and_the_agent_without_goals_has_one():
    task, _ = trained()
    assert search(goals=None).environment(task).goals == (0.5, 0.3, 0.7)
    near = dataclasses.replace(search(goals=None, least=0.55), budget=Budget(macs=0.6))
    assert near.environment(task).goals == (0.6, 0.5, 0.7)
    whole = search(goals=None, streams=False).environment(task)
    assert whole.names == Net(task).groups.names[1:]
    assert search(shown=False).environment(task).goals == (0.5,)


def test_a_net_that_is_pruned_already_and_a_net_of_streams_alone_are_refused():
    task, pruned = trained()
    masks = {name: np.arange(size) > 0 for name, size in Net(task).groups.sizes.items()}
    with pytest.raises(errors.ArgumentError, match="pruned already"):
        search().learner(pruned._replace(masks=masks), task, KEY)
    frozen = Budget(macs=0.9, floors={Net(task).groups.names[1]: 12})
    with pytest.raises(errors.ArgumentError, match="streams=True"):
        dataclasses.replace(search(streams=False), budget=frozen).check(task)
    with pytest.raises(errors.ArgumentError, match=r"goals=0\.3:0\.7"):
        cacp(HALF, None, FINE, each=True)


def test_kernels_of_any_layout_are_refitted_alike():
    found = []
    for first in (False, True):
        task = own.channels_first(first)
        grams = Repair(2, 16, 9).grams(task, task.init(KEY), KEY)
        found.append([float(np.trace(gram)) for gram in grams.values()])
    np.testing.assert_allclose(*found, rtol=1e-4)
