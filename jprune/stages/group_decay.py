"""Groups that weight decay is to take away: which they are, how they are chosen, and their cut."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from jprune import allocate, blocks, errors
from jprune.base import Budget, Pruned, Records, Task, Variables
from jprune.blocks import Blocks
from jprune.masks import apply_masks
from jprune.stages.centripetal import drift
from jprune.stages.frame import fractions, record
from jprune.train.net import Net
from jprune.train.optimizers import Sgd

KINDS = ("filter", "channel", "column")


@dataclasses.dataclass(frozen=True)
class Grouped:
    """What the groups are.

    Attributes:
        kind: of `KINDS`.
        names: of engine groups or kernels; None: all.
        scales: whether the scales and shifts of norms, and biases, are weights of their filter.
    """

    kind: str = "filter"
    names: tuple[str, ...] | None = None
    scales: bool = True

    def of(self, net: Net, budget: Budget, scales: bool | None = None) -> Blocks:
        """The blocks, those that a floor keeps whole left out.

        Args:
            net: whose groups.
            budget: whose floors are read.
            scales: in the place of the attribute.

        Raises:
            ArgumentError: another kind.
            FrozenError, StructureError: see `blocks.of_kinds`.
        """
        if self.kind not in KINDS:
            raise errors.ArgumentError(f"group={self.kind!r}; write one of {', '.join(KINDS)}.")
        whole = self.scales if scales is None else scales
        (found,) = blocks.of_kinds(
            net.groups, (self.kind,), self.names, scales=whole, shifts=whole, floors=budget.floors
        )
        return found

    def sizes(self, net: Net, budget: Budget, variables: Variables) -> dict[str, np.ndarray]:
        """{block: [groups]}: the mean |w| of a group's kernels; -inf where it is 0."""
        of = self.of(net, budget, scales=False)
        leaves = net.leaves(variables)
        absolute = {path: np.abs(np.asarray(leaves[path], float)) for path in of.counted}
        means = blocks.pool(of, absolute, "mean")
        return {name: np.where(mean > 0, mean, -np.inf) for name, mean in means.items()}

    def stay(self, pruned: Pruned, task: Task, budget: Budget) -> dict[str, np.ndarray]:
        """Which groups a budget keeps, the same fraction in every block, by their mean |w|.

        Raises:
            ArgumentError: weights that are NaN.
            BudgetError: the budget cannot be met.
        """
        net, of = Net(task), self.of(Net(task), budget)
        scores = {of.kind: self.sizes(net, budget, pruned.variables)}
        chosen = allocate.jointly([of], scores, budget, net.cost, allocate.uniform, pruned.masks)
        return {name: np.asarray(mask, bool) for name, mask in chosen[of.kind].items()}

    def check(self, task: Task, budget: Budget) -> None:
        """Refuses a net without such groups, and a budget that they cannot meet."""
        net, of = Net(task), self.of(Net(task), budget)
        whole = {of.kind: {name: np.ones(block.size) for name, block in of.items()}}
        allocate.refuse_impossible_jointly([of], whole, budget, net.cost)


def refuse_swings(sgd: Sgd, strength: float) -> None:
    """Refuses a decay that is too strong for the learning rate: weights would swing ever wider."""
    most = float(np.max(np.asarray(sgd.rate(np.arange(sgd.taken)))))
    # A step takes off at least rate * strength of a weight, and 1 / (1 - m) of it with momentum.
    if strength * most > 1:
        raise errors.ArgumentError(
            f"ceiling={strength} at a learning rate of {most:.2g}: a step would take more than a "
            f"whole weight. Write a ceiling of {1 / most:.2g} or less, or a smaller learning rate."
        )


@dataclasses.dataclass(frozen=True)
class ChooseGroups:
    """Chooses the groups with the smallest mean |w|, the same fraction of every block.

    Afterwards `extra` has those that stay (`alive`).

    Attributes:
        budget: what may be kept.
        grouped: what the groups are.
        name: of the record: how many groups are chosen.
    """

    budget: Budget
    grouped: Grouped = Grouped()
    name: str = "choose"

    def check(self, task: Task) -> None:
        """As `Grouped.check`."""
        self.grouped.check(task, self.budget)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and what was chosen."""
        del key
        alive = self.grouped.stay(pruned, task, self.budget)
        chosen = sum(int((~mask).sum()) for mask in alive.values())
        extra = {"alive": alive, "late": np.asarray(0)}
        return pruned._replace(extra=extra), [record(self.name, {"chosen": chosen})]


def alive_in(pruned: Pruned) -> dict[str, np.ndarray]:
    """The groups that stay, which an earlier stage put into `extra`.

    Raises:
        ArgumentError: there are none.
    """
    if not (isinstance(pruned.extra, Mapping) and "alive" in pruned.extra):
        raise errors.ArgumentError(
            "the net comes without chosen groups. Put ChooseGroups(budget) before Grow, and that "
            "or RaiseByRank before CutGroups."
        )
    return {name: np.asarray(mask, bool) for name, mask in pruned.extra["alive"].items()}


@dataclasses.dataclass(frozen=True)
class CutGroups:
    """Masks the groups that decay was to take away, and says what they still were.

    Attributes:
        budget: what may be kept.
        grouped: what the groups are.
        name: of the record: fractions kept, `decayed` (the norm of the groups that go over that of
            all), `drift` (the largest change of an output over the largest output, on validation
            images) and `late` (how many groups had not come to the ceiling).
    """

    budget: Budget
    grouped: Grouped = Grouped()
    name: str = "prune"

    def check(self, task: Task) -> None:
        """As `Grouped.check`."""
        self.grouped.check(task, self.budget)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            ArgumentError: no groups were chosen.
        """
        del key
        net, alive = Net(task), alive_in(pruned)
        of = self.grouped.of(net, self.budget)
        masks = blocks.masks(of, alive, pruned.masks)
        variables = apply_masks(pruned.variables, net.weight_masks(masks))
        norms = blocks.norms(of, pruned.variables)
        square = lambda name, keep: float((norms[name][keep] ** 2).sum())
        gone, whole = (
            sum(square(name, ~alive[name]) for name in of),
            sum(square(name, ...) for name in of),
        )
        metrics = {
            **fractions(task, masks),
            "decayed": (gone / max(whole, np.finfo(float).tiny)) ** 0.5,
            "drift": drift(task, pruned.variables, variables),
            "late": int(pruned.extra["late"]),
        }
        after = pruned._replace(variables=variables, masks=masks, extra=None)
        return after, [record(self.name, metrics)]
