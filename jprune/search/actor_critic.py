"""Search by an actor-critic agent (DDPG): decisions one after another, scored when all are made.

The agent is in `policy.py`; what it acts in is an `Environment`, such as `ratios.py`.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Searcher
from jprune.search.policy import Agent, Memory, Policy, begun, improver, proposed, truncated_normal

DRAWS = ("uniform", "cycle")
"""How an episode gets its goal: drawn, or one after the other."""


class Environment(Protocol):
    """What an agent acts in, for one of several goals: it turns proposals into genes."""

    @property
    def decisions(self) -> int:
        """How many genes a candidate has."""
        ...

    @property
    def width(self) -> int:
        """Numbers in what the agent sees."""
        ...

    @property
    def least(self) -> float:
        """Proposals are in [least, 1]."""
        ...

    def look(self, genes: np.ndarray, goal: int) -> np.ndarray:
        """Float [width]: what is seen when these genes [n] are decided."""
        ...

    def decide(self, genes: np.ndarray, goal: int, proposal: float) -> int:
        """The next gene, from what is proposed."""
        ...

    def actions(self, genes: np.ndarray) -> np.ndarray:
        """Float [n]: the proposals that genes [n] come up to."""
        ...


class Episodes(NamedTuple):
    """How far a search is.

    Attributes:
        seed: [k] bits of the key.
        episode: how many were told.
        failed: how many of them had no finite score; the policy did not learn from them.
        policy: what was learned.
        memory: what it learns from.
        stored: decisions stored so far, those overwritten included.
        best: int [goals, decisions].
        scores: [goals], of the best; -inf where there is none yet.
    """

    seed: Any
    episode: Any
    failed: Any
    policy: Policy
    memory: Memory
    stored: Any
    best: Any
    scores: Any


_proposed = jax.jit(proposed)


def actor_critic(
    environment: Environment,
    goals: int = 1,
    episodes: int = 160,
    agent: Agent | None = None,
    draw: str = "uniform",
) -> Searcher:
    """A policy decides gene by gene, in episodes for one of several goals.

    An episode is a candidate: its goal, then its genes. Its score is the reward of all of its
    decisions. After the episodes come as many as there are goals, in which the policy is read
    off without noise. Scores of different goals are not compared: each has a best of its own.

    Args:
        environment: what the agent acts in.
        goals: how many goals there are; an environment may show the agent which one it is.
        episodes: of learning.
        agent: settings; None: the defaults.
        draw: goals are drawn ("uniform"), or come one after the other ("cycle").

    Returns:
        The searcher. `ask` gives one candidate [1, 1 + decisions], which can come again; `best` is
        that of goal 0, and the state's `best` and `scores` have those of all. A score that is not
        finite teaches nothing, and neither does an update after which the policy is not finite.

    Raises:
        ArgumentError: a number out of range, or another word.

    Example:
        >>> class Dial(NamedTuple):  # one number, to be set to 0.7 or, for goal 1, to 0.3
        ...     decisions: int = 1
        ...     width: int = 1
        ...     least: float = 0.0
        ...     look = lambda self, genes, goal: np.array([float(goal)])
        ...     decide = lambda self, genes, goal, proposal: round(100 * proposal)
        ...     actions = lambda self, genes: np.asarray(genes) / 100
        >>> agent = Agent(hidden=16, warmup=5, actor_rate=1e-2, critic_rate=1e-2, noise=0.2)
        >>> searcher = actor_critic(Dial(), goals=2, episodes=30, agent=agent, draw="cycle")
        >>> state = searcher.init(jax.random.key(0))
        >>> for _ in range(32):
        ...     ((goal, gene),) = asked = searcher.ask(state)
        ...     state = searcher.tell(state, asked, [-abs(gene / 100 - (0.7, 0.3)[goal])])
        >>> bool((abs(state.best[:, 0] - np.array([70, 30])) <= 10).all())
        True
    """
    agent = Agent() if agent is None else agent
    agent.check()
    errors.check_words("actor_critic", ("draw", draw, DRAWS))
    errors.check_numbers(
        "actor_critic",
        ("goals", goals, goals >= 1, "1 or more"),
        ("episodes", episodes, episodes >= 1, "1 or more"),
    )
    count, width = environment.decisions, environment.width
    size = agent.replay * count

    def init(key: jax.Array) -> Episodes:
        # NumPy, but for what is learned: rows are put in one by one.
        zero, rows, none = np.int32(0), np.zeros((size, width), np.float32), np.zeros(size, "f4")
        return Episodes(
            seed=jnp.ravel(jax.random.key_data(key)),
            episode=zero,
            failed=zero,
            policy=begun(key, width, agent),
            memory=Memory(rows, none, none, rows, none),
            stored=zero,
            best=np.zeros((goals, count), np.int32),
            scores=np.full(goals, -np.inf, np.float32),
        )

    def ask(state: Episodes) -> np.ndarray:
        # Draws depend on (seed, episode) alone: a search that is resumed proposes the same.
        number = int(state.episode)
        rng = np.random.default_rng([*np.asarray(state.seed).tolist(), number])
        goal = int(rng.integers(goals)) if draw == "uniform" else number % goals
        goal = goal if number < episodes else (number - episodes) % goals
        genes = np.zeros(0, int)
        for _ in range(count):
            if number < agent.warmup or agent.warmup >= episodes:
                proposal = rng.uniform(environment.least, 1)
            else:
                seen = environment.look(genes, goal)[None]
                proposal = float(_proposed(state.policy.actor, seen)[0])
                # sigma = sigma_0 decay^(episode - warm-up), none when the policy is read off
                sigma = agent.noise * agent.decay ** (number - agent.warmup)
                sigma = sigma if number < episodes else 0.0
                proposal = truncated_normal(rng, proposal, sigma, environment.least, 1.0)
            genes = np.append(genes, environment.decide(genes, goal, proposal))
        return np.array([[goal, *genes.tolist()]])

    def tell(state: Episodes, candidates: np.ndarray, scores: Any) -> Episodes:
        for row, score in zip(np.asarray(candidates), np.asarray(scores, float)):
            state = one(state, int(row[0]), row[1:], float(score))
        return state

    def one(state: Episodes, goal: int, genes: np.ndarray, score: float) -> Episodes:
        number, after = int(state.episode), state._replace(episode=state.episode + 1)
        if not np.isfinite(score):
            return after._replace(failed=state.failed + 1)
        if score > state.scores[goal]:
            best, scores = np.array(state.best), np.array(state.scores)
            best[goal], scores[goal] = genes, score
            after = after._replace(best=best, scores=scores)
        seen = np.array([environment.look(genes[:t], goal) for t in range(count + 1)])
        # The reward of an episode is copied to all of its decisions.
        rewards, more = np.full(count, score), np.arange(count) < count - 1
        rows = Memory(seen[:-1], environment.actions(genes), rewards, seen[1:], more)
        places = (int(state.stored) + np.arange(count)) % size
        memory = Memory(*(np.array(leaf) for leaf in state.memory))
        for leaf, new in zip(memory, rows):
            leaf[places] = new
        after = after._replace(memory=memory, stored=state.stored + count)
        if number < agent.warmup or number >= episodes:
            return after
        key = jax.random.fold_in(jax.random.wrap_key_data(state.seed), number)
        few = min(int(after.stored), size)
        return after._replace(policy=improver(agent, count)(state.policy, memory, few, key))

    def best(state: Episodes) -> tuple[np.ndarray, float]:
        return np.array([0, *np.asarray(state.best[0]).tolist()]), float(state.scores[0])

    return Searcher(init, ask, tell, best)
