"""Training with a penalty on the scales of norms, and pruning of units with small scales."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jprune import allocate, blocks, criteria, errors
from jprune.base import Budget, Criterion, Learner, Pruned, Records, Schedule, Task, Variables
from jprune.masks import apply_masks
from jprune.sparsify.l1 import l1_decay, l1_gradient
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.prune import Prune
from jprune.stages.silent import folded, noise
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.units import expand

HOW = ("prox", "subgradient")
REACH = 2.0
"""How often the default strength would take the mean scale in a training: the paper's 1e-4 takes
about 3 off scales that begin at 0.5; the first steps of momentum, and the loss, take their share.
"""
WEAK = 0.1
"""A penalty that takes less than this of the mean scale has no time to act."""


def penalised(net: Net, budget: Budget) -> blocks.Blocks:
    """Scales of the units that may go: those of groups that no floor keeps whole.

    Raises:
        StructureError: there is none.
    """
    sizes = net.groups.sizes
    # Never 0 for groups that the floors do not name.
    may_go = [name for name in sizes if budget.floors.get(name, 0) < sizes[name]]
    found = blocks.scales(net.groups).where(may_go)
    if not found:
        raise errors.StructureError(
            f"{net.task.name} has no unit with a scale that may go: it has no norm with scales, or "
            "its channels are frozen or kept by floors. Write another method, such as l1 or ssl."
        )
    return found


@dataclasses.dataclass(frozen=True)
class L1OfScales:
    """A `Wrap` with an L1 penalty on the scales of norms.

    Attributes:
        strength: of the penalty.
        how: "prox" (`sparsify.l1_decay`, behind the optimizer) or "subgradient"
            (`sparsify.l1_gradient`, before it).
        budget: whose floors leave groups without a penalty.
    """

    strength: float
    how: str
    budget: Budget

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del key
        scales = penalised(net, self.budget)
        if self.how == "prox":
            behind = l1_decay(scales, self.strength, rate)
            return lambda inner: optax.chain(inner, behind)
        before = l1_gradient(scales, self.strength)
        return lambda inner: optax.chain(before, inner)


@dataclasses.dataclass(frozen=True)
class ShrinkScales:
    """Training with an L1 penalty on the scales of norms.

    Attributes:
        train: how long, and how.
        budget: whose floors leave groups without a penalty.
        strength: of the penalty, 0 or more; None: that with which a scale of the mean size is 0
            after half of the steps, if the loss does not object.
        how: "prox" or "subgradient".
        name: of the records.
    """

    train: Train
    budget: Budget
    strength: float | None = None
    how: str = "prox"
    name: str = "shrink"

    def __post_init__(self):
        if self.how not in HOW or not (self.strength is None or self.strength >= 0):
            raise errors.ArgumentError(
                f"strength={self.strength}, how={self.how!r}; write a strength of 0 or more, or "
                f"None, and how as one of {', '.join(HOW)}."
            )

    def check(self, task: Task) -> None:
        """Refuses a net without scales, and an average of zeros that come late."""
        self.train.takes("a penalty on scales", "optimizer", "warmup", "clip", "accumulate")
        penalised(Net(task), self.budget)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; a strength without time to act is said in a warning."""
        self.check(task)
        mean = mean_scale(Net(task), self.budget, pruned.variables)
        optimizer = self.train.optimizer_for(task)
        # sum over steps of tau_t / (1 - m): how far a penalty of strength 1 moves a scale
        far = float(np.sum(np.asarray(optimizer.stride(np.arange(optimizer.taken)))))
        usual = REACH * mean / far
        strength = usual if self.strength is None else self.strength
        if self.strength is not None and 0 < self.strength * far < WEAK * mean:
            warnings.warn(
                f"strength={self.strength} takes {self.strength * far:.2g} off a scale in "
                f"{optimizer.taken} steps, and scales are {mean:.2g} on average: the penalty is "
                f"too weak for so few steps. Write strength={usual:.2g}, or more epochs.",
                stacklevel=2,
            )
        wrap = L1OfScales(strength, self.how, self.budget)
        stage = dataclasses.replace(self.train, wrap=wrap, name=self.name)
        return stage.learner(pruned, task, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


def mean_scale(net: Net, budget: Budget, variables: Variables) -> float:
    """The mean |gamma| of the units that may go and have not gone yet; 1 where all are 0."""
    absolute = {path: np.abs(np.asarray(leaf)) for path, leaf in net.leaves(variables).items()
                if path in penalised(net, budget).counted}  # fmt: skip
    sizes = np.concatenate([leaf[leaf > 0] for leaf in absolute.values()])
    return float(sizes.mean()) if sizes.size else 1.0


@dataclasses.dataclass(frozen=True)
class PruneScales:
    """Masks the units with the smallest scales in the whole net.

    Attributes:
        budget: what may be kept.
        across: how several scales of a unit become one score, see `criteria.scales`.
        fold: whether what the units still say, the constant f(shift), goes into their readers'
            biases or running means, where it is the same at all positions; False drops it.
        name: of the record: fractions kept, `threshold` (the smallest scale that stays), `zeros`
            (the fraction of scored units whose scale is exactly 0) and `folded` (the fraction of
            the units that go whose constant was folded).
    """

    budget: Budget
    across: str = "mean"
    fold: bool = True
    name: str = "prune"

    def criterion(self, task: Task) -> Criterion:
        """The scores' criterion."""
        return criteria.scales(Net(task).groups, self.across)

    def check(self, task: Task) -> None:
        """Refuses a net without scales, and a budget that its units with scales cannot meet."""
        net = Net(task)
        check_prunable(task, self.budget)
        self.criterion(task)
        # Groups without scales stay whole.
        some = {name: np.ones(block.size) for name, block in blocks.scales(net.groups).items()}
        allocate.refuse_impossible(some, self.budget, net.cost)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, masked variables, and a record."""
        net = Net(task)
        before = net.unit_masks(pruned)
        prune = Prune(lambda *_: self.criterion(task), allocate.global_topk, self.budget)
        scores = prune.scores(pruned.variables, task, key)
        masks = prune.of_units(pruned, task, scores)
        gone = {n: np.asarray(before[n]) & ~masks[n] for n in scores}
        variables, silent = pruned.variables, dict[str, np.ndarray]()
        if self.fold and any(units.any() for units in gone.values()):
            # gamma <- 0 for what goes: behind the norm only its shift is left, a constant
            scaled = apply_masks(variables, expand(net.groups, masks, ("scale",)))
            variables, silent = folded(task, scaled, gone, noise(task, key))
        flat = np.concatenate([np.asarray(scores[n])[np.asarray(before[n], bool)] for n in scores])
        stays = np.concatenate([np.asarray(scores[n])[masks[n]] for n in scores])
        count = lambda units: sum(int(np.sum(each)) for each in units.values())
        metrics = {
            **fractions(task, masks),
            "threshold": float(stays.min(initial=np.inf)),
            "zeros": float((flat == 0).mean()),
            "folded": count(silent) / max(count(gone), 1),
        }
        variables = apply_masks(variables, net.weight_masks(masks))
        after = pruned._replace(variables=variables, masks=masks)
        return after, [record(self.name, metrics)]
