"""Training in which few weights have a gradient and all decay, and a cut of what has decayed."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import allocate, blocks, errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.schedules import cubic
from jprune.sparsify.active_gradients import active_gradients
from jprune.sparsify.centripetal import contraction, strength_for
from jprune.stages.centripetal import drift
from jprune.stages.frame import check_prunable, record
from jprune.stages.prune import Prune, l1_of
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.optimizers import Sgd

MOMENTA = (0.98, 0.95, 0.9, 0.8, 0.5)
"""Momenta that are tried, the paper's for CIFAR-10 first: large ones need many steps."""
NEAR = 0.05
"""A cut that changes outputs by more of the largest one is said."""
ALL = "one_shot"
"""The schedule in which the last count holds from the first step on."""


@dataclasses.dataclass(frozen=True)
class Active:
    """A `Wrap`: few weights of all kernels together have a gradient in a step.

    Attributes:
        count: how many, in the end.
        total: how many weights there are.
        kernels: the leaves that compete.
        steps: of the training.
        schedule: how the count comes down, see `gsm`.
    """

    count: int
    total: int
    kernels: tuple[str, ...]
    steps: int
    schedule: str

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        of = blocks.weights(net.groups, self.kernels)
        density = cubic(self.count / self.total, 0, falling(self.steps))
        # `maximum`: a fraction that is rounded down must not end one below the count.
        count = lambda step: jnp.maximum(density(step) * self.total, self.count)
        active = active_gradients(of, self.count if self.schedule == ALL else count)
        # In front: weight decay and momentum are those of all weights.
        return lambda inner: optax.chain(active, inner)


