"""What moving masks move towards: how much of the net is kept in the end, and of what."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import allocate, errors
from jprune.allocate.budgets import kept_count
from jprune.allocate.widths import widths
from jprune.base import (
    ROLES,
    Allocator,
    Budget,
    Criterion,
    Masks,
    Pruned,
    PyTree,
    Records,
    Schedule,
    Scores,
    Task,
    Variables,
    is_none,
)
from jprune.criteria.magnitude import magnitude
from jprune.graph.shrink.concrete import on_host
from jprune.masks import apply_masks, intersect, keep_best
from jprune.sparsify import Rule, masks_by
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.silent import folded, noise
from jprune.train.net import Net
from jprune.units import expand, ones, to_units

PER = ("weight", "unit")
SCOPES = ("layer", "global")


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is kept in the end, and by which scores.

    With scope "layer" every kernel or group keeps a number of its own, which is known before
    anything is trained: the same fraction everywhere that meets the budget. With "global" all of
    them compete at one density; a budget in MACs or parameters is then the density at which the
    same fraction everywhere would meet it, and `settled` meets it by the weights as they are.

    Attributes:
        budget: what may be kept; of weights, a density is that of all kernels.
        per: "weight" or "unit".
        scope: "layer" or "global".
        order: of the norm that scores: 1 or 2.
        first: the least fraction of its weights that the first layer keeps; 0: as the others.
        last: the same of layers that no other layer reads.
    """

    budget: Budget
    per: str = "weight"
    scope: str = "layer"
    order: int = 1
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self):
        if self.per not in PER or self.scope not in SCOPES:
            raise errors.ArgumentError(
                f"per={self.per!r}, scope={self.scope!r}; write per='weight' or 'unit', and "
                "scope='layer' or 'global'."
            )
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1):
            raise errors.ArgumentError(
                f"first={self.first}, last={self.last}; each is the least fraction of weights that "
                "such a layer keeps, in [0, 1]; 0 treats it as the others."
            )
        if self.per == "unit" and (self.first or self.last):
            raise errors.ArgumentError(
                f"per='unit' with first={self.first}, last={self.last}: they are of single "
                "weights. A group of units stays whole with Budget(floors={name: its size})."
            )
        magnitude(self.order)

    @property
    def pool(self) -> str:
        """How scores of weights become scores of units."""
        # Units that compete with their like have equally many weights; across groups they do not.
        return "sum" if self.scope == "layer" else "mean"

    def check(self, task: Task) -> None:
        """Refuses nets and budgets before anything is trained.

        Raises:
            ArgumentError: nothing to prune; a budget in what the cost model does not measure.
            BudgetError: a budget that cannot be met.
        """
        check_prunable(task, self.budget, self.per)
        self.counts(Net(task))

    def sizes(self, net: Net) -> dict[str, int]:
        """{kernel or group: how many weights or units it has}, in execution order."""
        if self.per == "unit":
            return dict(net.groups.sizes)
        kernels = net.kernels(net.prunable(None, self.budget))
        return {path: math.prod(net.groups.leaves[path].shape) for path in kernels}

    def least(self, net: Net) -> dict[str, int]:
        """{kernel: the smallest number of weights that it keeps}."""
        sizes, layers = self.sizes(net), net.groups.layers

        def part(number: int, path: str) -> float:
            last = path in layers and layers[path].last
            return max(self.first if number == 0 else 0.0, self.last if last else 0.0)

        return {
            # 1e-9: a fraction such as 0.1 of 30 is not to become 4.
            path: max(1, math.ceil(part(number, path) * size - 1e-9))
            for number, (path, size) in enumerate(sizes.items())
        }

    def counts(self, net: Net) -> dict[str, int]:
        """{kernel or group: how many it keeps where all keep the same fraction}.

        Raises:
            BudgetError: a budget that cannot be met.
        """
        if self.per == "unit":
            return widths(ones(net.groups), self.budget, net.cost, lambda masks: masks)
        sizes, least = self.sizes(net), self.least(net)
        at = lambda d: {p: max(least[p], int(kept_count(n, d))) for p, n in sizes.items()}
        if self.budget.kind == "density" and not (self.first or self.last):
            return at(float(self.budget.value))
        price = self._price(net)
        goal = float(self.budget.value) + 1e-9
        if (smallest := price(at(0.0))) > goal:
            raise errors.BudgetError(
                f"Budget({self.budget.kind}={self.budget.value}) cannot be met: with first="
                f"{self.first} and last={self.last}, {smallest:.4f} of the dense net are left at "
                "least. Ask for more, or write smaller fractions."
            )
        # The same fraction d of every layer, above what first and last layers keep at least.
        return at(allocate.largest(lambda d: price(at(d)), goal))

    def _price(self, net: Net) -> Any:
        """`{kernel: weights kept} -> what they are of the dense net, in the budget's unit`."""
        sizes = self.sizes(net)
        if self.budget.kind == "density":
            return lambda counts: sum(counts.values()) / sum(sizes.values())
        # Which weights are kept does not change the cost, so the first ones stand for any.
        first = lambda path, n: (np.arange(sizes[path]) < n).reshape(net.groups.leaves[path].shape)
        masks = lambda counts: net.tree({path: first(path, n) for path, n in counts.items()})
        price = allocate.price_of(masks(sizes), self.budget, net.cost)
        return lambda counts: price(masks(counts))

    def density(self, net: Net) -> float:
        """The fraction of all weights or units that is kept in the end."""
        if self.scope == "global" and self.budget.kind == "density":
            return float(self.budget.value)
        return sum(self.counts(net).values()) / sum(self.sizes(net).values())

    def criterion(self, net: Net) -> Criterion:
        """|w| or w^2 of what may be pruned; +inf for what the first and last layers keep."""
        inner = magnitude(self.order)
        if self.per == "unit":
            return inner
        least = self.least(net) if self.scope == "global" and (self.first or self.last) else {}
        floors = {path: least.get(path, 0) for path in self.sizes(net)}

        def score(state: PyTree, variables: Variables) -> Scores:
            def one(floor: Any, leaf: Any) -> Any:
                if floor is None or leaf is None:
                    return None
                xnp = jnp if isinstance(leaf, jax.Array) else np
                # Never pruned: +inf.
                return leaf if floor <= 1 else xnp.where(keep_best(leaf, floor), xnp.inf, leaf)

            return jax.tree.map(
                one, net.tree(floors), inner.score(state, variables), is_leaf=is_none
            )

        return inner._replace(score=score)

    def allocator(self, net: Net) -> Allocator:
        """Scores and a density, which may be traced, to masks."""
        if self.scope == "global":
            floors = {} if self.per == "weight" else self.budget.floors
            step = 1 if self.per == "weight" else self.budget.multiple_of
            least = dataclasses.replace(
                Budget(density=1.0), multiple_of=step, floors=floors,
                min_units=self.budget.min_units if self.per == "unit" else 1,
            )  # fmt: skip
            return lambda scores, budget, model: allocate.global_topk(
                scores, dataclasses.replace(least, density=budget.value), model
            )
        counts = self.counts(net)
        if self.per == "unit":
            return lambda scores, budget, model: allocate.toward(
                {name: counts[name] for name in scores}
            )(scores, budget, model)
        params = net.task.split(net.tree(counts))[0]
        return allocate.toward(params)

    def rule(self, net: Net, schedule: Schedule, roles: Sequence[str] = ROLES) -> Rule:
        """Masks by the parameters and the step, from `jprune.sparsify.masks_by`."""
        return masks_by(
            self.criterion(net), self.allocator(net), schedule, net.groups, self.per, self.pool,
            roles,
        )  # fmt: skip

    def settled(self, task: Task, variables: Variables, before: Masks = None) -> Masks:
        """The masks that the weights as they are meet the budget with.

        Args:
            task: of the net.
            variables: of the net, dense.
            before: masks from before; what they mask stays masked.

        Returns:
            Masks of weights, or of units {group: [units]}.

        Raises:
            ArgumentError: weights that are NaN.
            BudgetError: a budget that cannot be met.
        """
        net = Net(task)
        scores = self.criterion(net).score((), variables)
        if self.per == "unit":
            scores = to_units(net.groups, scores, within=self.pool, across=self.pool)
            scores = {name: np.asarray(score, float) for name, score in scores.items()}
        if self.scope == "global":
            budget = self.budget if self.per == "unit" else self.budget.of_weights()
            masks = allocate.global_topk(scores, budget, net.cost)
        else:
            counts: Any = self.counts(net)
            counts = {n: counts[n] for n in scores} if self.per == "unit" else net.tree(counts)
            least = min(self.density(net), 1.0)
            masks = allocate.toward(counts)(scores, Budget(density=least), None)
        if self.per == "unit":
            masks = {**ones(net.groups), **masks}
        if before is None:
            return masks
        if self.per == "unit" and net.are_units(before):
            return {
                n: np.asarray(mask) & np.asarray(before.get(n, True)) for n, mask in masks.items()
            }
        return intersect(net.weight_masks(masks), net.weight_masks(before))


