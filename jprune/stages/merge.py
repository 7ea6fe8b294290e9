"""Merges units into the most similar ones of their layer, without data."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jprune import allocate, errors
from jprune.allocate.widths import refuse_impossible_widths, widths
from jprune.base import Budget, Groups, Pruned, Records, Task, Variables
from jprune.masks import apply_masks
from jprune.reconstruct import Merge, cutoff, merges
from jprune.reconstruct.folded import Affine, affines, weight_sets
from jprune.reconstruct.merge import distances, matrix
from jprune.stages.frame import fractions, record
from jprune.stages.walk import mergeable, refuse_unread
from jprune.train.net import Net
from jprune.units import map_units, ones, rows

ALLOCATORS, STOPS = ("uniform", "global_topk"), ("budget", "cutoff")

Sets = dict[str, tuple[np.ndarray, np.ndarray]]
"""{group: (weight sets [units, fan], outgoing weights [units, k])}; a weight set has all parameters
that determine a unit's output."""

Affines = tuple[dict[str, Affine], frozenset[str]]
"""({site: scale and shift behind it}, the leaves that these are made of)."""


@dataclasses.dataclass(frozen=True)
class MergeUnits:
    """Merges units in execution order of their groups, without data.

    A group takes part if its readers are all plain contractions: they add the outgoing weights of a
    merged unit to those of the unit that it is merged into. Other groups stay whole.

    Attributes:
        budget: what may be kept, of the dense net.
        allocator: "uniform" or "global_topk".
        normalize: whether units count as equal if their weight sets are multiples of each other.
        drop: whether a unit may be removed without a partner.
        stop: "budget" or "cutoff".
        name: of the record: fractions kept, how many units were `merged`, and the sum of their
            saliencies.
    """

    budget: Budget
    allocator: str = "uniform"
    normalize: bool = False
    drop: bool = False
    stop: str = "budget"
    name: str = "prune"

    def __post_init__(self):
        if self.allocator not in ALLOCATORS or self.stop not in STOPS:
            raise errors.ArgumentError(
                f"data_free with allocator={self.allocator!r}, stop={self.stop!r}; write 'uniform' "
                "or 'global_topk', and 'budget' or 'cutoff'."
            )

    def check(self, task: Task) -> None:
        """Refuses a net of which no group is mergeable.

        Raises:
            ArgumentError: it is one.
            BudgetError: a budget that no widths can meet.
        """
        names, whole = mergeable(task), ones(Net(task).groups)
        refuse_unread(task, names)
        masks_of = lambda chosen: {**whole, **chosen}
        alive = {name: whole[name] for name in names}
        refuse_impossible_widths(alive, self.budget, Net(task).cost, masks_of)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, variables with the merged outgoing weights, and a record.

        Raises:
            ArgumentError: nothing is mergeable, or weights that are not finite.
            BudgetError: a budget that cannot be met.
        """
        del key
        groups = Net(task).groups
        if pruned.masks is not None and not Net(task).are_units(pruned.masks):
            raise errors.ArgumentError(
                "data_free merges units, and came to a net of which single weights are masked: "
                "the sums would fill them again. Merge first."
            )
        masks, behind = Net(task).unit_masks(pruned), affines_of(task, pruned.variables)
        # float64: saliencies of near units are differences of near numbers.
        sets = sets_of(groups, pruned.variables, mergeable(task), behind)
        alive = {name: np.asarray(masks[name], bool) for name in sets}
        goals = self.widths(task, sets, masks, alive)
        variables, done = pruned.variables, []
        # In execution order: merging a group changes the incoming weights of those behind it.
        for name in [name for name in sets if goals[name] < alive[name].sum()]:
            # Merges before have changed what this group's producers read.
            now = sets_of(groups, variables, [name], behind)[name]
            steps = self.steps(*now, alive[name], int(alive[name].sum()) - goals[name])
            mapped = {name: matrix(groups.sizes[name], steps)}
            # a_i <- a_i + a_j, in every consumer of units i and j
            variables = map_units(groups, variables, mapped, ("in",))
            masks = {**masks, name: alive[name].copy()}
            # ... and unit j goes
            masks[name][[step.gone for step in steps]] = False
            variables = apply_masks(variables, Net(task).weight_masks(masks))
            done += steps
        total = float(sum(step.saliency for step in done))
        metrics = {**fractions(task, masks), "merged": len(done), "saliency": total}
        return pruned._replace(variables=variables, masks=masks), [record(self.name, metrics)]

    def steps(
        self, sets: np.ndarray, outgoing: np.ndarray, alive: np.ndarray, count: int
    ) -> list[Merge]:
        """The merges of one group."""
        # Without a cut-off the budget alone says when to stop.
        limit = np.inf
        if self.stop == "cutoff":
            pairs = distances(sets[alive], self.normalize)[0]
            # s_ij = <a_j^2> ||e_ij||^2 of all pairs, a the outgoing weights
            limit = cutoff(pairs * (outgoing[alive] ** 2).mean(axis=1)[None])
        steps = itertools.islice(merges(sets, outgoing, self.normalize, alive, self.drop), count)
        # Merges are made one after the other: saliencies change with every one, and need not rise.
        return list(itertools.takewhile(lambda step: step.saliency <= limit, steps))

    def widths(
        self,
        task: Task,
        sets: Sets,
        masks: Mapping[str, np.ndarray],
        alive: Mapping[str, np.ndarray],
    ) -> dict[str, int]:
        """{group: units kept}."""
        # Groups that cannot merge stay as they are, and cost what they cost.
        every = lambda chosen: {**masks, **chosen}
        if self.allocator == "uniform" or not sets:
            return widths(alive, self.budget, Net(task).cost, every)
        scores = {}
        for name, (incoming, outgoing) in sets.items():
            steps = list(merges(incoming, outgoing, self.normalize, alive[name], self.drop))
            # A unit that no merge removes scores inf.
            score = np.where(alive[name], np.inf, -np.inf)
            # A merge is only reached through those before it:
            # its score is the largest up to there.
            highest = np.maximum.accumulate([step.saliency for step in steps])
            score[[step.gone for step in steps]] = highest
            scores[name] = score
        chosen = allocate.global_topk(scores, self.budget, Net(task).cost)
        return {name: int(np.sum(mask)) for name, mask in chosen.items()}


def affines_of(task: Task, variables: Variables) -> Affines:
    """Scale and shift behind every layer; merging leaves them as they are."""
    return affines(task.fn, Net(task).groups, variables, task.example)


def sets_of(groups: Groups, variables: Variables, names: Sequence[str], behind: Affines) -> Sets:
    """Weight sets and outgoing weights of some groups; those without a set are left out."""
    return {
        name: (incoming, np.asarray(rows(groups, variables, name, ("in",)), np.float64))
        for name, incoming in weight_sets(groups, variables, *behind, names).items()
    }
