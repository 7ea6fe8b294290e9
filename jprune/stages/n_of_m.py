"""N of every M consecutive inputs: kernels of a pattern that hardware reads, by size or learned."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
import optax

from jprune import blocks, errors
from jprune.allocate import price_of
from jprune.base import (
    Budget,
    Groups,
    Learner,
    Masks,
    Pruned,
    PyTree,
    Records,
    Schedule,
    Task,
    to_the_end,
)
from jprune.blocks.members import paths_among
from jprune.graph.shrink.concrete import copied, on_host
from jprune.masks import apply_masks, intersect, masks_of
from jprune.sparsify.refined import refined_ste
from jprune.stages.frame import fractions, record
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.step import TrainState, plain


@dataclasses.dataclass(frozen=True)
class Pattern:
    """N of M under a budget.

    Attributes:
        budget: that the pattern meets. A density is that of the kernels that have the pattern;
            groups that its floors leave whole have none.
        n: how many of every m weights are kept; None: as many as the budget allows.
        m: of how many consecutive inputs.
    """

    budget: Budget
    n: int | None = None
    m: int = 4

    def __post_init__(self):
        if self.m < 1 or (self.n is not None and not 1 <= self.n <= self.m):
            raise errors.ArgumentError(
                f"n={self.n} of m={self.m}: n of m are kept, so 1 <= n <= m. Write n=2, m=4."
            )

    def paths(self, task: Task) -> tuple[str, ...]:
        """The kernels that have the pattern: those with one axis of inputs, a multiple of m.

        Raises:
            ArgumentError: there is none.
        """
        net = Net(task)
        kernels = net.prunable(None, self.budget)
        net.kernels(kernels)
        ones = blocks.n_of_m(net.groups, kernels, self.m, self.m)
        paths = tuple(net.leaves(ones))
        if not paths:
            raise errors.ArgumentError(
                f"no kernel of {task.name} has inputs that are a multiple of m={self.m}, so none "
                "has this pattern. Write another m, or take a method for single weights."
            )
        return paths

    def kept(self, task: Task) -> int:
        """The n of this net.

        Raises:
            BudgetError: n of m, or one of m, is more than the budget allows.
        """
        paths, net = self.paths(task), Net(task)
        ones = net.tree({path: np.ones(net.groups.leaves[path].shape) for path in paths})
        if self.budget.kind == "density":
            price = lambda n: n / self.m
        else:
            of_masks = price_of(net.prunable(None, self.budget), self.budget, net.cost)
            price = lambda n: of_masks(blocks.n_of_m(net.groups, ones, n, self.m))
        goal, least = float(self.budget.value) + 1e-9, self.n or 1
        if price(least) > goal:
            raise errors.BudgetError(
                f"Budget({self.budget.kind}={self.budget.value}) cannot be met by {least} of "
                f"{self.m}: {price(least):.4f} of the dense net is left, for kernels without the "
                "pattern stay dense. Ask for more, or write a larger m."
            )
        fitting = range(least, (self.n or self.m) + 1)
        return max(n for n in fitting if price(n) <= goal)


def n_largest(groups: Groups, paths: Collection[str], n: int, m: int, weights: PyTree) -> Masks:
    """Masks of the n largest |w| of every m consecutive inputs, of kernels of these paths.

    Args:
        groups: from `trace`.
        paths: of kernels; other leaves have no mask.
        n: how many are kept.
        m: of how many.
        weights: variables or a part of them; may be traced.
    """
    of_leaves = iter(paths_among(tuple(paths), weights))
    # |w|; None where there is no pattern
    absolute = on_host(lambda xnp, leaf: xnp.abs(leaf))
    size = lambda leaf: absolute(leaf) if next(of_leaves) in paths else None
    return blocks.n_of_m(groups, jax.tree.map(size, weights), n, m)


@dataclasses.dataclass(frozen=True)
class PruneNOfM:
    """Masks all but the n largest of every m consecutive inputs, at once.

    Attributes:
        pattern: n, m and the budget.
        name: of the record: fractions kept, n and m.
    """

    pattern: Pattern
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `Pattern.kept` does."""
        self.pattern.kept(task)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The masked net, and a record. What was masked before stays so, and is not counted."""
        del key
        net, n, paths = Net(task), self.pattern.kept(task), self.pattern.paths(task)
        net.refuse_nan(pruned.variables, paths)
        before = net.weight_masks(pruned.masks)
        masks = n_largest(net.groups, paths, n, self.pattern.m, pruned.variables)
        masks = masks if before is None else intersect(before, masks)
        found = fractions(task, masks) | {"n": n, "m": self.pattern.m}
        variables = apply_masks(pruned.variables, masks)
        return pruned._replace(variables=variables, masks=masks), [record(self.name, found)]


@dataclasses.dataclass(frozen=True)
class Refined:
    """How the pattern takes part in training: `refined_ste` around the optimizer, as a `Wrap`.

    Attributes:
        paths: of the kernels that have the pattern.
        n: how many are kept.
        m: of how many consecutive inputs.
        strength: of the pull on masked weights.
    """

    paths: tuple[str, ...]
    n: int
    m: int
    strength: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        choose = functools.partial(n_largest, net.groups, self.paths, self.n, self.m)
        return lambda inner: refined_ste(inner, choose, self.strength)


@dataclasses.dataclass(frozen=True)
class RefineNOfM:
    """Trains a dense net that runs under a pattern, chosen anew in every step.

    Attributes:
        train: how long, and how.
        pattern: n, m and the budget.
        strength: of the pull on masked weights, added to the gradient; 0: none.
        name: of the records.
    """

    train: Train
    pattern: Pattern
    strength: float = 2e-4
    name: str = "refine"

    def __post_init__(self):
        refined_ste(optax.identity(), lambda weights: weights, self.strength)  # refuses numbers

    def check(self, task: Task) -> None:
        """Refuses an average of weights whose masks move; raises what `Pattern.kept` does."""
        self.train.takes("training under N:M", "optimizer", "warmup", "clip", "accumulate")
        self.pattern.kept(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: masks from before, or what `Train.learner` raises.
            BudgetError: what `Pattern.kept` raises.
        """
        if pruned.masks is not None:
            raise errors.ArgumentError(
                "RefineNOfM chooses masks of a dense net, and this one has masks. Put BeginAnew() "
                "before the stage that masks, or leave that out."
            )
        refined = Refined(
            self.pattern.paths(task), self.pattern.kept(task), self.pattern.m, self.strength
        )
        task, optimizer = self.train.taught(task, pruned), self.train.optimizer_for(task)
        learner = plain(task, pruned, None, optimizer, key, self.train.batch_size, refined)

        def init() -> TrainState:
            state = learner.init()
            masked = apply_masks(state.params, masks_of(state.opt_state))
            return copied(state._replace(params=masked))

        def finish(state: TrainState) -> Pruned:
            none = jax.tree.map(lambda leaf: None, state.rest)
            masks = task.merge(masks_of(state.opt_state), none)
            return pruned._replace(variables=learner.variables(state), masks=masks)

        return learner._replace(init=init, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]
