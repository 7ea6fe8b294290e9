"""Variational pruning: a distribution over the scale of every channel, and the surely zero ones go.

A net is trained from scratch with norms gamma (x + beta), gamma being drawn from
N(mu, sigma^2) in every step, and with a divergence of these distributions from a prior that wants
zeros. Channels whose gamma is surely zero are removed; nothing is trained afterwards. A residual
stream has one gamma for all norms that write it.

While it trains, a channel that the rule prunes is gone for good: the mask is *frozen*, its gamma
exactly 0 from then on.

References:
    Zhao, Ni, Zhang, Zhao, Zhang, Tian, Variational convolutional neural network pruning, 2019 [43].
    The log-uniform prior: Molchanov, Ashukha, Vetrov, 2017, arXiv 1701.05369. The paper has no
    official code; thresholds and the mask in training are those of a re-implementation, whose
    sampling in inference is not copied.
"""

from jprune import allocate, errors
from jprune.base import Budget, Recipe
from jprune.learners.variational import PRIORS, Rule, Settings
from jprune.stages.frame import framed
from jprune.stages.reinitialise import BeginAnew
from jprune.stages.train import Train
from jprune.stages.variational import SELECTIONS, Gate, Select


def variational(
    budget: Budget,
    train: Train | None,
    *,
    prior: str = "gaussian",
    kl_weight: float = 1.0,
    warmup: float = 0.5,
    mu: float = 1.0,
    log_var: float | None = None,
    variance_rate: float | None = None,
    mu_threshold: float = 0.02,
    sigma_threshold: float = 0.01,
    log_alpha_threshold: float = 3.0,
    masks: bool = True,
    select: str = "budget",
    allocator: str = "global_topk",
) -> Recipe:
    """Trains with random scales, and removes the channels whose scale is surely zero.

    Gated are units whose producers all end in a batch norm of their own; others stay whole.

    Args:
        budget: what is kept.
        train: training of the dense net, and of the gated one beside it. The paper's CIFAR-10 nets
            take 300 epochs of SGD from 0.1 with batches of 128.
        prior: "gaussian": N(0, sigma^2) with the sigma of the unit itself, KL = mu^2 / (2 sigma^2);
            "log_uniform": that of sparse variational dropout.
        kl_weight: of the sum of all KL over the number of training images; 1 is the evidence lower
            bound.
        warmup: fraction of the steps in which this weight grows in a line.
        mu: of all units in the beginning.
        log_var: log sigma^2 of all units in the beginning. None takes log(2.5 / N) with N training
            images, -10 for CIFAR-10: what the Gaussian prior takes off mu is mu / (N sigma^2) times
            the learning rate, and a smaller sigma makes that too large a step.
        variance_rate: factor of the learning rate of log sigma^2. None is 1 with the Gaussian
            prior. The log-uniform one has a gradient of 1 / (2 N), with which SGD hardly moves in
            300 epochs: None takes the factor with which it alone would add 40 in the training.
        mu_threshold: with the Gaussian prior a unit is surely zero if |mu| is at most this
        sigma_threshold: and sigma at most this. With fewer than 25,000 images sigma begins above
            0.01 (see `log_var`) and hardly falls: `select="rule"` then wants a larger one, about
            twice sqrt(2.5 / N).
        log_alpha_threshold: with the log-uniform prior, if log(sigma^2 / mu^2) is at least this.
        masks: whether a unit that is surely zero in training is gone for good.
        select: "budget": in the order of their sureness, max(|mu| / mu_threshold, sigma /
            sigma_threshold) with the Gaussian prior, until the budget is met, past the thresholds
            too. Sigma begins at sqrt(2.5 / N) and hardly falls: of 5,000 images it is 0.022, and
            decides wherever |mu| is below 0.045; of 50,000 it is 0.007 and decides below 0.014.
            "rule": the thresholds alone, without the budget's multiples, and an error where the
            budget is not met.
        allocator: of "budget": "global_topk" (all groups compete) or "uniform".

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, a number out of range, or a net that is read and not trained.

    Example:
        >>> [stage.name for stage in variational(Budget(macs=0.5), Train(14, 0.1))]
        ['train', 'save', 'dense', 'begin_anew', 'gate', 'prune', 'before_finetune']
    """
    if train is None:
        raise errors.ArgumentError(
            "variational trains a net from scratch, and this one is read from a file. Leave out "
            "--weights."
        )
    errors.check_words(
        "variational",
        ("prior", prior, PRIORS),
        ("select", select, SELECTIONS),
        ("allocator", allocator, allocate.ALLOCATORS),
    )
    above = {"mu_threshold": mu_threshold, "sigma_threshold": sigma_threshold}
    if (
        kl_weight < 0
        or not 0 <= warmup <= 1
        or (variance_rate or 0) < 0
        or min(above.values()) <= 0
    ):
        raise errors.ArgumentError(
            f"variational(kl_weight={kl_weight}, warmup={warmup}, variance_rate={variance_rate}, "
            f"mu_threshold={mu_threshold}, sigma_threshold={sigma_threshold}); warmup is in "
            "[0, 1], the thresholds are above 0, the others 0 or more."
        )
    rule = Rule(mu_threshold, sigma_threshold, log_alpha_threshold)
    settings = Settings(prior, kl_weight, rule=rule, masks=masks)
    return framed(
        train,
        # The gated net is trained from scratch, beside a dense one that says what was lost.
        BeginAnew(),
        Gate(train, budget, settings, warmup, mu, log_var, variance_rate),
        Select(budget, prior, rule, select, allocator),
    )


METHODS = {"variational": variational}
