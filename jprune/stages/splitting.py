"""Training with a copy of the weights and duals: the sets it ends in, and what methods share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jprune import allocate, blocks, errors
from jprune.allocate.budgets import kept_count
from jprune.base import Batch, Budget, Learner, Masks, Pruned, Task, Variables
from jprune.blocks import Blocks
from jprune.blocks.kinds import least_of
from jprune.sparsify.admm import supports
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_kind
from jprune.train.step import TrainState

LEAST = 100
"""The fewest steps of a round: in fewer, duals outrun the weights, and supports flip."""

Scores = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: [groups]}}."""

Counts = Mapping[str, Mapping[str, int]]
"""{kind: {block: groups kept}}."""


class Constraint(Protocol):
    """How many groups of every block may be other than 0, and who says so; hashable."""

    @property
    def budget(self) -> Budget:
        """What the cut may keep."""
        ...

    def check(self, task: Task) -> None:
        """Refuses a net or a budget, before anything is trained."""
        ...

    def families(self, task: Task) -> tuple[Blocks, ...]:
        """The groups of every kind, in the order in which kinds are projected."""
        ...

    def counts(self, task: Task, pruned: Pruned) -> Counts:
        """{kind: {block: groups kept}}, once training begins."""
        ...


@dataclasses.dataclass(frozen=True)
class Sets:
    """The counts that meet a budget, or those asked for.

    Attributes:
        budget: what may be kept.
        kinds: "filter", "channel", "column", "weight"; projected in this order.
        keep: fraction of groups kept: one for all blocks; one for each in execution order; a
            sequence of either, one a kind; or {kind: either}. None: what meets the budget.
        names: of groups or kernels; None: all.
        spread: how the budget is divided among blocks, "uniform" or "global_topk".
        affine: whether the norm of a filter counts its scales and shifts.

    Raises:
        ArgumentError: filters and channels at once.
    """

    budget: Budget
    kinds: tuple[str, ...] = ("filter",)
    keep: Numbers | Sequence[Sequence[float]] | Mapping[str, Numbers] | None = dataclasses.field(
        default=None, hash=False
    )
    names: tuple[str, ...] | None = None
    spread: str = "uniform"
    affine: bool = True

    def __post_init__(self):
        refuse_two_supports(self.kinds)

    def check(self, task: Task) -> None:
        """Refuses fractions that mean nothing, and a budget that no counts meet.

        Raises:
            ArgumentError: as `fractions`.
            BudgetError: it is one.
            FrozenError: as `families`.
            StructureError: as `families`.
        """
        families = self.families(task)
        self.fractions(families)
        if self.keep is None:
            sizes = {
                each.kind: {name: np.ones(group.size) for name, group in each.items()}
                for each in families
            }
            allocate.refuse_impossible_jointly(families, sizes, self.budget, Net(task).cost)

    def families(self, task: Task) -> tuple[Blocks, ...]:
        """The groups of every kind.

        Raises:
            FrozenError: a name is frozen.
            StructureError: a kind or name that the net does not have.
        """
        return blocks.of_kinds(
            Net(task).groups, self.kinds, self.names,
            scales=self.affine, shifts=self.affine, floors=self.budget.floors,
        )  # fmt: skip

    def fractions(self, families: Sequence[Blocks]) -> dict[str, dict[str, float]]:
        """{kind: {block: fraction kept}}, as `keep` says.

        Raises:
            ArgumentError: not as many fractions as blocks, or one outside (0, 1].
        """
        keep = 1.0 if self.keep is None else self.keep
        asked = per_kind(keep, {each.kind: each for each in families}, "keep")
        for of_kind in asked.values():
            if not all(0 < fraction <= 1 for fraction in of_kind.values()):
                raise errors.ArgumentError(
                    f"keep={self.keep!r}; each is the fraction of groups kept, in (0, 1]."
                )
        return asked

    def counts(self, task: Task, pruned: Pruned) -> Counts:
        """{kind: {block: groups kept}}.

        Raises:
            ArgumentError: not as many fractions as blocks, or one outside (0, 1].
            BudgetError: no counts meet the budget, or those asked for do not.
        """
        net, families = Net(task), self.families(task)
        if self.keep is None:
            norms = {each.kind: blocks.norms(each, pruned.variables) for each in families}
            # The counts are those of the largest groups of the dense weights; which groups they
            # are is decided anew in every projection.
            alive = {k: {n: norm > 0 for n, norm in of.items()} for k, of in norms.items()}
            alive = self.allocated(net, families, scored(norms, alive), pruned.masks)
            return {k: {n: int(np.sum(m)) for n, m in of.items()} for k, of in alive.items()}
        asked = self.fractions(families)
        counts = {
            each.kind: {
                # n - round((1 - keep) n): the pruned ones are rounded,
                # as counts of pruned groups are everywhere.
                name: max(least, each[name].size - round((1 - part) * each[name].size))
                for (name, least), part in zip(
                    least_of(each, self.budget).items(), asked[each.kind].values()
                )
            }
            for each in families
        }
        # A trial projection: what columns cost depends on which filters share them.
        _, alive = nearest(families, counts, pruned.variables)
        masks = blocks.masks(families, alive, pruned.masks)
        fraction = allocate.fraction_kept(net.groups, masks, self.budget, net.cost)
        if fraction > float(self.budget.value) + 1e-9:
            raise errors.BudgetError(
                f"keep={self.keep!r} keeps {self.budget.kind}={fraction:.4f} of the dense net, and "
                f"{self.budget.kind}={self.budget.value} was asked for. Write smaller fractions, "
                "leave keep out, or ask for more."
            )
        return counts

    def allocated(
        self, net: Net, families: Sequence[Blocks], scores: Scores, before: Masks
    ) -> Mapping[str, Mapping[str, np.ndarray]]:
        """{kind: {block: bool [groups]}} of the groups that the budget keeps, by `spread`."""
        allocator = allocate.ALLOCATORS[self.spread]
        return allocate.jointly(families, scores, self.budget, net.cost, allocator, before)


