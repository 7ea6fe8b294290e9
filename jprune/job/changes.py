"""What a comparison changes of a method's recipe, to tell apart what its numbers come from.

The allocation can be another one, or fixed widths, while the score stays; and the net before
fine-tuning can be looked at a second time, with new statistics.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jprune import allocate, errors
from jprune.base import (
    Allocator,
    Budget,
    CostModel,
    Masks,
    Pruned,
    Recipe,
    Records,
    Scores,
    Stage,
    Task,
)
from jprune.recipes import Evaluate, Prune, Recalibrate


def global_per_cost(scores: Scores, budget: Budget, cost_model: CostModel | None = None) -> Masks:
    """`allocate.global_topk` by damage per cost.

    The cost is parameters for budgets in these, and MACs for all others.

    Args:
        scores: {group: [units]}.
        budget: of any kind.
        cost_model: of the net; every kind of budget needs it.

    Raises:
        ArgumentError: no cost model, or scores of weights.

    Example:
        >>> from jprune.base import Cost
        >>> model = lambda masks: Cost(0, 4.0 * masks["a"].sum() + masks["b"].sum(), 0, {})
        >>> scores = {"a": np.array([2.0, 8.0]), "b": np.array([1.0, 3.0])}
        >>> masks = global_per_cost(scores, Budget(density=0.5), model)
        >>> {name: mask.tolist() for name, mask in masks.items()}
        {'a': [False, True], 'b': [False, True]}
    """
    if cost_model is None:
        raise errors.ArgumentError(
            f"Budget({budget.kind}={budget.value}) by damage per cost needs a cost model: pass "
            "jprune.cost_model(fn, variables, x, groups=groups)."
        )
    field = "params" if budget.kind == "params" else "macs"
    return allocate.global_topk(allocate.per_cost(scores, cost_model, field), budget, cost_model)


ALLOCATIONS: dict[str, Allocator] = {
    "uniform": allocate.uniform,
    "global": allocate.global_topk,
    "global_per_cost": global_per_cost,
}
"""By name; a score of weights becomes one of units by its mean for "global", else by its sum."""


class Changes(NamedTuple):
    """Changes of a recipe; none by default.

    Attributes:
        allocation: a name of `ALLOCATIONS`, in the place of the method's own; None: its own.
        widths: {group: units to keep}, in the place of those that the method would choose: its
            scores then choose units within each group alone; None: its own.
        settled: batches on which the norms' statistics settle for a second look at the net before
            fine-tuning (`Looked`); no other number of a run depends on it. 0: none.
    """

    allocation: str | None = None
    widths: Mapping[str, int] | None = None
    settled: int = 0


NO_CHANGES = Changes()


def changed(recipe: Recipe, changes: Changes, method: str) -> Recipe:
    """A recipe with its changes.

    Args:
        recipe: of the method.
        changes: what is to be otherwise.
        method: its name, for the message.

    Raises:
        ArgumentError: an unknown allocation, or one for a method that does not prune units by
            scores.

    Example:
        >>> from jprune.recipes import METHODS, Train
        >>> recipe = METHODS["l1"](Budget(macs=0.5), None, Train(1, 0.1, name="finetune"))
        >>> recipe = changed(recipe, Changes("global_per_cost"), "l1")
        >>> [stage.allocator.__name__ for stage in recipe if isinstance(stage, Prune)]
        ['global_per_cost']
    """
    if changes.allocation is not None and changes.allocation not in ALLOCATIONS:
        raise errors.ArgumentError(
            f"there is no allocation {changes.allocation!r}; "
            f"{errors.nearest(changes.allocation, ALLOCATIONS)}write one of "
            f"{', '.join(ALLOCATIONS)}."
        )
    prunes = any(isinstance(stage, Prune) and stage.per == "unit" for stage in recipe)
    if not prunes and (changes.allocation is not None or changes.widths is not None):
        raise errors.ArgumentError(
            f"the method {method} chooses widths in its own way, not by an allocator of scores of "
            "units: there is no other allocation for it. Leave it out."
        )
    return tuple(_changed(stage, changes) for stage in recipe)


def _changed(stage: Stage, changes: Changes) -> Stage:
    if isinstance(stage, Evaluate) and stage.name == "before_finetune":
        return Looked(stage, changes.settled) if changes.settled else stage
    if not isinstance(stage, Prune) or stage.per != "unit":
        return stage
    if changes.widths is not None:
        return dataclasses.replace(stage, allocator=Widths(dict(changes.widths)), final=None)
    if changes.allocation is None:
        return stage
    pool = "mean" if changes.allocation == "global" else "sum"
    return dataclasses.replace(stage, allocator=ALLOCATIONS[changes.allocation], pool=pool)


@dataclasses.dataclass(frozen=True)
class Looked:
    """Looks at a net twice: as it is, and with statistics of its norms that were taken anew.

    Attributes:
        look: what is measured; its record gets the second metrics too, with names that begin with
            `settled_`. A net without statistics is looked at once.
        settled: batches of training that the statistics settle on; the net stays as it is.
    """

    look: Evaluate
    settled: int

    @property
    def name(self) -> str:
        """Of the record."""
        return self.look.name

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        _, (found,) = self.look(pruned, task, key)
        if not jax.tree.leaves(task.split(pruned.variables)[1]):
            return pruned, [found]
        anew, _ = Recalibrate(self.settled)(pruned, task, key)
        _, (again,) = self.look(anew, task, key)
        # What is counted is the same net's.
        measured = {k: v for k, v in again["metrics"].items() if k not in ("params", "macs")}
        settled = {f"settled_{name}": value for name, value in measured.items()}
        return pruned, [{**found, "metrics": {**found["metrics"], **settled}}]


@dataclasses.dataclass(frozen=True)
class Widths:
    """An allocator that keeps so many units of every group, whatever the budget.

    Attributes:
        widths: {group: units to keep}; a group that is not named stays whole.

    Example:
        >>> keep = Widths({"a": 1})
        >>> keep({"a": np.array([1.0, 4.0]), "b": np.array([2.0])}, Budget(density=0.5))
        {'a': array([False,  True]), 'b': array([ True])}
    """

    widths: Mapping[str, int]

    def __call__(
        self, scores: Scores, budget: Budget, cost_model: CostModel | None = None
    ) -> Masks:
        """The best units of every group."""
        del budget, cost_model
        return {
            name: allocate.keep_best(np.asarray(score), self.widths.get(name, np.size(score)))
            for name, score in scores.items()
        }
