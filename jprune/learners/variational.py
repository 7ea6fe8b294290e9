"""Distributions over the scales of batch norms, which say what channels are surely zero.

The norm of a gated unit is gamma (x + beta), its shift inside the product, so that gamma = 0
removes it. All norms that write a residual stream share the gamma of a unit. Gamma is drawn from
N(mu, sigma^2), once a unit and step; mu and log sigma^2 are learned.

References:
    Zhao, Ni, Zhang, Zhao, Zhang, Tian, Variational convolutional neural network pruning, 2019 [43].
    Drawing: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv 1312.6114. The
    log-uniform prior: Molchanov, Ashukha, Vetrov, Variational dropout sparsifies deep neural
    networks, 2017, arXiv 1701.05369.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune.base import Batch, Groups, Task, Variables
from jprune.learners.norm_gates import Gates, fold_gates, sample_gates

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""Molchanov et al.'s fit of the divergence from a log-uniform prior."""


def kl_gaussian(mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mu, sigma^2) || N(0, sigma^2)) = mu^2 / (2 sigma^2), in nats.

    Example:
        >>> print(kl_gaussian(jnp.array(3.0), jnp.array(0.0)))
        4.5
    """
    # mu^2 / (2 sigma^2)
    return 0.5 * mu**2 * jnp.exp(-log_var)


def kl_log_uniform(mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mu, sigma^2) || p(|gamma|) ~ 1 / |gamma|) up to a constant, in nats.

    With alpha = sigma^2 / mu^2 it is k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2,
    which falls to 0 as alpha grows; the fit is within 0.01 of the exact divergence.

    Example:
        >>> print(kl_log_uniform(jnp.array(1.0), jnp.array(0.0)).round(4))
        0.4312
    """
    log_alpha = log_ratio(mu, log_var)
    # k1 - k1 sigmoid(z) = k1 sigmoid(-z), without cancelling for large z
    fitted = K1 * jax.nn.sigmoid(-(K2 + K3 * log_alpha))
    # log(1 + 1 / alpha) = softplus(-log alpha)
    return fitted + 0.5 * jax.nn.softplus(-log_alpha)