def refuse_two_supports(kinds: Sequence[str]) -> None:
    """Refuses filters and channels at once.

    Raises:
        ArgumentError: both are there.
    """
    if {"filter", "channel"} <= {*kinds}:
        raise errors.ArgumentError(
            f"groups={kinds}: a unit would have to be kept twice, as a filter and as a "
            "channel, and the two supports differ. Write one of them."
        )


def nearest(
    families: Sequence[Blocks], counts: Counts, variables: Variables
) -> tuple[Scores, Scores]:
    """Projects variables kind by kind.

    Returns:
        Per kind, the norms left by the projections before it, and the groups that its own keeps:
        two trees {kind: {block: [groups]}}.
    """
    projected = supports([(each, counts[each.kind]) for each in families], variables)
    norms = {
        # ||w_g|| in float64, from the squares that the projection compares
        each.kind: {name: np.sqrt(np.asarray(s, float)) for name, s in support.squares.items()}
        for each, support in zip(families, projected)
    }
    alive = {
        each.kind: {name: np.asarray(mask) for name, mask in support.keep.items()}
        for each, support in zip(families, projected)
    }
    return norms, alive


def fewer(
    families: Sequence[Blocks], scores: Scores, budget: Budget, price: Callable[[Scores], float]
) -> Scores:
    """The groups of the highest scores that meet a budget: of all blocks the same fraction.

    Args:
        families: the groups of every kind.
        scores: -inf where a group is gone.
        budget: what may be kept, and the fewest groups of a block.
        price: `{kind: {block: bool [groups]}} -> fraction of the dense net`.

    Raises:
        BudgetError: the fewest groups cost more.
    """
    least = {each.kind: least_of(each, budget) for each in families}

    def largest(part: float) -> Scores:
        count = lambda score: kept_count(int((score > -np.inf).sum()), part)
        return {
            kind: {
                name: np.asarray(allocate.keep_best(score, max(count(score), least[kind][name])))
                for name, score in of.items()
            }
            for kind, of in scores.items()
        }

    goal = float(budget.value) + 1e-9
    alive = largest(allocate.largest(lambda part: price(largest(part)), goal))
    if (left := price(alive)) > goal:
        raise errors.BudgetError(
            f"{budget.kind}={budget.value} cannot be met by the groups that training has left: the "
            f"fewest keep {left:.4f} of the dense net. Ask for more, or write smaller floors."
        )
    return alive


