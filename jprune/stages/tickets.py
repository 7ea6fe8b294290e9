"""Rounds of magnitude pruning in which every layer loses a fraction of its remaining weights."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.allocate import largest, price_of
from jprune.base import Budget, CostModel, Masks, Pruned, Records, Task
from jprune.masks import apply_masks, density, intersect
from jprune.stages.frame import check_prunable, fractions, record
from jprune.train.net import Net


class Losing(NamedTuple):
    """A kernel that loses weights.

    Attributes:
        rate: factor of the fraction p that a round removes.
        scores: |w|, and -inf where a weight is pruned already.
    """

    rate: float
    scores: np.ndarray

    @property
    def alive(self) -> int:
        """The number of remaining weights."""
        return int((self.scores > -np.inf).sum())


@dataclasses.dataclass(frozen=True)
class PruneRound:
    """Removes the smallest remaining weights, as many as one of the remaining rounds has to.

    With m rounds to go, every layer loses a fraction p of its remaining weights (the last layer
    `output_rate` p), p being the smallest one that meets the budget after m such rounds.

    Attributes:
        budget: after the last round.
        rounds: remaining rounds, this one included.
        together: whether weights compete across layers, the last layer apart.
        output_rate: p of the last layer over that of the others; last is what no other layer reads.
        name: of the record.
    """

    budget: Budget
    rounds: int
    together: bool = False
    output_rate: float = 0.5
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget, "weight")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks nested in those before, and a record of the fractions kept.

        Raises:
            BudgetError: the budget asks for less than one weight a layer.
        """
        del key
        net = Net(task)
        alive = net.prunable(pruned.masks, self.budget)
        by_path, values = net.leaves(alive), net.leaves(pruned.variables)
        layers = []
        for path, mask in by_path.items():
            # Few weights lead to the outputs, and each of them
            # matters more: the authors take half the rate.
            last = path in net.groups.layers and net.groups.layers[path].last
            scores = np.where(mask, np.abs(np.asarray(values[path])), -np.inf)
            layers.append(Losing(self.output_rate if last else 1.0, scores))
        as_masks = lambda masks: net.tree(dict(zip(by_path, masks)))
        chosen = self._masks(layers)
        masks_after = lambda p, rounds: as_masks(chosen(p, rounds))
        p = self._fraction(masks_after, net.cost, alive)
        masks = masks_after(p, 1)
        before = Net(task).weight_masks(pruned.masks)
        masks = masks if before is None else intersect(before, masks)
        variables = apply_masks(pruned.variables, masks)
        line = record(self.name, fractions(task, masks))
        return pruned._replace(variables=variables, masks=masks), [line]

    def _fraction(
        self, masks_after: Callable[[float, int], Masks], model: CostModel, alive: Masks
    ) -> float:
        """The fraction that every round removes: the smallest that meets the budget."""
        cost = density if self.budget.kind == "density" else price_of(alive, self.budget, model)

        # The masks themselves have a price: where layers compete, a weight of a kernel that runs at
        # many positions costs more MACs than one of another.
        price = lambda p: cost(masks_after(p, self.rounds))

        # 1e-9: fractions of whole numbers.
        goal = float(self.budget.value) + 1e-9
        if (least := price(1.0)) > goal:
            raise errors.BudgetError(
                f"Budget({self.budget.kind}={self.budget.value}) cannot be met: one weight in "
                f"every layer that loses some is {least:.4f} of the dense net. Ask for more."
            )
        # The smallest p that meets the budget: 1 - the largest fraction that may be left.
        return 1.0 - largest(lambda fraction: price(1.0 - fraction), goal)

    def _masks(self, layers: list[Losing]) -> Callable[[float, int], list[np.ndarray]]:
        """`(p, rounds) -> masks` of the layers, by the scores of now."""
        both = [(layer, self.together and layer.rate == 1) for layer in layers]
        apart = [
            position_of(layer.scores[:0] if joined else layer.scores) for layer, joined in both
        ]
        # One order for all layers of the full rate, and one for each of the others.
        together = [layer.scores.ravel() for layer, joined in both if joined]
        flat = np.concatenate(together) if together else np.zeros(0)
        ends = np.cumsum([scores.size for scores in together])[:-1]
        positions = np.split(position_of(flat), ends) if together else []
        alive = int((flat > -np.inf).sum())

        def masks(p: float, rounds: int) -> list[np.ndarray]:
            joint, best = iter(positions), []
            for (layer, joined), own in zip(both, apart):
                place = next(joint).reshape(layer.scores.shape) if joined else own
                count = alive if joined else layer.alive
                best.append(place < after(count, layer.rate * p, rounds))
            return best

        return masks


def position_of(scores: np.ndarray) -> np.ndarray:
    """The position of every score in falling order, ties by index: `position < n` are the n best.

    Example:
        >>> position_of(np.array([1.0, 3.0, 2.0, 3.0])).tolist()
        [3, 0, 2, 1]
    """
    order = np.argsort(-scores, axis=None, kind="stable")
    positions = np.empty(scores.size, np.int64)
    positions[order] = np.arange(scores.size)
    return positions.reshape(scores.shape)


def after(count: int, p: float, rounds: int) -> int:
    """How many weights remain after rounds that each remove round(p n) of n; at least one.

    Example:
        >>> after(1000, 0.1, 3), after(235200, 0.2, 3)
        (729, 120422)
    """
    for _ in range(rounds):
        # n <- n - p n, in whole weights
        count -= round(p * count)
    return max(1, count)
