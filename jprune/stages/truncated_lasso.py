"""Columns brought to 0 weakest first, by a penalty that spares the others; or fixed patterns."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jprune import allocate, blocks, errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.blocks import Blocks
from jprune.masks import apply_masks
from jprune.masks.topk import best
from jprune.sparsify import group_lasso, truncated_lasso
from jprune.stages.frame import fractions, record
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name

PATTERNS = ("cross", "position", "norm")
RANKINGS = 20
"""How often groups are ranked, where nothing else is asked for."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Groups of kernels that compete, and how many of every kernel are kept.

    Attributes:
        budget: what may be kept; a floor of its whole size leaves a group's kernels out.
        kind: "column" or "position".
        keep: fraction kept of all kernels, of each in execution order, or by name; None: the same
            fraction of all that meets the budget.
        names: of kernels; None: all but those that make the net's outputs, whose columns are units:
            without one of them, all that makes the unit is dead too.
    """

    budget: Budget
    kind: str = "column"
    keep: Numbers | None = dataclasses.field(default=None, hash=False)
    names: tuple[str, ...] | None = None

    def of(self, task: Task) -> Blocks:
        """The groups.

        Raises:
            StructureError: a name that the net does not have, or a net without such groups.
        """
        groups, floors = Net(task).groups, self.budget.floors
        (family,) = blocks.of_kinds(groups, (self.kind,), self.names, floors=floors)
        inner = [name for name in family if not groups.layers[name].last]
        return family if self.names is not None or not inner else family.where(inner)

    def check(self, task: Task) -> None:
        """Refuses fractions that are none, and a budget that these groups cannot meet.

        Raises:
            ArgumentError: not as many fractions as kernels, or one outside (0, 1].
            BudgetError: the budget is out of reach.
        """
        family = self.of(task)
        self.fractions(family)
        whole = {family.kind: {name: np.ones(block.size) for name, block in family.items()}}
        allocate.refuse_impossible_jointly((family,), whole, self.budget, Net(task).cost)

    def fractions(self, family: Blocks) -> dict[str, float]:
        """{kernel: fraction kept}, as `keep` says; 1 where it says nothing."""
        fractions = per_name(1.0 if self.keep is None else self.keep, (*family,), "keep")
        if not all(0 < fraction <= 1 for fraction in fractions.values()):
            raise errors.ArgumentError(
                f"keep={self.keep!r}; each is the fraction of groups kept, in (0, 1]."
            )
        return fractions

    def counts(self, task: Task, pruned: Pruned) -> dict[str, int]:
        """{kernel: how many groups are kept}.

        Raises:
            BudgetError: no counts meet the budget, or those asked for do not.
        """
        net, family = Net(task), self.of(task)
        norms = blocks.norms(family, pruned.variables)
        if self.keep is None:
            cost, of_kind = net.cost, {self.kind: norms}
            alive = allocate.jointly((family,), of_kind, self.budget, cost, allocate.uniform)
            return {name: int(np.sum(mask)) for name, mask in alive[self.kind].items()}
        # n - round((1 - keep) n): the pruned ones are rounded, as they are everywhere.
        counts = {
            name: max(1, family[name].size - round((1 - part) * family[name].size))
            for name, part in self.fractions(family).items()
        }
        alive = {name: best(norm, counts[name]) for name, norm in norms.items()}
        masks = blocks.masks(family, alive, pruned.masks)
        reached = allocate.fraction_kept(net.groups, masks, self.budget, net.cost)
        if reached > float(self.budget.value) + 1e-9:
            raise errors.BudgetError(
                f"keep={self.keep!r} keeps {self.budget.kind}={reached:.4f} of the dense net, and "
                f"{self.budget.kind}={self.budget.value} was asked for. Write smaller fractions, "
                "leave keep out, or ask for more."
            )
        return counts


@dataclasses.dataclass(frozen=True)
class Weakest:
    """A `Wrap`: a penalty on the weakest groups, see `jprune.sparsify.truncated_lasso`.

    Attributes:
        columns: the groups.
        strengths: {block: lambda}.
        removed: {block: how many groups are targeted in the end}.
        ramp: steps in which all of them come to be targeted; None: plain group lasso on all groups,
            of which those that are targeted are no special ones.
        every: steps from one ranking to the next.
        how: "prox" or "subgradient".
        epsilon: the norm at which a group is 0 for good.
    """

    columns: Columns
    strengths: Mapping[str, float] = dataclasses.field(hash=False)
    removed: Mapping[str, int] = dataclasses.field(hash=False)
    ramp: int | None
    every: int
    how: str
    epsilon: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del key
        family = self.columns.of(net.task)
        if self.ramp is None:
            step = group_lasso(
                family, self.strengths, rate, how=self.how, threshold=self.epsilon, least=1
            )
            return lambda inner: optax.chain(inner, step)
        step = truncated_lasso(
            family, self.strengths, self.removed, rate,
            ramp=optax.linear_schedule(0.0, 1.0, self.ramp),
            every=self.every, how=self.how, epsilon=self.epsilon,
        )  # fmt: skip
        return lambda inner: optax.chain(inner, step)


@dataclasses.dataclass(frozen=True)
class ShrinkWeakest:
    """Training in which ever more of the weakest groups of every block are pulled to 0.

    Attributes:
        train: how long, and how.
        columns: the groups, and how many of each kernel the budget keeps.
        strength: lambda of all blocks, of each in execution order, or by name. None: what brings
            the largest group that is to go to 0 in half of the steps behind the ramp, if gradients
            do not hold it.
        ramp: fraction of the steps in which all that is to go comes to be targeted, in (0, 1).
            None: plain group lasso on all groups, whose default lambda brings the largest group
            that is to go to 0 in all of the steps.
        every: steps from one ranking to the next; None: 20 rankings.
        how: "prox" or "subgradient".
        epsilon: the norm at which a targeted group is 0 for good; of plain group lasso, the size
            below which a weight becomes 0 after every subgradient step.
        name: of the records.
    """

    train: Train
    columns: Columns
    strength: Numbers | None = dataclasses.field(default=None, hash=False)
    ramp: float | None = 0.5
    every: int | None = None
    how: str = "prox"
    epsilon: float = 1e-4
    name: str = "shrink"

    def __post_init__(self):
        ramp = 0.5 if self.ramp is None else self.ramp
        fits = 0 < ramp < 1 and self.epsilon >= 0 and (self.every is None or self.every >= 1)
        if not fits or self.how not in ("prox", "subgradient"):
            raise errors.ArgumentError(
                f"ramp={self.ramp}, epsilon={self.epsilon}, every={self.every}, how={self.how!r}; "
                "ramp is in (0, 1), epsilon 0 or more, every 1 or more, and how 'prox' or "
                "'subgradient'."
            )

    def strengths(self, family: Blocks) -> dict[str, float]:
        """{block: lambda}, as they were written.

        Raises:
            ArgumentError: not as many as blocks, or a negative one.
        """
        strengths = per_name(
            0.0 if self.strength is None else self.strength, (*family,), "strength"
        )
        if not min(strengths.values()) >= 0:  # refuses NaN too
            raise errors.ArgumentError(f"strength={self.strength!r}; each is 0 or more.")
        return strengths

    def check(self, task: Task) -> None:
        """Refuses an average of zeros that come late, and what the columns and strengths do."""
        self.train.takes("group lasso", "optimizer", "warmup", "clip", "accumulate")
        self.columns.check(task)
        self.strengths(self.columns.of(task))

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: weights that are not finite.
            BudgetError: no counts meet the budget.
        """
        self.check(task)
        family = self.columns.of(task)
        # A NaN would be no one's neighbour in a ranking.
        Net(task).refuse_nan(pruned.variables, tuple(sorted(family.counted)))
        kept = self.columns.counts(task, pruned)
        removed = {name: block.size - kept[name] for name, block in family.items()}
        rates = self.train.rates(task)
        ramp = None if self.ramp is None else max(1, round(self.ramp * len(rates)))
        strengths = self.strengths(family)
        if self.strength is None:
            # lambda / 2 sum of the rates behind the ramp = ||w_g|| of the largest one that goes
            travel = float(rates.sum() if ramp is None else rates[ramp:].sum() / 2)
            strengths = {
                name: float(np.sort(norm)[max(removed[name] - 1, 0)]) / max(travel, 1e-12)
                for name, norm in blocks.norms(family, pruned.variables).items()
            }
        every = self.every or max(1, len(rates) // RANKINGS)
        # The proximal step of all groups makes exact zeros, and needs no threshold.
        epsilon = 0.0 if ramp is None and self.how == "prox" else self.epsilon
        wrap = Weakest(self.columns, strengths, removed, ramp, every, self.how, epsilon)
        stage = dataclasses.replace(self.train, wrap=wrap, name=self.name)
        return stage.learner(pruned, task, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class ReadOffColumns:
    """Makes masks of the groups that are exactly 0, and meets a budget.

    Attributes:
        columns: the groups, and how many of each kernel the budget keeps.
        correct: where too many groups are other than 0, cut those too of which least is left, down
            to the counts of the columns; False: raise an error that says what was reached.
        name: of the record: fractions kept, `reached` by the penalty alone, in the budget's unit,
            and `zeros`, the fraction of groups that it has brought to 0.
    """

    columns: Columns
    correct: bool = True
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `Columns.check` does."""
        self.columns.check(task)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            BudgetError: the penalty has not reached the budget, and is not corrected.
        """
        del key
        net, budget = Net(task), self.columns.budget
        family = self.columns.of(task)
        norms = blocks.norms(family, pruned.variables)
        alive = {name: norm > 0 for name, norm in norms.items()}
        masks = blocks.masks(family, alive, pruned.masks)
        reached = allocate.fraction_kept(net.groups, masks, budget, net.cost)
        flat = np.concatenate([*alive.values()])
        if reached > float(budget.value) + 1e-9:
            if flat.all():
                warnings.warn(
                    f"the penalty has made none of {flat.size} {family.kind}s 0, so that the cut "
                    "does all of the work. Write a larger strength, more epochs or a larger stop.",
                    stacklevel=2,
                )
            if not self.correct:
                raise errors.BudgetError(
                    f"the penalty reached {budget.kind}={reached:.4f} of the dense net, and "
                    f"{budget.kind}={budget.value} was asked for. Write a larger strength, more "
                    "epochs, or correct=true."
                )
            # Of the dense net, as while it trained: the same counts.
            dense = pruned.saved.get("dense", pruned.variables)
            counts = self.columns.counts(task, pruned._replace(variables=dense))
            alive = {name: best(norm, counts[name]) & alive[name] for name, norm in norms.items()}
            masks = blocks.masks(family, alive, pruned.masks)
        variables = apply_masks(pruned.variables, net.weight_masks(masks))
        metrics = {"reached": reached, "zeros": float(1 - flat.mean())}
        after = pruned._replace(variables=variables, masks=masks)
        return after, [record(self.name, fractions(task, masks) | metrics)]


@dataclasses.dataclass(frozen=True)
class PruneColumns:
    """Masks columns by a pattern that is fixed, down to what the budget keeps of every kernel.

    Attributes:
        budget: what may be kept.
        pattern: "cross", the middle lines of a window first; "position", the same positions for
            every input of a kernel; "norm", any columns. Within the pattern, the largest norms.
        keep: fraction of every kernel's groups, see `Columns`; None: what meets the budget.
        names: of kernels; None: all.
        name: of the record.
    """

    budget: Budget
    pattern: str = "cross"
    keep: Numbers | None = dataclasses.field(default=None, hash=False)
    names: tuple[str, ...] | None = None
    name: str = "prune"

    def __post_init__(self):
        if self.pattern not in PATTERNS:
            raise errors.ArgumentError(
                f"pattern={self.pattern!r}; write one of {', '.join(PATTERNS)}."
            )

    @property
    def columns(self) -> Columns:
        """The groups, and how many of them the budget keeps."""
        kind = "position" if self.pattern == "position" else "column"
        return Columns(self.budget, kind, self.keep, self.names)

    def check(self, task: Task) -> None:
        """Raises what `Columns.check` does."""
        self.columns.check(task)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks, and a record of the fractions kept.

        Raises:
            BudgetError: no counts meet the budget.
        """
        del key
        net = Net(task)
        family = self.columns.of(task)
        counts = self.columns.counts(task, pruned)
        first = blocks.cross(net.groups, [*family]) if self.pattern == "cross" else {}
        norms = blocks.norms(family, pruned.variables)
        # Columns of the cross stand before all others, by the norm among themselves.
        scores = {n: norm / max(norm.max(), 1e-30) + first.get(n, 0) for n, norm in norms.items()}
        alive = {name: best(score, counts[name]) for name, score in scores.items()}
        masks = blocks.masks(family, alive, pruned.masks)
        variables = apply_masks(pruned.variables, net.weight_masks(masks))
        after = pruned._replace(variables=variables, masks=masks)
        return after, [record(self.name, fractions(task, masks))]
