"""The stages of an augmented Lagrangian: training with a copy that is group-sparse, and its cut."""

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
from jprune.blocks.kinds import least_of
from jprune.masks import apply_masks
from jprune.sparsify import admm, proximal
from jprune.stages.frame import fractions, record
from jprune.stages.splitting import Sets, pulled, refuse_diverged, steps_of_round
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name
from jprune.train.step import plain

ROUNDS = 40
"""The authors' number of updates of F and Y."""

LEAST = 20
"""The fewest steps of a round: rho is such that the weights are at their copy after them."""


@dataclasses.dataclass(frozen=True)
class Regulariser:
    """Group sparsity of filters, and the parts in which a net is treated.

    Attributes:
        sets: the filters, and how many of each group the budget keeps. With a strength, only its
            budget, names and `affine` are read.
        norm: "l21" or "l20", see `jprune.sparsify.proximal`.
        strength: lambda of all groups, of each in execution order, or by name; None: in every
            update the smallest one under which as many filters stay as the budget keeps.
        parts: into how many the groups are divided, in execution order.
    """

    sets: Sets
    norm: str = "l21"
    strength: Numbers | None = dataclasses.field(default=None, hash=False)
    parts: int = 1

    def filters(self, task: Task, part: int | None = None) -> Blocks:
        """The filters of a part; None: of all.

        Raises:
            FrozenError: a name is frozen.
            StructureError: a name that the net does not have, or nothing to prune.
            ArgumentError: more parts than groups.
        """
        (filters,) = self.sets.families(task)
        if self.parts > len(filters):
            raise errors.ArgumentError(
                f"{self.parts} parts of {len(filters)} groups: {', '.join(filters)}. Write a "
                f"number from 1 to {len(filters)}."
            )
        if part is None:
            return filters
        # Contiguous parts of about equal length: group n of N is in part floor(n parts / N).
        order = enumerate(filters)
        return filters.where([n for i, n in order if i * self.parts // len(filters) == part])

    def strengths(self, task: Task) -> dict[str, float] | None:
        """{group: lambda} of all, or None.

        Raises:
            ArgumentError: not as many as groups, or a negative one; what `filters` raises.
        """
        filters = self.filters(task)
        if self.strength is None:
            return None
        strengths = per_name(self.strength, tuple(filters), "strength")
        proximal(filters, 1.0, norm=self.norm, strength=strengths)  # refuses what it does
        return strengths


@dataclasses.dataclass(frozen=True)
class Copied:
    """How the augmented Lagrangian takes part in training.

    Attributes:
        regulariser: on what.
        part: whose filters have a copy; with several parts, all else is held still.
        counts: {group: filters kept}, of the part; None with a strength.
        rho: see `jprune.sparsify.admm`.
        every: steps from one update of F and Y to the next.
    """

    regulariser: Regulariser
    part: int
    counts: Mapping[str, int] | None = dataclasses.field(hash=False)
    rho: float
    every: int

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        regulariser = self.regulariser
        filters = regulariser.filters(net.task, self.part)
        strengths = regulariser.strengths(net.task)
        own = None if strengths is None else {name: strengths[name] for name in filters}
        least = least_of(filters, regulariser.sets.budget)
        step = proximal(
            filters, self.rho, norm=regulariser.norm, strength=own, keep=self.counts, least=least
        )
        if regulariser.parts == 1:
            return lambda inner: admm(inner, step, rho=self.rho, every=self.every)
        rests = net.tree({path: path not in filters.touched for path in net.groups.leaves})
        # Behind the optimizer: whatever it does, the other layers stay where they are.
        still = optax.masked(optax.set_to_zero(), net.task.split(rests)[0])
        return lambda inner: admm(optax.chain(inner, still), step, rho=self.rho, every=self.every)


@dataclasses.dataclass(frozen=True)
class Split:
    """Training with a copy of the filters that is sparse; nothing is masked yet.

    Afterwards `extra` has `alive` {group: bool [units]}, the support of the copy F, and `stopped`,
    the round in which the duals diverged (0: none).

    Attributes:
        train: how long, on which batches, and how.
        regulariser: on what.
        part: the part of the net, from 0.
        rho: of rho/2 ||W - F||^2; None: 1, or as much as draws the weights to the copy in a round.
        rounds: updates of F and Y; None: 40, or as many as have 20 steps each.
        name: of the records: those of training, and `primal` and `change` of the last round.
    """

    train: Train
    regulariser: Regulariser
    part: int = 0
    rho: float | None = 1.0
    rounds: int | None = None
    name: str = "split"

    def check(self, task: Task) -> None:
        """Refuses settings of training that do nothing here, and what the regulariser refuses."""
        self.train.takes(self.name, "optimizer", "warmup", "clip", "accumulate")
        regulariser = self.regulariser
        regulariser.strengths(task)
        refuse_unmet(task, regulariser.filters(task), regulariser.sets.budget)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: too few steps for the rounds, or weights that are not finite.
            BudgetError: no counts meet the budget.
        """
        train, regulariser = self.train, self.regulariser
        steps = train.steps(task.data.sizes["train"])
        every = steps_of_round(steps, self.rounds, ROUNDS, LEAST)
        filters = regulariser.filters(task, self.part)
        task = train.taught(task, pruned)
        optimizer = train.optimizer_for(task)
        rho = self.rho
        if rho is None:
            # ||W - F|| falls by e^-3 in a round: rho times the way of its steps is 3 at least.
            rho = max(1.0, 3 / (every * float(train.rates(task)[0])))
        counts = None
        if regulariser.strength is None:
            # Of the dense net, so that the widths of all parts together meet the budget.
            dense = pruned.saved.get("dense", pruned.variables)
            counted = regulariser.sets.counts(task, Pruned(dense, None))
            counts = {name: counted["filter"][name] for name in filters}
        wrap = Copied(regulariser, self.part, counts, rho, every)
        masks = Net(task).weight_masks(pruned.masks)
        learner = plain(task, pruned, masks, optimizer, key, train.batch_size, wrap)
        # Of F, and not of W: W is never exactly sparse.
        extra = lambda state: {"alive": blocks.alive(filters, state.target)}
        return pulled(learner, task, pruned, (filters,), extra)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class CutSupport:
    """Makes masks of the filters whose copy is 0; after the last part, meets the budget.

    Attributes:
        regulariser: under which the net was trained.
        part: the part of the net, from 0.
        correct: after the last part, where the budget is not met, cut the filters of the smallest
            norm, over the mean norm of their group in the dense net; False: raise an error.
        name: of the record: fractions kept, `reached` by the zeros alone, in the budget's unit, and
            `zeros`, the fraction of the part's filters whose copy is 0.
    """

    regulariser: Regulariser
    part: int = 0
    correct: bool = True
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            DivergenceError: the duals diverged; the net that came is that of the last good round.
            BudgetError: the zeros do not meet the budget, and are not corrected.
        """
        del key
        refuse_diverged(int(pruned.extra["stopped"]))
        net, regulariser = Net(task), self.regulariser
        filters, budget = regulariser.filters(task), regulariser.sets.budget
        alive = {n: np.asarray(mask, bool) for n, mask in pruned.extra["alive"].items()}
        flat = np.concatenate([*alive.values()])
        # Filter j goes iff ||F_j|| = 0.
        masks = blocks.masks(filters.where([*alive]), alive, pruned.masks)
        reached = allocate.fraction_kept(net.groups, masks, budget, net.cost)
        last = self.part + 1 == regulariser.parts
        if last and reached > float(budget.value) + 1e-9:
            if flat.all():
                warnings.warn(
                    f"no copy of {flat.size} filters is 0, so that the cut does all of the work: "
                    f"strength={regulariser.strength} is too weak. Write a larger strength, or "
                    "none.",
                    stacklevel=2,
                )
            if not self.correct:
                raise errors.BudgetError(
                    f"the zeros reached {budget.kind}={reached:.4f} of the dense net, and "
                    f"{budget.kind}={budget.value} was asked for. Write a larger strength than "
                    f"{regulariser.strength}, or correct=true."
                )
            masks = self.corrected(pruned, task, filters, masks)
        variables = apply_masks(pruned.variables, net.weight_masks(masks))
        metrics = {"reached": reached, "zeros": float(1 - flat.mean())}
        after = Pruned(variables, masks, None, pruned.saved)
        return after, [record(self.name, fractions(task, masks) | metrics)]

    def corrected(self, pruned: Pruned, task: Task, filters: Blocks, masks: Any) -> Any:
        """Masks that meet the budget, by the norms of what is alive."""
        net, sets = Net(task), self.regulariser.sets
        norms = blocks.norms(filters, pruned.variables)
        dense = blocks.norms(filters, pruned.saved.get("dense", pruned.variables))
        scores = {
            # ||w_g|| / mean over h of ||w_h|| in the dense net
            name: np.where(masks[name], norm / max(dense[name].mean(), 1e-30), -np.inf)
            for name, norm in norms.items()
        }
        chosen = sets.allocated(net, (filters,), {filters.kind: scores}, masks)
        return blocks.masks((filters,), chosen, masks)


def refuse_unmet(task: Task, filters: Blocks, budget: Budget) -> None:
    """Refuses a budget that no filters meet.

    Raises:
        BudgetError: it is one.
    """
    whole = {filters.kind: {name: np.ones(group.size) for name, group in filters.items()}}
    allocate.refuse_impossible_jointly((filters,), whole, budget, Net(task).cost)
