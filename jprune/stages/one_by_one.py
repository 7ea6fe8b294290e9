"""Removes units one after another while the net is fine-tuned; scores are a by-product of it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.allocate import lowest_first, normalized
from jprune.base import Budget, Criterion, Learner, Pruned, Records, Schedule, Task
from jprune.cost import marginal_macs, own_flops
from jprune.criteria import gate_slopes, magnitude
from jprune.graph import gateable
from jprune.graph.shrink.concrete import copied
from jprune.masks import HoldState, apply_masks
from jprune.sparsify import OneByOneState, one_by_one
from jprune.stages.frame import check_prunable
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain
from jprune.units import expand

STREAMS = ("joint", "whole")
COUNTS = ("own", "all")


class Scored(Protocol):
    """What units are scored by; it can be hashed."""

    @property
    def gates(self) -> str | None:
        """The kind of site whose slopes it reads; None: none."""
        ...

    def __call__(self, net: Net) -> Criterion:
        """The criterion."""
        ...


@dataclasses.dataclass(frozen=True)
class BySlopes:
    """Scores by the slopes of gates, as `criteria.gate_slopes` has them.

    Attributes:
        form: "absolute", "signed" or "square".
        gates: site of the gates.
    """

    form: str = "absolute"
    gates: str = "norm"

    def __post_init__(self):
        if self.form not in ("absolute", "signed", "square"):
            raise errors.ArgumentError(
                f"slopes with form={self.form!r}; write absolute, signed or square. Slopes of "
                "single entries are no by-product of a step: score by criteria.gate_slopes."
            )

    def __call__(self, net: Net) -> Criterion:
        """The criterion; raises that no group has such a site."""
        return gate_slopes(net.task.fn, net.task.loss, net.groups, self.form, self.gates)


@dataclasses.dataclass(frozen=True)
class ByMagnitude:
    """Scores by the norm of a unit's kernels.

    Attributes:
        order: 1 (L1) or 2 (L2, squared).
        gates: none.
    """

    order: int = 1
    gates: None = None

    def __call__(self, net: Net) -> Criterion:
        """The criterion."""
        del net
        return magnitude(self.order)


@dataclasses.dataclass(frozen=True)
class Adjust:
    """What becomes of scores before units of different groups are compared.

    Attributes:
        by: norm that the scores of a group are divided by, as `allocate.normalized` has them; None:
            they stay.
        strength: times the cost of a unit in MFLOPs (two a multiply-accumulate), subtracted.
        divided: whether scores are divided by the cost of the unit.
        count: what a unit costs: "own", the layers that make it, as in the dense net; or "all",
            those that read it too, in the net as it is by then.
    """

    by: str | None = None
    strength: float = 0.0
    divided: bool = False
    count: str = "own"

    def __post_init__(self):
        if self.count not in COUNTS or not self.strength >= 0:
            raise errors.ArgumentError(
                f"count={self.count!r} with a strength of {self.strength}; count is one of "
                f"{', '.join(COUNTS)}, the strength 0 or more."
            )

    def of(self, net: Net) -> Callable[..., Any]:
        """`(scores, alive) -> scores`, for `allocate.lowest_first`."""
        own = own_flops(net.groups)

        def flops(name: str, alive: Any) -> Any:
            return own[name] if self.count == "own" else 2 * marginal_macs(net.cost, alive)[name]

        def adjusted(scores: dict[str, Any], alive: dict[str, Any]) -> dict[str, Any]:
            if self.by is not None:
                # Theta_k / sqrt(sum_j Theta_j^2), over the units of the group
                scores = normalized(scores, self.by)
            if self.strength:
                # Theta - lambda Theta_flops, in MFLOPs
                mega = lambda name: flops(name, alive) / 1e6
                scores = {n: score - self.strength * mega(n) for n, score in scores.items()}
            if self.divided:
                # Delta / cost; a unit that costs nothing is never worth its removal.
                per = lambda score, price: jnp.where(price > 0, score / price, jnp.inf)
                scores = {n: per(score, flops(n, alive)) for n, score in scores.items()}
            return scores

        return adjusted


@dataclasses.dataclass(frozen=True)
class Removal:
    """How removal takes part in training: behind the optimizer, as `jprune.base.Wrap`.

    Attributes:
        scored: what units are scored by.
        adjust: what becomes of the scores.
        budget: what is kept; whole groups are its floors.
        every: steps between removals.
        units: removed at a time, or more.
        steps: of the training.
    """

    scored: Scored
    adjust: Adjust
    budget: Budget
    every: int
    units: int
    steps: int

    @property
    def gates(self) -> str | None:
        """The kind of site whose slopes a step hands over."""
        return self.scored.gates

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        remove = lowest_first(net.groups.sizes, self.budget, net.cost, self.adjust.of(net))
        criterion = self.scored(net)
        removal = one_by_one(criterion, net.groups, remove, self.every, self.units, self.steps)
        return lambda inner: optax.chain(inner, removal)


@dataclasses.dataclass(frozen=True)
class RemoveOneByOne:
    """Fine-tuning in which the least unit goes every few steps, until the budget is met.

    Attributes:
        train: how long, and how.
        budget: what is kept of the dense net; a density is one of all units.
        scored: what units are scored by, between two removals.
        adjust: what becomes of the scores before they are compared.
        every: steps between removals, at most; fewer where so many units have to go in the steps
            that there are.
        units: how many go at a time; more where the steps do not suffice.
        stream: units of residual streams go like others, "joint", or stay, "whole".
        name: of the records.
    """

    train: Train
    budget: Budget
    scored: Scored
    adjust: Adjust = Adjust()
    every: int = 10
    units: int = 1
    stream: str = "joint"
    name: str = "remove"

    def __post_init__(self):
        if self.stream not in STREAMS or min(self.every, self.units) < 1:
            raise errors.ArgumentError(
                f"removal with stream={self.stream!r}, every={self.every}, units={self.units}; "
                f"stream is one of {', '.join(STREAMS)}, the others are 1 or more."
            )

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does, and refuses nets without sites and idle settings.

        Raises:
            ArgumentError: no group that may be pruned, no site for a gate; an average.
            BudgetError: a budget that cannot be met.
        """
        self.train.takes("removal while training", "optimizer", "warmup", "clip")
        check_prunable(task, self.budget)
        net, budget = Net(task), self.floored(task)
        self.scored(net)
        if all(budget.floors.get(name, 0) >= size for name, size in net.groups.sizes.items()):
            raise errors.ArgumentError(
                f"nothing of {task.name} is prunable: all of its units stand on residual streams, "
                "or have no gate. Write stream=joint."
            )
        check_prunable(task, budget)

    def floored(self, task: Task) -> Budget:
        """The budget, with floors for groups that stay whole."""
        groups = Net(task).groups
        whole = {*groups.streams} if self.stream == "whole" else set[str]()
        if self.scored.gates is not None:
            whole |= {*groups.names} - {*gateable(groups, self.scored.gates)}
        floors = {name: groups.sizes[name] for name in groups.names if name in whole}
        return dataclasses.replace(self.budget, floors={**self.budget.floors, **floors})

    def removal(self, task: Task) -> Removal:
        """Removal in the steps that there are."""
        steps, budget = self.train.optimizer_for(task).taken, self.floored(task)
        sizes = Net(task).groups.sizes
        free = sum(size for name, size in sizes.items() if budget.floors.get(name, 0) < size)
        # Costs fall with both widths of a layer, so that half of the MACs are 0.7 of the units.
        share = float(budget.value) ** (1.0 if budget.kind == "density" else 0.5)
        removals = max(1, round(free * (1 - share) / self.units))
        every = max(1, min(self.every, steps // removals))
        return Removal(self.scored, self.adjust, budget, every, self.units, steps)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps."""
        task = self.train.taught(task, pruned)
        net, removal = Net(task), self.removal(task)
        optimizer = self.train.optimizer_for(task)
        learner = plain(task, pruned, None, optimizer, key, self.train.batch_size, removal)
        alive = net.unit_masks(pruned)
        alive = {name: np.asarray(alive[name], bool) for name in net.groups.names}

        def init() -> TrainState:
            state = learner.init()
            masks = task.split(expand(net.groups, alive))[0]
            inner, own = state.opt_state
            own = own._replace(alive=dict(alive), hold=HoldState(masks))
            params = apply_masks(state.params, masks)
            return copied(state._replace(params=params, opt_state=(inner, own)))

        def masked(state: TrainState) -> Pruned:
            own: OneByOneState = state.opt_state[1]
            masks = {name: np.asarray(mask) for name, mask in own.alive.items()}
            variables = apply_masks(learner.variables(state), expand(net.groups, masks))
            return pruned._replace(variables=variables, masks=masks)

        def finish(state: TrainState) -> Pruned:
            done = masked(state)
            net.refuse_nan(done.variables, net.groups.kernels)
            return done

        return learner._replace(
            init=init, variables=lambda state: masked(state).variables, finish=finish
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)
