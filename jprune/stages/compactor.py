"""The stages of compactors: training with them while the lowest rows forget, and the cut."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import lowest_first
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.learners.compactor import compactable, compacted, compacted_task, restated
from jprune.learners.own_steps import beside
from jprune.masks import apply_masks
from jprune.sparsify.forgetting import HOW, forgetting, row_norms
from jprune.stages.frame import fractions, record
from jprune.stages.silent import folded, noise
from jprune.stages.train import Train, trained
from jprune.stages.unit_gates import Gated, OnlyFinite
from jprune.train.net import Net
from jprune.train.step import TrainState, plain
from jprune.units import expand, ones

REACH, STEP = 1.2, 0.05
"""The default strength takes so many lengths of a new row off, once all rows are chosen; and no
more than so much of one in a step, since rows that stay are pulled as well."""
LOOKED_AT = 4
"""Batches of training images that give the statistics of the folded net."""


@dataclasses.dataclass(frozen=True)
class Forget:
    """How compactors are trained.

    Attributes:
        strength: of the penalty on the lengths of rows; None: rows that are chosen last are 0 in
            time, their lengths being 1.
        momentum: of the compactors.
        how: "prox" or "subgradient", see `sparsify.forgetting`.
        begin: fraction of the steps before the first rows are chosen.
        until: fraction after which as many are chosen as the budget asks for.
        every: steps from one choice to the next; None: fifty choices.
        more: units that a choice adds; None: as many as bring the cost down in a line.
    """

    strength: float | None = None
    momentum: float = 0.99
    how: str = "prox"
    begin: float = 0.01
    until: float = 0.3
    every: int | None = None
    more: int | None = None

    def __post_init__(self):
        errors.check_words("resrep", ("how", self.how, HOW))
        least = lambda number, bound: number is None or number >= bound
        errors.check_numbers(
            "resrep",
            ("strength", self.strength, least(self.strength, 0), "0 or more, or None"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)"),
            ("begin", self.begin, 0 <= self.begin < 1, "in [0, 1)"),
            ("until", self.until, self.begin < self.until <= 1, "above begin, and 1 at most"),
            ("every", self.every, least(self.every, 1), "1 or more, or None"),
            ("more", self.more, least(self.more, 1), "1 or more, or None"),
        )


@dataclasses.dataclass(frozen=True)
class LowestForget:
    """A `Wrap`: compactors move as `sparsify.forgetting` says, the lowest rows of all being chosen.

    Attributes:
        budget: until which rows are chosen.
        forget: the settings, with a strength.
        steps: of the training.
        slower: what the rate of a `Wrap` is multiplied by to be a learning rate.
    """

    budget: Budget
    forget: Forget
    steps: int
    slower: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Any:
        """As `jprune.base.Wrap`."""
        del key
        how, whole = self.forget, ones(net.groups)
        remove = lowest_first(net.groups.sizes, self.budget, net.cost)
        begin, until = (round(part * self.steps) for part in (how.begin, how.until))
        every = how.every or max(1, (until - begin) // 50)

        def choose(lengths: Any, step: Any, masks: Any) -> Any:
            past = step - begin
            units = 0 if how.more is None else how.more * (past // every + 1)
            share = 0.0 if how.more else jnp.clip((past + 1) / max(1, until - begin), 0, 1)
            due = (past >= 0) & (past % every == 0)
            # Chosen anew each time: a row that was wrongly chosen has its gradient back.
            start = {name: jnp.asarray(of_group) for name, of_group in whole.items()}

            def anew() -> Any:
                left = remove(lengths, start, units, share)
                return {name: left[name] for name in masks}

            return jax.lax.cond(due, anew, lambda: masks)

        learning_rate = lambda step: self.slower * rate(step)
        own = forgetting(learning_rate, how.strength or 0.0, choose, how.momentum, how.how)
        return lambda inner: beside(inner, own)


@dataclasses.dataclass(frozen=True)
class TrainCompactors:
    """Trains a net with compactors, whose lowest rows forget until the rest meets a budget.

    Afterwards the compactors are folded in: the net is a plain one, of the same shape, and `extra`
    has the lengths of their `rows`, {group: [units]}.

    Attributes:
        train: how long, and how.
        budget: what shall be kept.
        gated: which units have compactors.
        forget: how they are trained.
        name: of the records.
    """

    train: Train
    budget: Budget
    gated: Gated
    forget: Forget
    name: str = "compact"

    def check(self, task: Task) -> None:
        """Refuses nets without anything to compact, and budgets out of reach."""
        self.train.takes("resrep", "optimizer", "warmup", "clip", "accumulate")
        compacted_units(task, self.budget, self.gated)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; a strength without time to act is said in a warning.

        Raises:
            DivergenceError: when it is finished, if something was not finite on the way.
        """
        net, (sizes, walled) = Net(task), compacted_units(task, self.budget, self.gated)
        groups, all_makers = net.groups, compactable(task, net.groups)
        makers = {name: all_makers[name] for name in sizes}
        before = net.unit_masks(pruned)
        # Units that are gone already are rows of 0.
        eyes = {n: np.diag(np.asarray(before[n], np.float32)) for n in sizes}
        made = compacted_task(self.train.taught(task, pruned), groups, makers)
        optimizer = self.train.optimizer_for(task)
        start = {"net": pruned.variables, "gates": jax.tree.map(jnp.asarray, eyes)}
        nothing = lambda tree: jax.tree.map(lambda _: None, tree)
        held = net.weight_masks(pruned.masks)
        masks = None if held is None else {"net": held, "gates": nothing(start["gates"])}
        # No weight decay on compactors.
        flat = jax.tree.map(lambda _: False, start["gates"])
        decayed = {"net": task.split(net.is_kernel)[0], "gates": flat}
        wrap = OnlyFinite(self.wrap(optimizer, walled))
        begun = pruned._replace(variables=start)
        learner = plain(made, begun, masks, optimizer, key, self.train.batch_size, wrap, decayed)
        fold = jax.jit(lambda both: compacted(task, groups, makers, both["gates"], both["net"]))
        whole = lambda state: made.merge(state.params, state.rest)

        def finish(state: TrainState) -> Pruned:
            if not bool(state.opt_state.good):
                raise errors.DivergenceError(
                    "the training of compactors diverged: an update was not finite. Write a "
                    "smaller --finetune-learning-rate."
                )
            batches = task.data.batches("train", self.train.batch_size, seed=0)
            images = [batch["image"] for batch, _ in zip(batches, range(LOOKED_AT))]
            plain_net = restated(task, groups, makers, fold(whole(state)), images)
            rows = row_norms(whole(state)["gates"])
            return pruned._replace(variables=plain_net, extra={"rows": rows})

        return learner._replace(variables=lambda state: fold(whole(state)), finish=finish)

    def wrap(self, optimizer: Any, walled: Budget) -> LowestForget:
        """How compactors take part in the training."""
        steps, slower = optimizer.taken, 1 - getattr(optimizer, "momentum", 0.0)
        # sum over steps of eta / (1 - momentum): how far a strength of 1 moves a row
        far = slower * np.asarray(optimizer.stride(np.arange(steps))) / (1 - self.forget.momentum)
        left = far[min(steps - 1, round(self.forget.until * steps)) :]
        usual, strength = float(REACH / left.sum()), self.forget.strength
        if strength is None:
            strength = min(usual, float(STEP / far.max()))
        if 0 < strength * left.sum() < 1:
            warnings.warn(
                f"strength={strength:.2g} takes {strength * left.sum():.2g} off the length of a "
                f"row, which is about 1, in the {len(left)} steps after the last choice: rows that "
                f"go are not 0 in time. Write strength={usual:.2g}, or more epochs.",
                stacklevel=3,
            )
        forget = dataclasses.replace(self.forget, strength=strength)
        return LowestForget(walled, forget, steps, slower)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class CutRows:
    """Masks the units with the shortest rows; a constant that they say goes into their readers.

    Attributes:
        budget: what is kept.
        gated: as of `TrainCompactors`, which comes before.
        name: of the record: fractions kept; `longest`, of the rows that go, as a fraction of the
            mean of the others (0: nothing is lost); `folded`, the fraction of the units that go
            whose constant was folded.
    """

    budget: Budget
    gated: Gated
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Refuses nets without anything to compact, and budgets out of reach."""
        compacted_units(task, self.budget, self.gated)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            ArgumentError: the net comes without compactors.
        """
        if not (isinstance(pruned.extra, dict) and "rows" in pruned.extra):
            raise errors.ArgumentError(
                "the net comes without compactors. Put TrainCompactors before CutRows."
            )
        net, (sizes, walled) = Net(task), compacted_units(task, self.budget, self.gated)
        groups, before = net.groups, net.unit_masks(pruned)
        lengths = {name: jnp.asarray(pruned.extra["rows"][name]) for name in sizes}
        remove = jax.jit(lowest_first(groups.sizes, walled, net.cost))
        start = {name: jnp.asarray(before[name], bool) for name in groups.names}
        masks = {n: np.asarray(m, bool) for n, m in remove(lengths, start, 0, 1.0).items()}
        gone = {n: np.asarray(before[n], bool) & ~masks[n] for n in sizes}
        makers = {path for paths in compactable(task, groups).values() for path in paths}
        # Rows that go say nothing: what is left behind them is a constant.
        kernels = net.leaves(expand(groups, masks, ("kernel",)))
        silenced = {p: m if p in makers else np.ones_like(m) for p, m in kernels.items()}
        variables = apply_masks(pruned.variables, net.tree(silenced))
        silent = {name: np.zeros_like(units) for name, units in gone.items()}
        if any(units.any() for units in gone.values()):
            variables, silent = folded(task, variables, gone, noise(task, key))
        count = lambda units: sum(int(np.sum(each)) for each in units.values())
        flat = lambda chosen: np.concatenate([np.asarray(lengths[n])[chosen[n]] for n in sizes])
        stays = flat({n: masks[n] for n in sizes}).mean()
        metrics = {
            **fractions(task, masks),
            "longest": float(flat(gone).max(initial=0) / max(stays, 1e-12)),
            "folded": count(silent) / max(count(gone), 1),
        }
        variables = apply_masks(variables, net.weight_masks(masks))
        cut = pruned._replace(variables=variables, masks=masks, extra=None)
        return cut, [record(self.name, metrics)]


def compacted_units(task: Task, budget: Budget, gated: Gated) -> tuple[dict[str, int], Budget]:
    """{group: units} of the groups with compactors, and the budget with floors for the others.

    Raises:
        ArgumentError: nothing can have a compactor, or a pattern names nothing that can.
        FrozenError: a pattern names something frozen.
        BudgetError: the budget is out of reach.
    """
    groups = Net(task).groups
    may = {name: groups.sizes[name] for name in compactable(task, groups)}
    if groups.sizes and not may:
        raise errors.ArgumentError(
            f"no group of {task.name} can have a compactor: each needs plain layers that run once, "
            "and norms with scales and shifts. Write another method, such as slimming or l1."
        )
    return gated.check(task, budget, may)
