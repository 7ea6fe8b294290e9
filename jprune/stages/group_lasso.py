"""The stages of SSL: training under group lasso, and the masks that it has made."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax

from jprune import errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.masks import apply_masks
from jprune.sparsify import Term, group_lasso
from jprune.stages.frame import fractions, record
from jprune.stages.structures import (
    ALLOCATORS,
    UNITS,
    Scores,
    allocated,
    blocks_by_kind,
    fraction_kept,
    least_of,
    masks_of,
    norms_of,
    numbers_of,
    paths_of,
)
from jprune.stages.train import Train, trained
from jprune.train.net import Net

FAMILIES = ("shape", "filter", "channel", "depth")
"""In the order in which they act: small groups first."""


TINY = np.finfo(float).tiny
"""Above 0, for a block that was 0 in the dense net."""


@dataclasses.dataclass(frozen=True)
class Penalty:
    """Group lasso on a task's net; see `ssl` for its attributes.

    Raises:
        ArgumentError: another `how`, or a negative threshold.
    """

    families: tuple[str, ...] = ("filter", "channel")
    strength: str = "0.003"
    names: Sequence[str] | None = None
    how: str = "prox"
    threshold: float = 0.0
    scales: bool = True

    def __post_init__(self):
        if self.how not in ("prox", "subgradient") or self.threshold < 0:
            raise errors.ArgumentError(
                f"how={self.how!r}, threshold={self.threshold}; write how='prox' or "
                "'subgradient', and a threshold of 0 or more."
            )

    def terms(self, task: Task, budget: Budget) -> dict[str, Term]:
        """{family: its groups and strengths}, small groups first.

        Raises:
            FrozenError: a penalty on a frozen group.
            StructureError: a family or name that the net does not have.
            ArgumentError: not as many strengths as blocks, or a negative one.
        """
        beside = ("scale",) if self.scales else ()
        blocks = blocks_by_kind(task, self.families, budget, self.names, beside)
        numbers = numbers_of(self.strength, self.families, blocks, "strength")
        lowest = min(value for of_kind in numbers.values() for value in of_kind.values())
        if not lowest >= 0:
            raise errors.ArgumentError(f"strength={self.strength!r}; each is 0 or more.")
        order = [kind for kind in FAMILIES if kind in self.families]
        least = {
            kind: {name: least_of(budget, kind, name) for name in blocks[kind] if kind != "depth"}
            for kind in order
        }
        return {
            kind: Term(blocks[kind], numbers[kind], least[kind], kind in UNITS) for kind in order
        }


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Training under group lasso.

    Attributes:
        train: how long, and how; the step against the penalty is learning rate / (1 - momentum),
            so that what stands still is a minimum of loss + penalty.
        budget: whose floors are read.
        penalty: on what, and how much.
        name: of the records.
    """

    train: Train
    budget: Budget
    penalty: Penalty
    name: str = "shrink"

    def check(self, task: Task) -> None:
        """Raises what `Penalty.terms` does."""
        self.penalty.terms(task, self.budget)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `Penalty.terms` does."""
        terms, paths = tuple(self.penalty.terms(task, self.budget).values()), paths_of(task)
        how, threshold = self.penalty.how, self.penalty.threshold
        gathered = 1 / (1 - self.train.momentum)

        def wrap(net: Net, rate: Schedule, key: jax.Array):
            del net, key
            step_size = lambda step: gathered * rate(step)
            shrink = group_lasso(terms, paths, step_size, how=how, threshold=threshold)
            return lambda inner: optax.chain(inner, shrink)

        stage = dataclasses.replace(self.train, wrap=wrap, name=self.name)
        return stage.learner(pruned, task, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class ReadOff:
    """Makes masks of the groups that are exactly 0, and meets a budget.

    Attributes:
        budget: what may be kept.
        penalty: what was penalised.
        correct: cut the groups with the smallest `scores_of` where the penalty has not reached the
            budget; False: an error says what it has reached.
        name: of the record: fractions kept, `reached` by the penalty alone, in the budget's unit,
            and `zeros`, the fraction of groups that it has brought to 0.
    """

    budget: Budget
    penalty: Penalty
    correct: bool = True
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            BudgetError: the penalty has not reached the budget, or has left nothing of a group.
        """
        del key
        terms = self.penalty.terms(task, self.budget)
        norms = norms_of(task, {kind: t.blocks for kind, t in terms.items()}, pruned.variables)
        alive = {k: {n: norm > 0 for n, norm in of.items()} for k, of in norms.items()}
        masks = masks_of(task, alive, pruned.masks)
        reached = fraction_kept(task, masks, self.budget)
        flat = np.concatenate([mask for of in alive.values() for mask in of.values()])
        if reached > float(self.budget.value) + 1e-9:
            if not self.correct:
                raise errors.BudgetError(
                    f"the penalty reached {self.budget.kind}={reached:.4f} of the dense net, and "
                    f"{self.budget.kind}={self.budget.value} was asked for: {int((~flat).sum())} "
                    f"of {flat.size} groups are 0. Write a larger strength than "
                    f"{self.penalty.strength}, more epochs, or correct=true."
                )
            begun = pruned.saved.get("dense", pruned.variables)
            dense = norms_of(task, {kind: t.blocks for kind, t in terms.items()}, begun)
            scores = scores_of(norms, dense, terms)
            chosen = allocated(task, scores, self.budget, ALLOCATORS["global_topk"], masks)
            masks = masks_of(task, chosen, masks)
        variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
        seen = {"reached": reached, "zeros": float(1 - flat.mean())}
        after = pruned._replace(variables=variables, masks=masks)
        return after, [record(self.name, fractions(task, masks) | seen)]


def scores_of(norms: Scores, dense: Scores, terms: Mapping[str, Term]) -> Scores:
    """How much of a group is left: its norm over the mean norm of its block in the dense net.

    Norms of groups as large as a residual stream and as small as one kernel's are not compared: the
    latter would always go first. A block of strength 0 is left alone, unless all are. A unit's
    filter and channel are one group here: it goes when either does.

    Returns:
        {kind: {block: [groups]}}, -inf where a group is 0.
    """
    free = not any(strength for term in terms.values() for strength in term.strengths.values())
    left = {
        kind: {
            name: np.where(norm > 0, norm / max(dense[kind][name].mean(), TINY), -np.inf)
            for name, norm in of_kind.items()
            if free or terms[kind].strengths[name]
        }
        for kind, of_kind in norms.items()
    }
    if not set(UNITS) <= set(left):
        return left
    first, second = (left.pop(kind) for kind in UNITS)
    units = {
        name: np.minimum(first.get(name, np.inf), second.get(name, np.inf))
        for name in {**first, **second}
    }
    return {**left, "filter": units}
