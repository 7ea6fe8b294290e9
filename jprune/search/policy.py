"""Deterministic policy gradients (DDPG): an actor, a critic, what they remember, and their update.

References:
    Lillicrap, Hunt, Pritzel, Heess, Erez, Tassa, Silver, Wierstra, Continuous control with deep
    reinforcement learning, 2015, arXiv 1509.02971; noise from a truncated normal, and a running
    mean of rewards that the critic does not see, as in the pruning methods.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import ndtr, ndtri

from jprune import errors


class Agent(NamedTuple):
    """Settings of the agent.

    Attributes:
        hidden: width of the two hidden layers of actor and critic.
        actor_rate: learning rate of Adam.
        critic_rate: the same.
        discount: of what later decisions bring.
        soft: how far the slow copies of actor and critic follow in an update.
        batch: decisions in an update.
        replay: episodes that are remembered.
        warmup: episodes at the beginning that are drawn evenly and not learned from yet; as many
            as there are episodes: random search.
        noise: standard deviation of proposals around the policy, at first.
        decay: of the noise, an episode.
        baseline: share of a batch in the running mean that is taken off rewards.
    """

    hidden: int = 300
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    discount: float = 1.0
    soft: float = 0.01
    batch: int = 64
    replay: int = 30
    warmup: int = 30
    noise: float = 0.5
    decay: float = 0.95
    baseline: float = 0.5

    def check(self) -> None:
        """Refuses numbers out of range.

        Raises:
            ArgumentError: one is.
        """
        counts = ((name, getattr(self, name)) for name in ("hidden", "batch", "replay"))
        shares = ((name, getattr(self, name)) for name in ("soft", "decay", "baseline"))
        rates = ((name, getattr(self, name)) for name in ("actor_rate", "critic_rate", "noise"))
        errors.check_numbers(
            "actor_critic",
            *((name, value, value >= 1, "1 or more") for name, value in counts),
            *((name, value, 0 < value <= 1, "in (0, 1]") for name, value in shares),
            *((name, value, 0 < value < np.inf, "above 0") for name, value in rates),
            ("discount", self.discount, 0 <= self.discount <= 1, "in [0, 1]"),
            ("warmup", self.warmup, self.warmup >= 0, "0 or more"),
        )


class Policy(NamedTuple):
    """What is learned: two nets, their slow copies, their optimizers, the mean of rewards."""

    actor: Any
    critic: Any
    slow_actor: Any
    slow_critic: Any
    actor_state: Any
    critic_state: Any
    mean: jax.Array
    updates: jax.Array


class Memory(NamedTuple):
    """Decisions that are remembered, [replay * decisions] of each; the oldest goes first."""

    seen: Any
    action: Any
    reward: Any
    then: Any
    more: Any


def proposed(actor: Any, seen: Any) -> jax.Array:
    """[n]: what the policy proposes, in (0, 1), for what is seen [n, width]."""
    return jax.nn.sigmoid(_net(actor, seen))


def truncated_normal(
    rng: np.random.Generator, mean: float, sigma: float, low: float, high: float
) -> float:
    """A draw from the normal distribution, given that it lies in [low, high]; sigma may be 0.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truncated_normal(rng, 0.5, 0.0, 0.2, 1.0), truncated_normal(rng, 0.1, 1e-9, 0.2, 1.0)
        (0.5, 0.2)
    """
    first, last = (ndtr((end - mean) / sigma) for end in (low, high)) if sigma > 0 else (0, 0)
    # Where nothing of the distribution is inside, its nearest point.
    if last - first < 1e-12:
        return float(np.clip(mean, low, high))
    return float(np.clip(mean + sigma * ndtri(rng.uniform(first, last)), low, high))


def _net(layers: Any, x: Any) -> jax.Array:
    """[n]: two hidden layers with relu."""
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return (x @ weight + bias)[:, 0]


def _worth(critic: Any, seen: Any, action: Any) -> jax.Array:
    """Q(s, a), [n]."""
    return _net(critic, jnp.concatenate([seen, action[:, None]], axis=1))


def begun(key: jax.Array, width: int, agent: Agent) -> Policy:
    """A policy that has learned nothing; `width` numbers are seen."""

    def net(key: jax.Array, inputs: int) -> Any:
        sizes = (inputs, agent.hidden, agent.hidden, 1)
        drawn = []
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            # U(-1 / sqrt(n), 1 / sqrt(n)), n inputs, for weights and biases
            shape, limit = (fan_in + 1, fan_out), fan_in**-0.5
            both = jax.random.uniform(
                jax.random.fold_in(key, number), shape, minval=-limit, maxval=limit
            )
            drawn.append((both[:-1], both[-1]))
        return drawn

    first, second = jax.random.split(key)
    actor, critic = net(first, width), net(second, width + 1)
    copies = jax.tree.map(jnp.copy, (actor, critic))
    return Policy(
        actor=actor,
        critic=critic,
        slow_actor=copies[0],
        slow_critic=copies[1],
        actor_state=optax.adam(agent.actor_rate).init(actor),
        critic_state=optax.adam(agent.critic_rate).init(critic),
        mean=jnp.zeros(()),
        updates=jnp.zeros((), jnp.int32),
    )


@functools.lru_cache(maxsize=8)  # equal agents share what was compiled
def improver(agent: Agent, updates: int) -> Any:
    """`(policy, memory, stored, key) -> policy` after so many updates, in one jitted call.

    Decisions are drawn with replacement from the `stored` first rows of the memory. A policy that
    is not finite afterwards is not taken: the old one stays.
    """
    of_actor, of_critic = optax.adam(agent.actor_rate), optax.adam(agent.critic_rate)

    def update(memory: Memory, stored: Any, p: Policy, key: Any) -> tuple[Policy, None]:
        chosen = jax.random.randint(key, (agent.batch,), 0, stored)
        s, a, r, then, more = (leaf[chosen] for leaf in memory)
        # b <- b + alpha (mean r - b)
        mean = p.mean + agent.baseline * (r.mean() - p.mean)
        mean = jnp.where(p.updates == 0, r.mean(), mean)
        # y = r - b + gamma Q'(s', mu'(s')), without the last term at the end of an episode
        later = _worth(p.slow_critic, then, proposed(p.slow_actor, then))
        target = r - mean + agent.discount * more * later
        # the critic descends (Q(s, a) - y)^2, the actor ascends Q(s, mu(s))
        loss = lambda critic: ((_worth(critic, s, a) - target) ** 2).mean()
        change, critic_state = of_critic.update(jax.grad(loss)(p.critic), p.critic_state)
        critic = optax.apply_updates(p.critic, change)
        loss = lambda actor: -_worth(critic, s, proposed(actor, s)).mean()
        change, actor_state = of_actor.update(jax.grad(loss)(p.actor), p.actor_state)
        actor = optax.apply_updates(p.actor, change)
        # theta' <- tau theta + (1 - tau) theta'
        follow: Any = lambda new, slow: optax.incremental_update(new, slow, agent.soft)
        slow_actor, slow_critic = follow(actor, p.slow_actor), follow(critic, p.slow_critic)
        nets = actor, critic, slow_actor, slow_critic
        moved = Policy(*nets, actor_state, critic_state, mean, p.updates + 1)
        return moved, None

    @jax.jit
    def improved(policy: Policy, memory: Memory, stored: Any, key: Any) -> Policy:
        keys = jax.random.split(key, updates)
        new, _ = jax.lax.scan(functools.partial(update, memory, stored), policy, keys)
        finite = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new)]).all()
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, policy)

    return improved