@dataclasses.dataclass(frozen=True)
class TrainActive:
    """Training in which the weights with the largest |g w| have a gradient, and all decay.

    Attributes:
        train: how long, and how; its momentum and weight decay are those below.
        budget: of the weights that stay.
        momentum: see `gsm`.
        weight_decay: see `gsm`.
        nesterov: see `gsm`.
        schedule: see `gsm`.
        goal: see `gsm`.
        name: of the records.
    """

    train: Train
    budget: Budget
    momentum: float | None = None
    weight_decay: float | None = None
    nesterov: bool = False
    schedule: str = ALL
    goal: float = 4e-4
    name: str = "passive"

    def __post_init__(self):
        momentum = 0.0 if self.momentum is None else self.momentum
        decay = 0.0 if self.weight_decay is None else self.weight_decay
        if not (0 <= momentum < 1 and decay >= 0 and 0 < self.goal < 1):
            raise errors.ArgumentError(
                f"momentum={self.momentum}, weight_decay={self.weight_decay}, goal={self.goal}; "
                "momentum is in [0, 1), weight_decay 0 or more, goal in (0, 1)."
            )
        if self.schedule not in (ALL, "cubic"):
            raise errors.ArgumentError(
                f"schedule={self.schedule!r}; write 'one_shot', for the last number of active "
                "weights in all steps, or 'cubic'."
            )

    def check(self, task: Task) -> None:
        """Refuses other optimizers than SGD, whose momentum does it; as `check_prunable`."""
        self.train.takes("global sparse momentum", "warmup", "clip", "accumulate")
        check_prunable(task, self.budget, "weight")

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Passive weights that do not come down to the goal are said in a warning.

        Raises:
            ArgumentError: weights that are NaN.
        """
        net, sgd = Net(task), self.train.sgd(task)
        prunable = net.prunable(pruned.masks, self.budget)
        kernels = net.kernels(prunable)
        net.refuse_nan(pruned.variables, kernels)
        momentum, decay, left = self.decay(sgd)
        if left > self.goal:
            warnings.warn(
                f"passive weights come down to {left:.2g} of what they are in {sgd.taken} steps, "
                f"with momentum={momentum} and weight_decay={decay:.2g}: the cut will be felt. "
                "Write more epochs, a larger learning rate, or leave both to the default.",
                stacklevel=2,
            )
        total = sum(net.leaves(prunable)[path].size for path in kernels)
        wrap = Active(self.count(pruned, task, total), total, kernels, sgd.taken, self.schedule)
        stage = dataclasses.replace(
            self.train,
            momentum=momentum,
            weight_decay=decay,
            settings={**dict(self.train.settings), "nesterov": self.nesterov},
            wrap=wrap,
            name=self.name,
        )
        return stage.learner(pruned, task, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

    def decay(self, sgd: Sgd) -> tuple[float, float, float]:
        """The momentum, the weight decay, and what they leave of a passive weight in the end.

        Of what is not set, the largest of `MOMENTA` that has time to act, and with it the gentlest
        decay that does; where none has, those that leave least.
        """
        begin = 0 if self.schedule == ALL else falling(sgd.taken)
        rates = np.asarray(sgd.rate(np.arange(min(begin, sgd.taken - 1), sgd.taken)))
        found = []
        for momentum in MOMENTA if self.momentum is None else (self.momentum,):
            decay = self.weight_decay
            if decay is None:
                decay = strength_for(rates, momentum, self.goal, 1.0, self.nesterov)
            left = float(contraction(rates, momentum, decay, self.nesterov))
            found.append((momentum, decay, left if np.isfinite(left) else np.inf))
            if found[-1][-1] <= self.goal:
                return found[-1]
        return min(found, key=lambda each: each[-1])

    def count(self, pruned: Pruned, task: Task, total: int) -> int:
        """Q: how many of `total` weights have a gradient in a step."""
        if self.budget.kind == "density":
            # Q = floor(P / C); 1e-9: 0.29 of 100 is 29, and 28.999999999999996 in floats
            return max(1, int(total * float(self.budget.value) + 1e-9))
        # In MACs a weight of one layer is worth more than one of another: as many as the cut
        # would keep now.
        after, _ = cut(self.budget)(pruned, task, jax.random.key(0))
        prunable = Net(task).leaves(Net(task).prunable(pruned.masks, self.budget))
        kept = Net(task).leaves(after.masks)
        return sum(int(np.sum(kept[path])) for path in prunable)


def falling(steps: int) -> int:
    """In how many steps the count comes down: half of them; the other half is for the decay."""
    return max(steps // 2, 1)


def cut(budget: Budget) -> Prune:
    """The stage that keeps the largest weights of all kernels together."""
    return Prune(l1_of, allocate.global_topk, budget, per="weight")


@dataclasses.dataclass(frozen=True)
class CutPassive:
    """Keeps the largest weights of the net, and says what the others still were.

    Attributes:
        budget: what is kept, of weights.
        name: of the record: fractions kept, `passive` (the norm of what is cut over that of all
            kernels) and `drift` (the largest change of an output over the largest output, on
            validation images). Both are next to 0 where passive weights had time to decay; if not,
            a warning says so.
    """

    budget: Budget
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget, "weight")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks, and the record."""
        after, (line,) = cut(self.budget)(pruned, task, key)
        leaves = Net(task).leaves(pruned.variables)
        square = lambda path, keep: float((np.asarray(leaves[path], float) ** 2)[keep].sum())
        kept = {path: np.asarray(mask) for path, mask in Net(task).leaves(after.masks).items()}
        gone = sum(square(path, ~mask) for path, mask in kept.items())
        whole = sum(square(path, ...) for path in kept)
        moved = drift(task, pruned.variables, after.variables)
        if moved > NEAR:
            warnings.warn(
                f"the cut has changed an output by {moved:.2g} of the largest one: passive weights "
                "had not decayed, or other ones were active in the end. Write more epochs, a "
                "larger weight_decay or a larger batch.",
                stacklevel=2,
            )
        metrics = {"passive": (gone / max(whole, np.finfo(float).tiny)) ** 0.5, "drift": moved}
        return after, [record(self.name, {**line["metrics"], **metrics})]