def log_ratio(mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """Log alpha = log(sigma^2 / mu^2); finite, with a gradient of 0, at mu = 0."""
    # Log alpha = log sigma^2 - log mu^2; 1e-12 is far below any mu that the rule keeps
    return log_var - jnp.log(mu**2 + 1e-12)


class Prior(NamedTuple):
    """The prior of a gate: its pull towards zero, and when a gate counts as zero.

    Attributes:
        divergence: `(mu, log sigma^2) -> nats`, elementwise.
        worth: `(mu, log sigma^2, rule) -> scores`, elementwise; the rule prunes at 1 or less.
    """

    divergence: Callable[[jax.Array, jax.Array], jax.Array]
    worth: Callable[[Any, Any, "Rule"], Any]


class Rule(NamedTuple):
    """When a unit counts as zero.

    Attributes:
        mu: largest |mu|, with the Gaussian prior.
        sigma: largest sigma, with the Gaussian prior: an uncertain unit is not a zero one.
        log_alpha: smallest log(sigma^2 / mu^2), with the log-uniform prior.
    """

    mu: float = 0.02
    sigma: float = 0.01
    log_alpha: float = 3.0


PRIORS: dict[str, Prior] = {
    "gaussian": Prior(
        kl_gaussian,
        # max(|mu| / tau_mu, sigma / tau_sigma) <= 1  <=>  |mu| <= tau_mu and sigma <= tau_sigma
        lambda mu, log_var, rule: jnp.maximum(
            jnp.abs(mu) / rule.mu, jnp.exp(0.5 * log_var) / rule.sigma
        ),
    ),
    "log_uniform": Prior(
        kl_log_uniform,
        # exp(tau - log alpha) <= 1  <=>  log alpha >= tau
        lambda mu, log_var, rule: jnp.exp(rule.log_alpha - log_ratio(mu, log_var)),
    ),
}


class Settings(NamedTuple):
    """Settings of variational training.

    Attributes:
        prior: a name of `PRIORS`.
        weight: of the divergence; 1 is the evidence lower bound.
        warmup: steps in which the weight grows linearly.
        rule: when a unit is surely zero.
        masks: whether a unit that the rule prunes in training is removed at once, and for good.
    """

    prior: str = "gaussian"
    weight: float = 1.0
    warmup: int = 1
    rule: Rule = Rule()
    masks: bool = True


def variational_task(
    task: Task,
    groups: Groups,
    settings: Settings,
    examples: int,
    least: Mapping[str, int],
    early: Collection[str] = (),
) -> Task:
    """The same task with gates: variables {"net", "gates", "alive", "step"}.

    Trained are the net's parameters and the gates {"mu", "log_var"}; gated scales of the net are
    not read. The loss of an example is the task's, plus weight * KL / examples: KL counts once for
    the data set. Its outputs are for its own `loss` and `metrics`, which has `kl` in nats, and
    `loss` whatever the task's metrics are.

    Args:
        task: of the net.
        groups: of the net.
        settings: prior, weight, rule.
        examples: N, of the training split.
        least: {group: the smallest number of units that stay, whatever the rule says}.
        early: shifts that stand before their scale; see `early_shifts`.
    """
    prior, rule = PRIORS[settings.prior], settings.rule

    def gamma_of(variables: Variables, values: Gates) -> Gates:
        return {name: values[name] * alive for name, alive in variables["alive"].items()}

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> Any:
        # Gates are drawn apart from what the net draws.
        first, second = jax.random.split(key)
        mu, log_var = variables["gates"]["mu"], variables["gates"]["log_var"]
        gamma = gamma_of(variables, sample_gates(first, mu, log_var))
        net = fold_gates(groups, variables["net"], gamma, early)
        out, new = task.train_fn(net, x, second)
        parts = gamma_of(variables, jax.tree.map(prior.divergence, mu, log_var))
        divergence = sum((jnp.sum(part) for part in parts.values()), jnp.zeros(()))
        ramp = jnp.minimum(1.0, (variables["step"] + 1) / settings.warmup)
        return (out, divergence, settings.weight * ramp * divergence / examples), new

    def metrics(outs: tuple[Any, ...], batch: Batch) -> dict[str, jax.Array]:
        return {
            "loss": task.loss(outs[0], batch),
            **task.metrics(outs[0], batch),
            "kl": jnp.full_like(batch["weight"], outs[1]),
        }

    def update(variables: Variables, new: Any) -> Variables:
        gates, alive = variables["gates"], variables["alive"]
        if settings.masks:
            worth = lambda name: prior.worth(gates["mu"][name], gates["log_var"][name], rule)
            alive = {n: _alive(mask, worth(n), least.get(n, 1)) for n, mask in alive.items()}
        # The mean of a removed unit is 0 from now on: momentum alone would move it away.
        mu = {name: gates["mu"][name] * mask for name, mask in alive.items()}
        return {
            "net": task.update(variables["net"], new),
            "gates": {**gates, "mu": mu},
            "alive": alive,
            "step": variables["step"] + 1,
        }

    return task._replace(
        fn=lambda variables, x: task.fn(inference(groups, variables, early), x),
        train_fn=train_fn,
        loss=lambda outs, batch: task.loss(outs[0], batch) + outs[2],
        metrics=metrics,
        split=functools.partial(_split, task),
        merge=lambda trained, rest: {
            **rest,
            "net": task.merge(trained["net"], rest["net"]),
            "gates": trained["gates"],
        },
        update=update,
    )


def _split(task: Task, variables: Variables) -> tuple[Any, Any]:
    """(what is trained: net and gates, what is not: statistics, masks and the step's number)."""
    params, rest = task.split(variables["net"])
    trained = {"net": params, "gates": variables["gates"]}
    return trained, {"net": rest, "alive": variables["alive"], "step": variables["step"]}


def _alive(before: jax.Array, worth: jax.Array, least: int) -> jax.Array:
    """Units alive after the rule; those before it where too few would be."""
    after = before * (worth > 1)
    # All or nothing, without sorting in a step: `Select` ranks the units at the end.
    return jnp.where(after.sum() >= least, after, before)


def inference(groups: Groups, variables: Variables, early: Collection[str] = ()) -> Variables:
    """The net without noise: gamma is mu, and 0 where a unit is gone."""
    mu, alive = variables["gates"]["mu"], variables["alive"]
    gamma = {name: mu[name] * alive[name] for name in mu}
    return fold_gates(groups, variables["net"], gamma, early)
