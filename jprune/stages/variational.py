"""The stages of variational pruning: train gates, and choose the units that stay."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import allocate, errors
from jprune.allocate import fraction_kept
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task, Variables
from jprune.learners import gateable
from jprune.learners.norm_gates import early_shifts
from jprune.learners.variational import PRIORS, Rule, Settings, inference, variational_task
from jprune.masks import apply_masks
from jprune.sparsify import guarded
from jprune.stages.frame import fractions, record
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.optimizers import Sgd
from jprune.train.step import TrainState, plain

SELECTIONS = ("budget", "rule")

PULL = 2.5
"""Gates begin at sigma^2 = PULL / N, N being the number of training images: the Gaussian prior then
pulls mu by mu / (N sigma^2) = 0.4 mu, whatever N is. With N = 50,000 sigma is 0.007."""

RISES = {"gaussian": 0.0, "log_uniform": 40.0}
"""{prior: how much its divergence alone shall add to log sigma^2 in a training}; 0: no aim."""

RISE_A_STEP = 0.1
"""The largest aim per step, on average, so that short trainings aim lower."""


def gated_groups(task: Task, budget: Budget) -> list[str]:
    """Groups that get gates: a gate of 0 removes their units, and no floor keeps them whole.

    Raises:
        ArgumentError: there is none.
    """
    groups = Net(task).groups
    names = gateable(task.fn, groups, Net(task).shapes, task.example)
    open_ = [name for name in names if budget.floors.get(name, 0) < groups.sizes[name]]
    if not open_:
        raise errors.ArgumentError(
            f"all groups that variational pruning could gate are left whole: {', '.join(names)}. "
            "Freeze fewer of them."
        )
    return open_


def least_kept(budget: Budget, name: str) -> int:
    """The smallest number of units that a group keeps."""
    return max(budget.min_units, budget.floors.get(name, 0))


@dataclasses.dataclass(frozen=True)
class Gate:
    """Training of weights and of distributions over the scales of their norms.

    Afterwards the net has the means in its norms, `masks` has what the rule has taken out, and
    `extra` has the gates' `mu` and `log_var`, {group: [units]}. Metrics come with `kl`, the sum
    over units in nats, and `alive`, the fraction of gated units that are not pruned.

    Attributes:
        train: how long, and how; weight decay does not act on gates.
        budget: its floors say how many units of a group must stay.
        settings: prior, weight, rule; `warmup` is set here.
        warmup: fraction of the steps in which the weight of the divergence grows.
        mu: initial mean of every gate.
        log_var: initial log sigma^2 of every gate; None: see `variational`.
        variance_rate: factor of the learning rate of log sigma^2; None: see `variational`.
        name: of the records.
    """

    train: Train
    budget: Budget
    settings: Settings
    warmup: float = 0.5
    mu: float = 1.0
    log_var: float | None = None
    variance_rate: float | None = None
    name: str = "gate"

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: a net without norms to gate, or one that is masked already.
            DivergenceError: when it is finished, if something was not finite on the way.
        """
        if pruned.masks is not None:
            raise errors.ArgumentError(
                "variational training begins with a whole net, and came to one with masks. Put "
                "Gate before whatever prunes."
            )
        groups, names = Net(task).groups, gated_groups(task, self.budget)
        examples = task.data.sizes["train"]
        steps = self.train.steps(examples)
        settings = self.settings._replace(warmup=max(1, round(self.warmup * steps)))
        least = {name: least_kept(self.budget, name) for name in names}
        # A shift before its scale (a convolution's bias) belongs
        # to x in gamma (x + beta): it is not gated.
        shifts = early_shifts(task.fn, groups, Net(task).shapes, task.example)
        early = {*itertools.chain(*shifts.values())}
        gated = variational_task(task, groups, settings, examples, least, early)
        sizes = {name: groups.sizes[name] for name in names}
        start = pruned._replace(variables=self.start(pruned.variables, sizes, examples))
        sgd = self.train.sgd(task)
        guard, batch_size = Guarded(self.rate(sgd, examples)), self.train.batch_size
        # The divergence is all that pulls mu to 0; weight decay on gates would be a second prior.
        decayed = {"net": task.split(Net(task).is_kernel)[0], "gates": False}
        learner = plain(gated, start, None, sgd, key, batch_size, guard, decayed)
        # A net under gates is evaluated at their means: noise is for training alone.
        net = lambda state: inference(groups, gated.merge(state.params, state.rest), early)

        def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            return state, {**metrics, **_watched(state, metrics["loss"])}

        def finish(state: TrainState) -> Pruned:
            if not bool(state.opt_state.good):
                raise errors.DivergenceError(
                    "variational training diverged: an update was not finite, with a KL weight of "
                    f"{settings.weight}. Nothing moved any more, and the net of the stage before "
                    "is as it was. Write a smaller kl_weight, a larger log_var, or a smaller "
                    "--learning-rate."
                )
            alive = state.rest["alive"]
            # `alive` holds floats, since it is a factor of gamma in training.
            masks = {name: np.asarray(mask) > 0 for name, mask in alive.items()}
            variables = apply_masks(net(state), Net(task).weight_masks(masks))
            return Pruned(variables, masks, state.params["gates"], pruned.saved)

        return learner._replace(step=step, variables=net, finish=finish)

    def start(self, net: Variables, sizes: dict[str, int], examples: int) -> Variables:
        """The initial gated net: equal gates, and every unit alive."""
        # sigma^2 = PULL / N
        log_var = float(np.log(PULL / examples)) if self.log_var is None else self.log_var
        like = lambda value: {name: jnp.full(size, value) for name, size in sizes.items()}
        return {
            "net": net,
            "gates": {"mu": like(self.mu), "log_var": like(log_var)},
            "alive": like(1.0),
            "step": jnp.zeros((), jnp.int32),
        }

    def rate(self, sgd: Sgd, examples: int) -> float:
        """The factor of the learning rate of log sigma^2."""
        if self.variance_rate is not None:
            return self.variance_rate
        # More than this in few steps would be a rate at which
        # the noisy gradient of the loss diverges.
        rise = min(RISES[self.settings.prior], RISE_A_STEP * sgd.taken)
        if not rise:
            return 1.0
        rates = sgd.rate(np.arange(sgd.taken))
        # d(KL / N) / d(log sigma^2) = -1 / (2 N) in the log-uniform prior, and SGD with momentum m
        # moves by sum tau / (1 - m) times that: the factor with which the sum is `rise`.
        return float(2 * examples * rise * (1 - sgd.momentum) / np.sum(rates))

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

    def check(self, task: Task) -> None:
        """Refuses a net without norms to gate, and training that the rate is not derived for."""
        self.train.takes("variational", "warmup")
        gated_groups(task, self.budget)


