"""Prunes patterns of weights within kernels, of any size, at densities that the size has no say in.

What the groups are is a word (`GRAINS`); how much every layer keeps is decided from the weights of
the dense net, so that groups of all sizes are compared at equal densities of all layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from jprune import allocate, blocks, criteria, errors
from jprune.allocate.budgets import kept_count
from jprune.base import Budget, CostModel, Layer, Pruned, Records, Task
from jprune.blocks import Blocks
from jprune.blocks.grains import WINDOW
from jprune.masks import apply_masks, intersect, keep_best
from jprune.stages.frame import fractions, record, saved
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name

GRAINS = ("fine", "vector", "kernel", "filter", "row", "column", "block", "n_of_m")
"""What lives or dies together: single weights; a line of a window; a window; all weights of an
output ("filter", or "row" of the matrix [out, in h w]); of a tap; blocks of chosen lengths; single
weights of which n of every m inputs stay."""

AXES = (*WINDOW, "in", "out")
LEAST = 1e-9
"""A density of which one group a layer is left."""

Price = Callable[[Callable[[str], float]], float]
"""`(kernel -> density) -> fraction of the dense net`."""


@dataclasses.dataclass(frozen=True)
class PruneGrains:
    """Zeroes the groups of least sum of absolute values, layer by layer.

    Weights of kernels alone are masked, also where a filter goes: nothing that is coupled with it
    goes along. Filters of layers that make the net's outputs stay.

    Attributes:
        budget: what is kept of the dense net; a density is that of the kernels that take part.
        grain: one of `GRAINS`.
        axis: that a "vector" lies along: "w", "h", "d", "in" or "out".
        lengths: of a "block": along h, w, inputs and outputs.
        m: of "n_of_m"; n is the largest one that a layer's density allows. Kernels whose inputs are
            no multiple of m stay dense, and do not count in the density.
        ratios: densities of layers relative to each other: one for all, one for each kernel that
            takes part in execution order, or by name; or "scan": what the thresholds in `extra`,
            from the stage `Sensitivity`, keep of the dense net, which is saved as "dense".
        value_bits: of a weight, for the record.
        index_bits: of a gap between stored groups.
        name: of the record: fractions kept, groups kept and in all, and `storage`, the bits of the
            kernels that take part as a fraction of those of dense ones.
    """

    budget: Budget
    grain: str = "kernel"
    axis: str = "w"
    lengths: tuple[float, ...] = (1, 1, 4, 4)
    m: int = 4
    ratios: Numbers | Literal["scan"] = 1.0
    value_bits: int = 8
    index_bits: int = 4
    name: str = "prune"

    def __post_init__(self):
        if self.grain not in GRAINS:
            raise errors.ArgumentError(
                f"grain={self.grain!r}; {errors.nearest(self.grain, GRAINS)}write one of "
                f"{', '.join(GRAINS)}."
            )
        if isinstance(self.ratios, str) and self.ratios != "scan":
            raise errors.ArgumentError(
                f"ratios={self.ratios!r}; write 'scan', a number, or one for each kernel."
            )
        whole = all(length == int(length) >= 1 for length in self.lengths)
        if len(self.lengths) != 4 or not whole or self.m < 1:
            raise errors.ArgumentError(
                f"lengths={self.lengths}, m={self.m}; lengths are four whole numbers of 1 or more, "
                "along h, w, inputs and outputs, and m is 1 or more."
            )
        if min(self.value_bits, self.index_bits) < 1:
            raise errors.ArgumentError(
                f"value_bits={self.value_bits}, index_bits={self.index_bits}; each is 1 or more."
            )
        if self.axis not in AXES:
            raise errors.ArgumentError(f"axis={self.axis!r}; write one of {', '.join(AXES)}.")

    def grains_of(self, task: Task) -> Blocks:
        """The groups of every kernel that takes part; single weights for "n_of_m".

        Raises:
            ArgumentError: no kernel takes part.
        """
        net = Net(task)
        names = net.kernels(net.prunable(None, self.budget))
        layers = net.groups.layers
        names = tuple(path for path in names if path in layers)
        if self.grain in ("filter", "row"):
            # A filter of the last layer is an output of the net.
            names = tuple(path for path in names if not layers[path].last)
        if self.grain == "column":
            names = tuple(path for path in names if layers[path].plain)
        if self.grain == "n_of_m":
            names = tuple(path for path in names if _divided(layers[path], self.m))
        if not names:
            raise errors.ArgumentError(
                f"no kernel of {task.name} has a {self.grain} to prune"
                + (f" at m={self.m}" if self.grain == "n_of_m" else "")
                + ". Write grain='fine', or fewer floors."
            )
        h, w, inputs, outputs = map(int, self.lengths)
        tiles = dict(h=h, w=w, inputs=inputs, outputs=outputs)
        make: dict[str, Callable[..., Blocks]] = {
            "vector": lambda *of: blocks.vectors(*of, axis=self.axis),
            "kernel": blocks.kernels,
            "filter": blocks.rows,
            "row": blocks.rows,
            "column": blocks.columns,
            "block": lambda *of: blocks.block(*of, **tiles),
        }
        return make.get(self.grain, blocks.weights)(net.groups, names)

    def check(self, task: Task) -> None:
        """Refuses a net of which nothing takes part, other ratios, and a budget out of reach.

        Raises:
            ArgumentError: it is one, or they are.
            BudgetError: a budget that one group a layer does not meet.
        """
        made = self.grains_of(task)
        if not isinstance(self.ratios, str):
            self.shares(task, made, Pruned(None, None))
        ones = {name: np.ones(Net(task).groups.leaves[name].shape) for name in made}
        self._refuse_below(self._price(task, made, self._chooser(task, made, ones, ones)))

    def _refuse_below(self, price: Price) -> None:
        budget, word = (
            self.budget,
            f"1 of {self.m}" if self.grain == "n_of_m" else f"one {self.grain}",
        )
        if (least := price(lambda name: LEAST)) > float(budget.value) + 1e-9:
            raise errors.BudgetError(
                f"Budget({budget.kind}={budget.value}) cannot be met: {word} in every layer "
                f"is {least:.4f} of the dense net. Ask for more, or for smaller groups."
            )

    def shares(self, task: Task, made: Blocks, pruned: Pruned) -> dict[str, float]:
        """{kernel: its density relative to the others}.

        Raises:
            ArgumentError: not as many ratios as kernels, or one that is not above 0.
        """
        if isinstance(self.ratios, str):
            dense = saved(pruned, "dense", "PruneGrains(ratios='scan')")
            # |w| > q_l std(W_l): what the layer bore to lose when it was pruned alone.
            scores = Net(task).leaves(criteria.std_rule(pruned.extra, "all").score((), dense))
            return {
                name: max(float(np.mean(np.asarray(scores[name]) > 1)), 1 / made[name].size)
                for name in made
            }
        ratios = per_name(self.ratios, tuple(made), "ratios")
        if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values()):
            raise errors.ArgumentError(f"ratios={ratios}; each is above 0.")
        return ratios

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks within the earlier ones, and the record.

        Raises:
            ArgumentError: weights that are not finite; ratios for other kernels than take part.
            BudgetError: a budget that cannot be met.
        """
        del key
        net, made = Net(task), self.grains_of(task)
        net.refuse_nan(pruned.variables, tuple(made))
        leaves = net.leaves(pruned.variables)
        before = net.leaves(net.prunable(pruned.masks, self.budget))
        alive = {name: np.asarray(before[name], float) for name in made}
        # S(G) = sum over G of |w|; what is masked already is gone
        sizes = {name: np.abs(np.asarray(leaves[name], float)) * alive[name] for name in made}
        choose = self._chooser(task, made, sizes, alive)
        density = self._density(self._price(task, made, choose), self.shares(task, made, pruned))
        chosen = {name: choose(name, density(name)) for name in made}
        metrics = self._stored(made, chosen)
        masks = blocks.spread(made, chosen)
        earlier = net.weight_masks(pruned.masks)
        masks = masks if earlier is None else intersect(earlier, masks)
        variables = apply_masks(pruned.variables, masks)
        return pruned._replace(variables=variables, masks=masks), [
            record(self.name, fractions(task, masks) | metrics)
        ]

    def _chooser(
        self,
        task: Task,
        made: Blocks,
        sizes: Mapping[str, np.ndarray],
        alive: Mapping[str, np.ndarray],
    ) -> Callable[[str, float], np.ndarray]:
        """`(kernel, density) -> bool [groups]`: those that stay."""
        scores, held = blocks.pool(made, sizes), blocks.pool(made, alive)
        scores = {name: np.where(held[name] > 0, scores[name], -np.inf) for name in made}
        groups = Net(task).groups

        @functools.lru_cache(maxsize=2 * len(made))  # a search asks for the same counts many times
        def of_count(name: str, count: int) -> np.ndarray:
            if self.grain != "n_of_m":
                return keep_best(scores[name], count)
            of_weights = {name: scores[name].reshape(sizes[name].shape)}
            return np.ravel(blocks.n_of_m(groups, of_weights, count, self.m)[name])

        def choose(name: str, density: float) -> np.ndarray:
            if self.grain == "n_of_m":  # the largest n within the density
                return of_count(name, max(1, math.floor(density * self.m + 1e-9)))
            return of_count(name, max(1, int(kept_count(made[name].size, density))))

        return choose

    def _price(self, task: Task, made: Blocks, choose: Callable[[str, float], np.ndarray]) -> Price:
        """What densities keep of the dense net, in the budget's unit."""
        weights = {name: math.prod(Net(task).groups.leaves[name].shape) for name in made}
        total = sum(weights.values())
        if self.budget.kind != "density":
            whole = {name: np.ones(block.size) for name, block in made.items()}
            price = allocate.price_of(whole, self.budget, _model(task, made))
            return lambda of: price({name: choose(name, of(name)) for name in made})
        if self.grain == "n_of_m":
            return lambda of: sum(int(choose(name, of(name)).sum()) for name in made) / total
        # Of densities, before counts are rounded: the same for groups of all sizes.
        return lambda of: sum(weights[name] * of(name) for name in made) / total

    def _density(self, price: Price, shares: Mapping[str, float]) -> Callable[[str], float]:
        """`kernel -> the density it keeps`, in proportion to the shares up to 1.

        Raises:
            BudgetError: one group in every layer is too much.
        """
        self._refuse_below(price)
        goal, least = float(self.budget.value), min(shares.values())
        if self.budget.kind == "density" and len({*shares.values()}) == 1:
            return lambda name: goal
        # d_l = min(1, t r_l), t up to where the layer of the least share is whole.
        at = lambda t: lambda name: min(1.0, max(t, LEAST) * shares[name] / least)
        return at(allocate.largest(lambda t: price(at(t)), goal + 1e-9))

    def _stored(self, made: Blocks, chosen: Mapping[str, np.ndarray]) -> dict[str, Any]:
        stored = blocks.storage(made, chosen, self.value_bits, self.index_bits)
        kept, dense = sum(s.kept for s in stored.values()), sum(s.dense for s in stored.values())
        bits = sum(each.bits for each in stored.values())
        if self.grain == "n_of_m":
            # A place among m takes log2(m) bits, and there are no gaps.
            bits = kept * (self.value_bits + math.ceil(math.log2(self.m)))
        groups = sum(block.size for block in made.values())
        return {"grains": groups, "grains_kept": kept, "storage": bits / dense}


def _divided(layer: Layer, m: int) -> bool:
    """Whether the inputs of a layer come in sets of m."""
    return len(layer.inputs) == 1 and layer.shape[layer.inputs[0]] % m == 0


def _model(task: Task, made: Blocks) -> CostModel:
    """The net's cost model, of masks of groups by kernel."""
    cost = Net(task).cost
    return lambda by_name: cost(blocks.spread(made, by_name))
