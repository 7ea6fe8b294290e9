"""The stages of ADMM: training with duals, and the cut."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Budget, Learner, Pruned, PyTree, Records, Schedule, Task
from jprune.blocks.members import Blocks
from jprune.masks import apply_masks
from jprune.sparsify import admm, projection
from jprune.sparsify.admm import Projection, supports
from jprune.stages.frame import fractions, record
from jprune.stages.structures import (
    AFFINE,
    ALLOCATORS,
    Alive,
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
from jprune.train.optimizers import Adam
from jprune.train.step import TrainState, plain

ROUNDS = 30
"""The authors' number of rounds."""


LEAST = 100
"""Steps of a round: in fewer, duals grow faster than weights can follow, and supports flip."""


@dataclasses.dataclass(frozen=True)
class Sets:
    """Which groups are kept how often; see `struct_admm` for what the attributes do.

    Attributes:
        budget: what may be kept.
        kinds: "filter", "channel", "column", "weight"; they are projected on in this order.
        keep: fractions; None: what meets the budget.
        names: of groups or kernels; None: all.
        spread: of the budget, "uniform" or "global_topk".
        affine: filters have their scales and shifts in them.
    """

    budget: Budget
    kinds: tuple[str, ...] = ("filter",)
    keep: str | None = None
    names: tuple[str, ...] | None = None
    spread: str = "uniform"
    affine: bool = True

    def blocks(self, task: Task) -> dict[str, Blocks]:
        """{kind: its groups}.

        Raises:
            FrozenError: a name is frozen.
            StructureError: a kind or name that the net does not have.
        """
        beside = AFFINE if self.affine else ()
        return blocks_by_kind(task, self.kinds, self.budget, self.names, beside)

    def fractions(self, blocks: Mapping[str, Blocks]) -> dict[str, dict[str, float]]:
        """{kind: {block: fraction kept}}, as `keep` says.

        Raises:
            ArgumentError: not as many fractions as blocks, or one outside (0, 1].
        """
        asked = numbers_of(self.keep or "1", self.kinds, blocks, "keep")
        for of_kind in asked.values():
            if not all(0 < fraction <= 1 for fraction in of_kind.values()):
                raise errors.ArgumentError(
                    f"keep={self.keep!r}; each is the fraction of groups kept, in (0, 1]."
                )
        return asked

    def counts(self, task: Task, pruned: Pruned) -> dict[str, dict[str, int]]:
        """{kind: {block: groups kept}}.

        Raises:
            ArgumentError: not as many fractions as blocks, or one outside (0, 1].
            BudgetError: no counts meet the budget, or those asked for do not.
        """
        blocks = self.blocks(task)
        if self.keep is None:
            norms = norms_of(task, blocks, pruned.variables)
            alive = {k: {n: norm > 0 for n, norm in of.items()} for k, of in norms.items()}
            allocator, scores = ALLOCATORS[self.spread], scored(norms, alive)
            alive = allocated(task, scores, self.budget, allocator, pruned.masks)
            return {k: {n: int(np.sum(m)) for n, m in of.items()} for k, of in alive.items()}
        asked = self.fractions(blocks)
        counts = {
            kind: {
                name: max(least_of(self.budget, kind, name), n - round((1 - asked[kind][name]) * n))
                for name, n in ((name, block.size) for name, block in of_kind.items())
            }
            for kind, of_kind in blocks.items()
        }
        _, alive = nearest(task, blocks, counts, pruned.variables)
        kept = fraction_kept(task, masks_of(task, alive, pruned.masks), self.budget)
        if kept > float(self.budget.value) + 1e-9:
            raise errors.BudgetError(
                f"keep={self.keep!r} keeps {self.budget.kind}={kept:.4f} of the dense net, and "
                f"{self.budget.kind}={self.budget.value} was asked for. Write smaller fractions, "
                "leave keep out, or ask for more."
            )
        return counts


def nearest(
    task: Task,
    blocks: Mapping[str, Blocks],
    counts: Mapping[str, Mapping[str, int]],
    variables: PyTree,
) -> tuple[Scores, Alive]:
    """Norms as the projection sees them, of each kind after those before it, and what it keeps."""
    seen = supports([(blocks[kind], counts[kind]) for kind in blocks], Net(task).leaves(variables))
    norms = {
        kind: {name: np.sqrt(np.asarray(square, float)) for name, square in each.squares.items()}
        for kind, each in zip(blocks, seen)
    }
    alive = {
        kind: {name: np.asarray(mask) for name, mask in each.kept.items()}
        for kind, each in zip(blocks, seen)
    }
    return norms, alive


def scored(norms: Mapping[str, Mapping[str, np.ndarray]], alive: Alive) -> Scores:
    """Squared norms; -inf where a group is gone."""
    return {
        kind: {name: np.where(alive[kind][name], norm**2, -np.inf) for name, norm in of.items()}
        for kind, of in norms.items()
    }


