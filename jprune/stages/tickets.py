"""Rounds of magnitude pruning in which every layer loses a fraction of its remaining weights."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.allocate import largest, price_of
from jprune.base import Budget, CostModel, Layer, Masks, Pruned, Records, Task
from jprune.masks import apply_masks, density, intersect
from jprune.stages.frame import check_prunable, fractions, record
from jprune.train.net import Net


class Losing(NamedTuple):
    """A kernel that loses weights.

    Attributes:
        pool: kernels of one pool compete.
        rate: factor of the fraction p that a round removes; the same in a pool.
        scores: |w|, and -inf where a weight is pruned already.
    """

    pool: str
    rate: float
    scores: np.ndarray


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
        convolution_rate: p of convolutions over that of dense layers.
        one_more: whether a round removes round(p n) + 1 of n weights, as the authors' code does.
        name: of the record.
    """

    budget: Budget
    rounds: int
    together: bool = False
    output_rate: float = 0.5
    convolution_rate: float = 1.0
    one_more: bool = False
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
            pool, rate = self._pool(net.groups.layers.get(path))
            scores = np.where(mask, np.abs(np.asarray(values[path])), -np.inf)
            layers.append(Losing(pool if self.together else path, rate, scores))
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

    def _pool(self, layer: Layer | None) -> tuple[str, float]:
        """The kind of a layer, and its factor of p."""
        # Few weights lead to the outputs, and each of them matters more: half the rate.
        if layer is not None and layer.last and self.output_rate != 1:
            return "last", self.output_rate
        # In the paper's Conv-2 and Conv-4, p is 0.1 of convolutions and 0.2 of dense layers.
        if layer is not None and layer.window and self.convolution_rate != 1:
            return "convolution", self.convolution_rate
        return "", 1.0

    def _masks(self, layers: list[Losing]) -> Callable[[float, int], list[np.ndarray]]:
        """`(p, rounds) -> masks` of the layers, by the scores of now."""
        pools: dict[str, list[int]] = {}
        for number, layer in enumerate(layers):
            pools.setdefault(layer.pool, []).append(number)
        # One order for all kernels of a pool.
        flat = {
            pool: np.concatenate([layers[number].scores.ravel() for number in numbers])
            for pool, numbers in pools.items()
        }
        alive = {pool: int((scores > -np.inf).sum()) for pool, scores in flat.items()}
        positions = {pool: position_of(scores) for pool, scores in flat.items()}
        begins = np.zeros(len(layers), int)
        for numbers in pools.values():
            sizes = [layers[number].scores.size for number in numbers]
            begins[numbers] = np.cumsum([0, *sizes[:-1]])

        def masks(p: float, rounds: int) -> list[np.ndarray]:
            best = []
            for layer, begin in zip(layers, begins):
                place = positions[layer.pool][begin : begin + layer.scores.size]
                n = after(alive[layer.pool], layer.rate * p, rounds, int(self.one_more))
                best.append((place < n).reshape(layer.scores.shape))
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


def after(count: int, p: float, rounds: int, more: int = 0) -> int:
    """How many weights remain after rounds that each remove round(p n) of n; at least one.

    With `more`, a round removes so many more.

    Example:
        >>> after(1000, 0.1, 3), after(235200, 0.2, 3)
        (729, 120422)
    """
    for _ in range(rounds):
        # n <- n - p n, in whole weights; none where p is 0
        count -= round(p * count) + (more if p else 0)
    return max(1, count)