def period(every: int | None, usual: int, steps: int) -> int:
    """Steps from one revision to the next: what was asked for, or the paper's, scaled down.

    Args:
        every: what was asked for; None: the usual number, in short runs a tenth of the steps.
        usual: the paper's.
        steps: of the run.

    Raises:
        ArgumentError: less than one step.

    Example:
        >>> period(None, 16, 1000), period(None, 16, 50), period(3, 16, 50)
        (16, 5, 3)
    """
    if every is not None and every < 1:
        raise errors.ArgumentError(f"every={every}; masks are revised every 1 step or more.")
    return max(1, min(usual, steps // 10)) if every is None else every


@dataclasses.dataclass(frozen=True)
class Settle:
    """Fixes the masks after training in which they moved, so that they meet the budget.

    Weights that a mask hid compete by what they are worth, as `extra["hidden"]` has them. What a
    unit without kernels still says to its readers, f(shift), is folded into them where it is a
    constant, before the unit goes: so that cutting what was 0 anyway changes as little as it can.

    Attributes:
        goal: what is kept, by which scores.
        name: of the record: fractions kept, and `settled`, the fraction of what had masks whose
            mask was changed for the budget.
    """

    goal: Goal
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `Goal.check` does."""
        self.goal.check(task)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its last masks; raises what `Goal.settled` does."""
        net, seen = Net(task), pruned.variables
        hidden = (pruned.extra or {}).get("hidden")
        variables = seen if hidden is None else uncovered(seen, hidden)
        masks = self.goal.settled(task, variables, pruned.masks)
        of_weights: Any = net.weight_masks(masks)
        alive = self.alive(net, seen)
        if net.are_units(masks):
            variables = without_silent(task, variables, masks, key)
            changed = [np.asarray(mask) != alive[name] for name, mask in masks.items()]
        else:
            pairs = net.leaves(of_weights).items()
            changed = [np.asarray(mask) != alive[path] for path, mask in pairs if path in alive]
        flat = np.concatenate([change.reshape(-1) for change in changed])
        metrics = fractions(task, masks) | {"settled": float(flat.mean())}
        after = Pruned(apply_masks(variables, of_weights), masks, None, pruned.saved)
        return after, [record(self.name, metrics)]

    def alive(self, net: Net, variables: Variables) -> dict[str, np.ndarray]:
        """{kernel or group: what is other than 0}."""
        if self.goal.per == "weight":
            leaves = net.leaves(variables)
            return {path: np.asarray(leaves[path]) != 0 for path in self.goal.sizes(net)}
        sizes = magnitude(1).score((), variables)
        scores = to_units(net.groups, sizes)
        return {
            **ones(net.groups), **{name: np.asarray(score) > 0 for name, score in scores.items()}
        }  # fmt: skip


def uncovered(variables: Variables, hidden: PyTree) -> Variables:
    """The variables with the values of the masked weights, which are 0 where one is alive."""
    one = on_host(lambda xnp, worth, leaf: xnp.where(worth == 0, leaf, worth))
    put = lambda worth, leaf: leaf if worth is None else one(worth, leaf)
    return jax.tree.map(put, hidden, variables, is_leaf=is_none)


def without_silent(task: Task, variables: Variables, masks: Masks, key: jax.Array) -> Variables:
    """The variables without the kernels of masked units, whose constants are folded."""
    groups = Net(task).groups
    bare = apply_masks(variables, expand(groups, masks, ("kernel",)))
    silent = {name: ~np.asarray(mask, bool) for name, mask in masks.items()}
    # What cannot be folded goes all the same: the budget asks for it.
    return folded(task, bare, silent, noise(task, key))[0]