def scored(norms: Scores, alive: Scores) -> Scores:
    """Scores of groups: ||w_g||^2, and -inf where one is pruned already."""
    return {
        # Dropping group g moves W by ||w_g||^2, whatever the size of the group.
        kind: {name: np.where(alive[kind][name], norm**2, -np.inf) for name, norm in of.items()}
        for kind, of in norms.items()
    }


def steps_of_round(steps: int, rounds: int | None, most: int, least: int = LEAST) -> int:
    """Steps in a round.

    Args:
        steps: of all rounds.
        rounds: how many; None: the most there are, or as many as are long enough.
        most: rounds of the authors.
        least: steps that are long enough.

    Raises:
        ArgumentError: too few steps for the rounds.
    """
    # Rounds of equal length: a dual that is refreshed early is not yet what its W-step says.
    wanted = max(1, min(most, steps // least)) if rounds is None else rounds
    every = steps // wanted
    if not every or steps // every != wanted:
        raise errors.ArgumentError(
            f"ADMM with rounds={wanted} in {steps} steps: they do not make so many rounds of "
            f"equal length, and a round needs some {least} for the weights to follow. Write "
            "fewer rounds or more epochs."
        )
    return every


def pulled(
    learner: Learner,
    task: Task,
    pruned: Pruned,
    families: Sequence[Blocks],
    extra: Callable[[Any], dict[str, Any]],
) -> Learner:
    """A learner whose optimizer is `admm`, with residuals among its metrics.

    Args:
        learner: of `train.plain`.
        task: of the net.
        pruned: where training begins.
        families: the groups that are projected.
        extra: of the state of `admm`: what goes to the next stage, beside `stopped`.

    Returns:
        A learner that ends with the net of the last good round.

    Raises:
        ArgumentError: weights that are not finite.
    """
    counted = frozenset[str]().union(*(each.counted for each in families))
    # A NaN would win every comparison of norms in the projection, or none.
    Net(task).refuse_nan(pruned.variables, tuple(sorted(counted)))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = learner.step(state, batch)
        # Primal ||W - Z|| / ||W|| and dual residual ||Z - Z
        # before|| / ||W||: both fall where it converges.
        residuals = {name: getattr(state.opt_state, name) for name in ("primal", "change")}
        return state, {**metrics, **residuals}

    def finish(state: TrainState) -> Pruned:
        stopped = int(state.opt_state.stopped)
        # Duals that diverged have pulled W away: go back to the last round that was good.
        params = state.opt_state.good if stopped else state.params
        handed_on = {**extra(state.opt_state), "stopped": stopped}
        return Pruned(task.merge(params, state.rest), pruned.masks, handed_on, pruned.saved)

    return learner._replace(step=step, finish=finish)


def refuse_diverged(stopped: int) -> None:
    """Refuses a net whose duals diverged in this round; 0: they have not.

    Raises:
        DivergenceError: the net that came is that of the last good round.
    """
    if stopped:
        raise errors.DivergenceError(
            f"ADMM stopped: its duals diverged in round {stopped}. The net after round "
            f"{stopped - 1}, the last good one, is kept: it is what the stage before this one "
            "has left. Write a smaller rho where the loss grew, a larger one or growth=1.1 "
            "where the rounds cycled, or a larger limit."
        )
