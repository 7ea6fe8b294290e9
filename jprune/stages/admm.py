"""The stages of ADMM: training with duals, and the cut."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jprune import blocks
from jprune.allocate import fraction_kept
from jprune.base import (
    Learner,
    Pruned,
    Records,
    Schedule,
    Task,
    Variables,
    is_none,
)
from jprune.blocks import Blocks
from jprune.masks import apply_masks
from jprune.sparsify import admm, projection
from jprune.stages.frame import fractions, record
from jprune.stages.splitting import (
    Constraint,
    Counts,
    fewer,
    nearest,
    pulled,
    refuse_diverged,
    scored,
    steps_of_round,
)
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.optimizers import Adam
from jprune.train.step import plain

ROUNDS = 30
"""The authors' number of rounds."""

CLOSER = 0.75
"""ADMM acts if the weights are nearer to their projection at the cut than so much of before."""


@dataclasses.dataclass(frozen=True)
class Splitting:
    """How ADMM takes part in training: a sparse copy of the weights beside them.

    Attributes:
        sets: the constraint.
        counts: groups kept, by kind and block.
        rho: see `jprune.sparsify.admm`.
        every: steps in a round.
        growth: see `jprune.sparsify.admm`.
        limit: see `jprune.sparsify.admm`.
    """

    sets: Constraint
    counts: Counts = dataclasses.field(hash=False)
    rho: float
    every: int
    growth: float
    limit: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        # Made when the step is compiled: equal settings share it, whatever the weights are.
        project = projection(self.sets.families(net.task), self.counts)
        return lambda inner: admm(
            inner, project, rho=self.rho, every=self.every, growth=self.growth, limit=self.limit
        )


@dataclasses.dataclass(frozen=True)
class Admm:
    """Training with a sparse copy; nothing is masked yet.

    Afterwards `extra` has `counts` {kind: {block: groups kept}} and `stopped`, the round in which
    the duals diverged (0: none): the net is then that of the last good round.

    Attributes:
        train: how long, on which batches, and how for "sgd".
        sets: the constraint.
        rounds: refreshes of the copy and the duals; None: 30, or as many as have 100 steps each.
        rho: see `struct_admm`.
        growth: see `struct_admm`.
        limit: see `struct_admm`.
        adam: learning rate and weight decay of the authors' optimizer; None: SGD, as `train` says.
        name: of the records: those of training, and `primal` and `change` of the last round.
    """

    train: Train
    sets: Constraint
    rounds: int | None = None
    rho: float = 1e-3
    growth: float = 1.2
    limit: float = 100.0
    adam: tuple[float, float] | None = (1e-3, 5e-5)
    name: str = "admm"

    def check(self, task: Task) -> None:
        """Refuses settings of training that do nothing here, and what the sets refuse."""
        # With "adam" the method brings an optimizer of its own.
        options = ("optimizer", "warmup", "clip", "accumulate") if self.adam is None else ()
        self.train.takes(self.name, *options)
        self.sets.check(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: too few steps for the rounds, weights that are not finite, other
                fractions; what `Train.taught` raises.
            BudgetError: no counts meet the budget.
        """
        train, steps = self.train, self.train.steps(task.data.sizes["train"])
        every = steps_of_round(steps, self.rounds, ROUNDS)
        task = train.taught(task, pruned)
        net, optimizer = Net(task), train.optimizer_for(task)
        if self.adam is not None:
            optimizer = Adam(self.adam[0], steps, self.adam[1])
        counts, families = self.sets.counts(task, pruned), self.sets.families(task)
        splitting = Splitting(self.sets, counts, self.rho, every, self.growth, self.limit)
        learner = plain(
            task, pruned, net.weight_masks(pruned.masks), optimizer, key, train.batch_size,
            splitting,
        )  # fmt: skip
        extra = lambda state: {"counts": counts}
        return pulled(learner, task, pruned, families, extra)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Projects the weights themselves and fixes their support as masks.

    Attributes:
        sets: the constraint.
        purify: also cut groups whose norm is below this fraction of the mean norm of the groups
            kept in their block: what ADMM leaves near 0. 0: none.
        name: of the record: fractions kept, and `gap`, ||W - projection|| / ||W|| at the cut.
    """

    sets: Constraint
    purify: float = 0.0
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks; units that nothing reads any more go with `slim`.

        Raises:
            DivergenceError: the duals diverged; the net that came is that of the last good round.
        """
        del key
        counts = pruned.extra["counts"]
        refuse_diverged(int(pruned.extra["stopped"]))
        net, families = Net(task), self.sets.families(task)
        # W <- projection(W): the weights, and not Z, since they are what the loss was trained on.
        norms, alive = nearest(families, counts, pruned.variables)
        if self.purify:
            alive = {
                kind: {name: self.pure(norms[kind][name], mask) for name, mask in of.items()}
                for kind, of in alive.items()
            }
        budget = self.sets.budget
        masks_of = lambda alive: blocks.masks(families, alive, pruned.masks)
        price = lambda alive: fraction_kept(net.groups, masks_of(alive), budget, net.cost)
        if price(alive) > float(budget.value) + 1e-9:
            # What columns cost depends on which filters they share: counts alone do not say.
            alive = fewer(families, scored(norms, alive), budget, price)
        masks = masks_of(alive)
        variables = apply_masks(pruned.variables, net.weight_masks(masks))
        metrics = fractions(task, masks) | {"gap": gap(families, counts, pruned.variables)}
        if "dense" in pruned.saved:
            # ||W - Z|| / ||W|| of the same counts, before ADMM
            before = gap(families, counts, pruned.saved["dense"])
            if metrics["gap"] > CLOSER * before:
                warnings.warn(
                    f"ADMM has hardly drawn the weights to their projection: they are "
                    f"{metrics['gap']:.3f} away at the cut, and were {before:.3f} before. rho is "
                    "too small for so few steps: write a larger rho or more epochs.",
                    stacklevel=2,
                )
        return Pruned(variables, masks, None, pruned.saved), [record(self.name, metrics)]

    def pure(self, norm: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The mask without groups near 0; the largest group always stays."""
        # ||w_g|| >= purify mean ||w_h|| over the h kept; at
        # most the maximum, or a block could be empty
        return mask & (norm >= min(self.purify * norm[mask].mean(), norm.max()))


def gap(families: Sequence[Blocks], counts: Counts, variables: Variables) -> float:
    """||W - projection of W|| / ||W|| over the leaves that are projected."""
    near = projection(families, counts)(variables)
    # float64 on the host: a difference of near trees loses its digits in float32.
    square = lambda leaf: float(np.sum(np.asarray(leaf, float) ** 2))
    pairs = jax.tree.leaves(
        jax.tree.map(
            lambda z, w: None if z is None else (square(w - z), square(w)),
            near, variables, is_leaf=is_none,
        )
    )  # fmt: skip
    # Pairs lie flat, (||w - z||^2, ||w||^2) leaf after leaf: ||W - Z|| / ||W||.
    return (sum(pairs[::2]) / sum(pairs[1::2])) ** 0.5
