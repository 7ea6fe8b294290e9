"""Prunes filters by a Kronecker-factored Fisher; factors and floors also serve `eigenbasis`."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jprune import allocate, criteria, errors
from jprune.base import (
    Batch,
    Budget,
    CostModel,
    Criterion,
    Groups,
    Pruned,
    PyTree,
    Records,
    Scores,
    Task,
    Variables,
    run_criterion,
)
from jprune.criteria.kronecker import check_form
from jprune.curvature import Factors, KroneckerLayer, fisher, kfac, layers_of, mean_factors
from jprune.masks import apply_masks, keep_best
from jprune.reconstruct.kronecker import compensate
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.prune import Prune
from jprune.train.net import Net
from jprune.train.step import stream
from jprune.units import leaves_by_path, places_of, to_units

ALLOCATORS = {"global_topk": allocate.global_topk, "uniform": allocate.uniform}
CURVATURES = ("diagonal", "kfac")


def calibration(task: Task, key: jax.Array, batches: int | None, size: int) -> Iterator[Batch]:
    """Training batches; one pass over the training split if no number is given.

    Raises:
        ArgumentError: a number below 1.
    """
    if size < 1 or (batches is not None and batches < 1):
        raise errors.ArgumentError(f"batches={batches}, batch_size={size}; both are 1 or more.")
    size = min(size, task.data.sizes["train"])
    count = task.data.sizes["train"] // size if batches is None else batches
    return itertools.islice(stream(task.data, size, key), count)


def factors_of(
    fn: Callable[..., Any],
    variables: Variables,
    groups: Groups,
    layers: Mapping[str, KroneckerLayer],
    task: Task,
    batches: Iterator[Batch],
    labels: str,
    key: jax.Array,
    inputs: str = "patches",
) -> dict[str, Factors]:
    """{layer: Factors} of a net on calibration batches.

    Args:
        fn: the net; `task.fn`, or its opened form.
        variables: of `fn`.
        groups: of `fn`.
        layers: whose factors.
        task: whose loss.
        batches: calibration batches.
        labels: "model" or "data".
        key: of drawn labels.
        inputs: "patches" or "channels".
    """
    # The Fisher has labels drawn from the model; those of the data make the empirical one.
    drawing = key if labels == "model" else None
    criterion = kfac(fn, task.loss, groups, layers, labels=labels, key=drawing, inputs=inputs)
    return run_criterion(criterion, variables, batches)


def floors_of(sizes: Mapping[str, int], limit: float, rounds: int = 1) -> dict[str, int]:
    """Smallest numbers kept if at most a fraction `limit` may go in each of some rounds.

    Raises:
        ArgumentError: a limit outside (0, 1].

    Example:
        >>> floors_of({"a": 100, "b": 3}, 0.95)
        {'a': 5, 'b': 1}
        >>> floors_of({"a": 100, "b": 3}, 0.5, rounds=2)
        {'a': 25, 'b': 1}
    """
    if not 0 < limit <= 1:
        raise errors.ArgumentError(
            f"limit={limit} is outside (0, 1]: it is the largest fraction of a layer that may go."
        )
    floors = {name: int(size) for name, size in sizes.items()}
    for _ in range(rounds):
        # At least (1 - limit) n of n stay, and at least one.
        floors = {name: max(1, math.ceil((1 - limit) * n - 1e-9)) for name, n in floors.items()}
    return floors


@dataclasses.dataclass(frozen=True)
class PruneFilters:
    """Masks filters by one of four scores; the OBS ones also move the weights that are kept.

    Attributes:
        budget: what may be kept, of the dense net.
        form: "c_obd", "c_obs", "kron_obd" or "kron_obs": the score.
        allocator: "global_topk" or "uniform".
        curvature: of c_obd, "diagonal" or "kfac".
        limit: the largest fraction of a group's units that may go, of those that are there.
        labels: "model" or "data".
        damping: added to the factors that the OBS scores invert, times their mean eigenvalue.
        repo_variant: the scores as in the authors' code.
        batches: calibration batches of the curvature; None: one pass over the training images.
        batch_size: examples in one.
        final: the budget of the last round; what it would keep by the scores of this round stays.
        later: rounds of pruning after this one.
        rounds: of pruning in all.
        name: of the record.
    """

    budget: Budget
    form: str
    allocator: str = "global_topk"
    curvature: str = "diagonal"
    limit: float = 0.95
    labels: str = "model"
    damping: float = 1e-3
    repo_variant: bool = False
    batches: int | None = None
    batch_size: int = 64
    final: Budget | None = None
    later: int = 0
    rounds: int = 1
    name: str = "prune"

    def __post_init__(self):
        check_form(self.form, self.damping, self.repo_variant)
        floors_of({}, self.limit)
        if self.allocator not in ALLOCATORS or self.curvature not in CURVATURES:
            raise errors.ArgumentError(
                f"allocator={self.allocator!r}, curvature={self.curvature!r}; write one of "
                f"{', '.join(ALLOCATORS)}, and one of {', '.join(CURVATURES)}."
            )

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does; BudgetError where rounds and limit are too few."""
        check_prunable(task, self.budget)
        if not self.later:
            floors = self.floors(Net(task).groups.sizes, self.rounds)
            try:
                check_prunable(task, dataclasses.replace(self.budget, floors=floors))
            except errors.BudgetError as error:
                raise errors.BudgetError(
                    f"{error} At most limit={self.limit} of a group may go in a round: write more "
                    f"rounds than {self.rounds}, or a larger limit."
                ) from None

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, moved and masked variables, and a record of the fractions kept.

        Raises:
            ArgumentError: no filter has factors, or curvature is not finite.
            BudgetError: a budget that cannot be met.
        """
        # Labels are drawn apart from the order of the batches.
        drawing, order = jax.random.split(key)
        criterion = self.criterion(task, Net(task).groups, drawing)
        state = criterion.init(pruned.variables)
        for batch in calibration(task, order, self.batches, self.batch_size):
            state = criterion.update(state, pruned.variables, batch)
        return self.with_state(pruned, task, criterion, state)

    def with_state(
        self, pruned: Pruned, task: Task, criterion: Criterion, state: PyTree
    ) -> tuple[Pruned, Records]:
        """The same with a criterion that has seen its data; one pass serves several budgets."""
        groups, variables = Net(task).groups, pruned.variables
        alive = Net(task).unit_masks(pruned)
        scores = {
            name: np.where(alive[name], np.asarray(score, float), -np.inf)
            for name, score in criterion.score(state, variables).items()
        }
        scores, budget = self.in_reach(scores, Net(task).cost)
        prune = Prune(self.criterion, ALLOCATORS[self.allocator], budget)
        masks = prune.of_units(pruned, task, scores)
        # OBS scores count on the others making up for a filter: so they must.
        if self.form.endswith("obs"):
            factors = mean_factors(state)
            variables = compensate(groups, variables, masks, factors, self.form, self.damping)
        variables = apply_masks(variables, Net(task).weight_masks(masks))
        pruned = pruned._replace(variables=variables, masks=masks)
        return pruned, [record(self.name, fractions(task, masks))]

    def floors(self, alive: Mapping[str, int], rounds: int = 1) -> dict[str, int]:
        """What groups of so many units keep at least after some rounds."""
        # At most `limit` of a layer: one whose damage is estimated as 0 would otherwise vanish.
        floors = floors_of(alive, self.limit, rounds)
        return floors | {n: max(floors.get(n, 1), size) for n, size in self.budget.floors.items()}

    def in_reach(
        self, scores: dict[str, np.ndarray], cost: CostModel
    ) -> tuple[dict[str, np.ndarray], Budget]:
        """Scores and budget of a round, so that the last round can meet its own.

        Args:
            scores: {group: [units]}, -inf where a unit is gone.
            cost: of the net.

        Returns:
            The scores, +inf where the last round would keep a unit, -inf where so many would be
            left that it could not; and the budget, which is the smallest that `limit` allows where
            that is larger.
        """
        alive = {name: int((score > -np.inf).sum()) for name, score in scores.items()}
        floors = self.floors(alive)
        if not self.later or self.final is None:
            return scores, dataclasses.replace(self.budget, floors=floors)
        goal = dataclasses.replace(self.final, floors=self.floors(alive, self.later + 1))
        wanted = ALLOCATORS[self.allocator](scores, goal, cost)
        for name, score in scores.items():
            stays = np.asarray(wanted[name])
            # The most from which the later rounds come down to what is wanted.
            least = lambda n, name=name: self.floors({name: n}, self.later)[name]
            reached = [n for n in range(1, alive[name] + 1) if least(n) <= max(stays.sum(), 1)]
            ranked = np.where(stays, np.inf, score)
            scores = {
                **scores,
                name: np.where(keep_best(ranked, max(reached, default=0)), ranked, -np.inf),
            }
            floors[name] = max(floors[name], int(stays.sum()))
        budget = dataclasses.replace(self.budget, floors=floors)
        value = max(float(budget.value), min(1.0, allocate.smallest(scores, budget, cost)))
        return scores, dataclasses.replace(budget, **{budget.kind: value})

    def criterion(self, task: Task, groups: Groups, key: jax.Array) -> Criterion:
        """The scores of units."""
        if self.form == "c_obd" and self.curvature == "diagonal":
            return of_filters(
                criteria.obd(task.fn, task.loss, fisher(labels=self.labels), key), groups
            )
        layers = layers_of(task.fn, groups, Net(task).shapes, task.example)
        return criteria.kronecker(
            task.fn,
            task.loss,
            groups,
            layers,
            self.form,
            key=key if self.labels == "model" else None,
            labels=self.labels,
            damping=self.damping,
            repo_variant=self.repo_variant,
        )


def of_filters(criterion: Criterion, groups: Groups) -> Criterion:
    """Scores of weights summed over every filter and its bias.

    Args:
        criterion: whose scores are a tree like the variables.
        groups: from `trace`.

    Returns:
        The criterion; scores are {group: [units]}. Norms behind the filter do not count.
    """
    own = {path for layer in groups.layers.values() for path in (layer.kernel, layer.bias)}

    def score(state: PyTree, variables: Variables) -> Scores:
        leaves = leaves_by_path(groups, criterion.score(state, variables))
        only = [
            leaf if path in own else np.zeros(groups.leaves[path].shape, np.float32)
            for path, leaf in leaves.items()
        ]
        # C-OBD: sum over a filter's weights and its bias of F_kk w_k^2 / 2
        pooled = to_units(groups, groups.treedef.unflatten(only), ("kernel", "shift"))
        return {name: pooled[name] for name, _ in places_of(groups, ("kernel",))}

    return criterion._replace(score=score)