@jax.jit
def _watched(state: TrainState, loss: jax.Array) -> dict[str, jax.Array]:
    """`alive`; and a loss of NaN once the guard has frozen training, so that the runner stops."""
    alive = jnp.concatenate([*state.rest["alive"].values()]).mean()
    return {"alive": alive, "loss": jnp.where(state.opt_state.good, loss, jnp.nan)}


@dataclasses.dataclass(frozen=True)
class Guarded:
    """How gates take part in training: their variances have a rate of their own.

    `guarded` is around the optimizer: it stops at the first update that is not finite.

    Attributes:
        variance_rate: factor of the learning rate of log sigma^2.
    """

    variance_rate: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del net, rate, key

        def faster(gradients: Any, _: Any) -> Any:
            gates = gradients["gates"]
            # Before the optimizer, so that its momentum gathers what is scaled. That is the same
            # as a rate of its own: no weight decay mixes with the gradients of gates.
            moved = jax.tree.map(lambda leaf: self.variance_rate * leaf, gates["log_var"])
            return {**gradients, "gates": {**gates, "log_var": moved}}

        return lambda inner: guarded(optax.chain(optax.stateless(faster), inner))


@dataclasses.dataclass(frozen=True)
class Select:
    """Masks the units whose gates are zero with the most certainty.

    Attributes:
        budget: what is kept of the dense net.
        prior: see `variational`.
        rule: when a unit is surely zero.
        select: "budget": in the order of their sureness, until the budget is met; "rule": those
            that the rule prunes, and no other.
        allocator: "global_topk" or "uniform".
        name: of the record: fractions kept, how many units were pruned beyond the `rule`, and the
            mean `kl` of kept and of pruned units in nats.
    """

    budget: Budget
    prior: str
    rule: Rule
    select: str = "budget"
    allocator: str = "global_topk"
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Refuses a budget that no choice of gated units meets."""
        sizes = Net(task).groups.sizes
        # Whether a budget can be met depends on sizes alone, so any scores do.
        zeros = {name: np.zeros(sizes[name]) for name in gated_groups(task, self.budget)}
        allocate.uniform(zeros, self.budget, Net(task).cost)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            ArgumentError: the net has no gates.
            BudgetError: a budget that no choice meets, or that the rule has not reached.
        """
        del key
        if not (isinstance(pruned.extra, dict) and {"mu", "log_var"} <= set(pruned.extra)):
            raise errors.ArgumentError(
                "the net comes without gates. Put Gate(train, budget) before Select."
            )
        before, prior = Net(task).unit_masks(pruned), PRIORS[self.prior]
        mu, log_var = pruned.extra["mu"], pruned.extra["log_var"]
        scores = {
            name: np.asarray(prior.worth(mu[name], log_var[name], self.rule), float) for name in mu
        }
        # float64 and -inf: what is gone never comes back, and ties are those of the scores.
        alive = {name: np.where(before[name], score, -np.inf) for name, score in scores.items()}
        if self.select == "budget":
            chosen = allocate.ALLOCATORS[self.allocator](alive, self.budget, Net(task).cost)
        else:
            chosen = {name: self.by_rule(name, score) for name, score in alive.items()}
        masks = {**before, **{name: np.asarray(mask, bool) for name, mask in chosen.items()}}
        metrics = fractions(task, masks)
        kind, cost = self.budget.kind, Net(task).cost
        if kind not in metrics:
            reached = fraction_kept(Net(task).groups, masks, self.budget, cost)
            self.refuse_unmet({**metrics, kind: reached})
        self.refuse_unmet(metrics)
        # A score above 1 is a unit that the rule would keep: the budget alone removes it.
        forced = sum(int(((scores[name] > 1) & ~masks[name]).sum()) for name in scores)
        divergence = {
            name: np.asarray(prior.divergence(mu[name], log_var[name])) for name in scores
        }
        kl_of_kept = np.concatenate([divergence[name][masks[name]] for name in scores])
        kl_of_gone = np.concatenate([divergence[name][~masks[name]] for name in scores])
        metrics |= {"forced": forced, "kl_kept": _mean(kl_of_kept), "kl_pruned": _mean(kl_of_gone)}
        variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
        return Pruned(variables, masks, None, pruned.saved), [record(self.name, metrics)]

    def by_rule(self, name: str, score: np.ndarray) -> np.ndarray:
        """Mask [units] of what the rule keeps; where a floor asks for more, the highest scores."""
        # Stable: among equal scores the lowest index stays, on every machine.
        order = np.argsort(-score, kind="stable")
        mask = score > 1
        mask[order[: least_kept(self.budget, name)]] = True
        return mask & (score > -np.inf)

    def refuse_unmet(self, parts: dict[str, float]) -> None:
        """Refuses a budget that the rule has not reached.

        Raises:
            BudgetError: the message says what the rule has reached.
        """
        reached = parts.get(self.budget.kind)
        if self.select == "rule" and reached is not None and reached > float(self.budget.value):
            raise errors.BudgetError(
                f"Budget({self.budget.kind}={self.budget.value}) is not reached: the rule keeps "
                f"{reached:.4f} of the dense net's {self.budget.kind} (density "
                f"{parts['density']:.4f}, params {parts['params']:.4f}, macs {parts['macs']:.4f}). "
                "Train longer, write a larger kl_weight or wider thresholds, or select=budget."
            )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