class Splitting(NamedTuple):
    """How ADMM takes part in training: a sparse copy of the weights beside them."""

    project: Projection
    paths: tuple[tuple[str, ...], Any]
    """Of the parameters: leaves and structure."""
    rho: float
    every: int
    growth: float
    limit: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del net, rate, key
        return lambda inner: admm(
            inner, self.project, jax.tree.unflatten(self.paths[1], self.paths[0]),
            rho=self.rho, every=self.every, growth=self.growth, limit=self.limit,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Admm:
    """Training with a sparse copy; nothing is masked yet.

    Afterwards `extra` has `counts` {kind: {block: groups kept}} and `stopped`, the round in which
    the duals diverged (0: none): the net is then that of the last good round.

    Attributes:
        train: how long, on which batches, and how for "sgd".
        sets: what is projected on.
        rounds: refreshes of the copy and the duals; None: 30, or as many as have 100 steps each.
        rho: see `struct_admm`.
        growth: see `struct_admm`.
        limit: see `struct_admm`.
        adam: learning rate and weight decay of the authors' optimizer; None: SGD, as `train` says.
        name: of the records: those of training, and `primal` and `change` of the last round.
    """

    train: Train
    sets: Sets
    rounds: int | None = None
    rho: float = 1e-3
    growth: float = 1.2
    limit: float = 100.0
    adam: tuple[float, float] | None = (1e-3, 5e-5)
    name: str = "admm"

    def check(self, task: Task) -> None:
        """Raises what `Sets.blocks` and `Sets.fractions` do."""
        self.sets.fractions(self.sets.blocks(task))

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: too few steps for the rounds, weights that are not finite, other
                fractions; what `Train.taught` raises.
            BudgetError: no counts meet the budget.
        """
        train, steps = self.train, self.train.steps(task.data.sizes["train"])
        most = max(1, min(ROUNDS, steps // LEAST)) if self.rounds is None else self.rounds
        every = steps // most
        if not every or steps // every != most:
            raise errors.ArgumentError(
                f"ADMM with rounds={most} in {steps} steps: they do not make so many rounds of "
                f"equal length, and a round needs some {LEAST} for the weights to follow. Write "
                "fewer rounds or more epochs."
            )
        task = train.taught(task, pruned)
        blocks, counts = self.sets.blocks(task), self.sets.counts(task, pruned)
        touched = {m.path for of in blocks.values() for b in of.values() for m in b.members}
        Net(task).refuse_nan(pruned.variables, tuple(sorted(touched)))
        paths = jax.tree.flatten(paths_of(task))
        optimizer = (
            train.sgd(task) if self.adam is None else Adam(self.adam[0], steps, self.adam[1])
        )
        splitting = Splitting(
            projection([(blocks[kind], counts[kind]) for kind in self.sets.kinds]),
            (tuple(paths[0]), paths[1]),
            self.rho,
            every,
            self.growth,
            self.limit,
        )
        masks = Net(task).weight_masks(pruned.masks)
        learner = plain(task, pruned, masks, optimizer, key, train.batch_size, splitting)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            state, seen = learner.step(state, batch)
            residuals = {name: getattr(state.opt_state, name) for name in ("primal", "change")}
            return state, {**seen, **residuals}

        def finish(state: TrainState) -> Pruned:
            stopped = int(state.opt_state.stopped)
            params = state.opt_state.good if stopped else state.params
            extra = {"counts": counts, "stopped": stopped}
            return Pruned(task.merge(params, state.rest), pruned.masks, extra, pruned.saved)

        return learner._replace(step=step, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Projects the weights themselves and fixes their support as masks.

    Attributes:
        sets: what is projected on.
        purify: groups are cut too whose norm is below so much of the mean of those that are kept in
            their block (what ADMM leaves near 0); 0: none.
        name: of the record: fractions kept, and `gap`, ||W - projection|| / ||W|| at the cut.
    """

    sets: Sets
    purify: float = 0.0
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks; what nothing reads any more goes with `slim`.

        Raises:
            DivergenceError: the duals diverged; the net that came is that of the last good round.
        """
        del key
        counts, stopped = pruned.extra["counts"], int(pruned.extra["stopped"])
        if stopped:
            raise errors.DivergenceError(
                f"ADMM stopped: its duals diverged in round {stopped}. The net after round "
                f"{stopped - 1}, the last good one, is kept: it is what the stage before this one "
                "has left. Write a smaller rho where the loss grew, a larger one or growth=1.1 "
                "where the rounds cycled, or a larger limit."
            )
        blocks = self.sets.blocks(task)
        norms, alive = nearest(task, blocks, counts, pruned.variables)
        if self.purify:
            alive = {
                kind: {name: self.pure(norms[kind][name], mask) for name, mask in of.items()}
                for kind, of in alive.items()
            }
        masks = masks_of(task, alive, pruned.masks)
        if fraction_kept(task, masks, self.sets.budget) > float(self.sets.budget.value) + 1e-9:
            # What columns cost depends on which filters they share: counts alone do not say.
            left = scored(norms, alive)
            alive = allocated(task, left, self.sets.budget, ALLOCATORS["uniform"], pruned.masks)
            masks = masks_of(task, alive, pruned.masks)
        variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
        seen = fractions(task, masks) | {"gap": gap(task, pruned.variables, blocks, counts)}
        return Pruned(variables, masks, None, pruned.saved), [record(self.name, seen)]

    def pure(self, norm: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The mask without groups that are near 0; the largest always stays."""
        return mask & (norm >= min(self.purify * norm[mask].mean(), norm.max()))


def gap(
    task: Task,
    variables: PyTree,
    blocks: Mapping[str, Blocks],
    counts: Mapping[str, Mapping[str, int]],
) -> float:
    """||W - projection of W|| / ||W|| over the leaves that are projected."""
    project = projection([(blocks[kind], counts[kind]) for kind in blocks])
    leaves = Net(task).leaves(variables)
    near = project(leaves)
    away = sum(float(jnp.sum((leaves[path] - leaf) ** 2)) for path, leaf in near.items())
    return (away / sum(float(jnp.sum(leaves[path] ** 2)) for path in near)) ** 0.5
