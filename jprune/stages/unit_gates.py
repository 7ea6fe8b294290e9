"""The stages of learned gates: training with them, and the units whose gates are lowest go."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.allocate import global_topk, toward
from jprune.allocate.widths import widths
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task, Wrap
from jprune.cost import spent
from jprune.learners.soft_masks import chosen, scaled, sizes_of
from jprune.learners.unit_gates import Gating, gated_start, gated_task, settled_net
from jprune.masks import apply_masks
from jprune.sparsify import guarded
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.train import Train, trained
from jprune.train.evaluate import mean_quality
from jprune.train.net import Net
from jprune.train.step import TrainState, plain
from jprune.train.task import distilled
from jprune.units import ones


class Kind(Protocol):
    """How gates are learned: a frozen dataclass of settings."""

    def gating(self, task: Task, sizes: dict[str, int], budget: Budget, steps: int) -> Gating:
        """The gates of these groups, in a training of so many steps towards a budget.

        Floors of the budget name the groups that have no gates.
        """
        ...

    def wrap(self, sizes: dict[str, int], budget: Budget, steps: int) -> Wrap | None:
        """How the gates take part in training; its parameters are {"gates"} and "net"."""
        ...


@dataclasses.dataclass(frozen=True)
class Gated:
    """Which units have gates.

    Attributes:
        gates: patterns of groups, with ":" between; none: everything that may have one.
        residual: whether the channels of residual sums have gates too. None: where the budget
            cannot be met without them.
        widened: how many times as wide as the net that the budget is a fraction of this one is.
    """

    gates: str = ""
    residual: bool | None = None
    widened: float = 1.0

    def __post_init__(self):
        if not self.widened >= 1:
            raise errors.ArgumentError(
                f"widened={self.widened}: the net that is pruned is so many times as wide as the "
                "one that the budget is a fraction of, 1 or more."
            )

    def sizes(
        self, task: Task, budget: Budget, may: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """{group: units} of the groups that have gates.

        Args:
            task: of the net.
            budget: whose floors leave groups whole.
            may: {group: units} of those that can have gates; None: all that something reads.

        Raises:
            ArgumentError: a pattern that names nothing, or nothing to gate.
            FrozenError: a gate on something frozen.
        """
        groups = Net(task).groups
        if not groups.sizes:
            check_prunable(task, budget)
        whole = [name for name, floor in budget.floors.items() if floor >= groups.sizes[name]]
        patterns = [pattern for pattern in self.gates.split(":") if pattern]
        candidates = sizes_of(groups, ("channel",)) if may is None else may
        named = chosen(groups, candidates, patterns, whole)
        inner = {name: size for name, size in named.items() if name not in groups.streams}
        residual = self.residual
        if residual is None:
            residual = not inner or not self.reaches(task, budget, inner)
        open_ = named if residual else inner
        if not open_:
            raise errors.ArgumentError(
                f"no group of {task.name} may have gates: residual sums are left out, or floors "
                "leave all others whole. Write residual=true, or freeze fewer groups."
            )
        return open_

    def reaches(self, task: Task, budget: Budget, sizes: dict[str, int]) -> bool:
        """Whether the budget can be met by gates on these groups alone."""
        try:
            check_prunable(task, self.walled(task, budget, sizes))
        except errors.BudgetError:
            return False
        return True

    def walled(self, task: Task, budget: Budget, sizes: dict[str, int]) -> Budget:
        """The budget as a fraction of this net, with floors that leave groups without gates whole.

        Raises:
            ArgumentError: `widened` with a budget in what the cost model does not count.
        """
        groups, model = Net(task).groups, Net(task).cost
        whole = {name: size for name, size in groups.sizes.items() if name not in sizes}
        budget = dataclasses.replace(budget, floors={**budget.floors, **whole})
        if self.widened == 1:
            return budget
        share = 1 / self.widened
        if budget.kind != "density":
            widths = {name: size / self.widened for name, size in groups.sizes.items()}
            count = lambda widths: float(spent(model(widths), budget))
            # What the net that is not widened costs, of what this one does.
            share = count(widths) / count({})
        return dataclasses.replace(budget, **{budget.kind: float(budget.value) * share})

    def check(
        self, task: Task, budget: Budget, may: Mapping[str, int] | None = None
    ) -> tuple[dict[str, int], Budget]:
        """What `sizes` and `walled` say; raises what they do, and BudgetError."""
        sizes = self.sizes(task, budget, may)
        walled = self.walled(task, budget, sizes)
        check_prunable(task, walled)
        return sizes, walled


@dataclasses.dataclass(frozen=True)
class TrainGates:
    """Trains gates, beside the weights or on frozen ones.

    Afterwards the net is as trained, its gates not folded in: `extra` has the settled `gates`, and
    the `scores`, both {group: [units]}.

    Attributes:
        train: how long, and how.
        budget: what shall be kept.
        gated: which units have gates.
        kind: how they are learned.
        keep: of the states at the end of every epoch with at most this fraction of open gates the
            one that is best in validation is taken; None, or where there is none: the last state.
        part: (number, of how many): the gated groups are divided evenly, in execution order, and
            this stage trains the gates of its part.
        name: of the records.
    """

    train: Train
    budget: Budget
    gated: Gated
    kind: Kind
    keep: float | None = None
    part: tuple[int, int] = (0, 1)
    name: str = "gates"

    def check(self, task: Task) -> None:
        """Refuses nets without anything to gate, and budgets out of reach."""
        self.train.takes(self.name, "optimizer", "warmup", "clip")
        sizes, walled = self.gated.check(task, self.budget)
        own = parts_of(sizes, self.part)
        if not own:
            raise errors.ArgumentError(
                f"{self.part[1]} parts of {len(sizes)} groups with gates: one would have none. "
                f"Write parts={len(sizes)} or less."
            )
        self.kind.gating(task, own, walled, 1)
        if self.train.distill:
            # Outputs that are no logits are refused here.
            distilled(task, Net(task).shapes, self.train.distill, self.train.temperature)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            DivergenceError: when it is finished, if something was not finite on the way.
        """
        net, steps = Net(task), self.train.steps(task.data.sizes["train"])
        sizes, walled = self.gated.check(task, self.budget)
        sizes = parts_of(sizes, self.part)
        gating = self.kind.gating(task, sizes, walled, steps)
        of_gates, of_steps = jax.random.split(key)
        if self.keep is not None:
            best = {"gates": gating.init(of_gates), "quality": jnp.full((), -jnp.inf)}
            gating = gating._replace(start={**gating.start, "best": best})
        taught = self.train.taught(task, pruned)
        gated = gated_task(taught, net.groups, gating)
        start = gated_start(gating, pruned.variables, of_gates)
        nothing = lambda tree: jax.tree.map(lambda _: None, tree)
        held = net.weight_masks(pruned.masks)
        masks = None if held is None else {**nothing(start), "net": held}
        decayed: Any = {"gates": jax.tree.map(lambda _: False, start["gates"])}
        if not gating.frozen:
            decayed["net"] = task.split(net.is_kernel)[0]
        wrap = OnlyFinite(self.kind.wrap(sizes, walled, steps))
        optimizer, size = self.train.optimizer_for(task), self.train.batch_size
        begin = pruned._replace(variables=start)
        learner = plain(gated, begin, masks, optimizer, of_steps, size, wrap, decayed)
        whole = lambda state: gated.merge(state.params, state.rest)

        def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            if self.keep is not None and _at_an_end(int(state.step), learner):
                state = self.judged(task, gating, state, whole(state))
            return state, _stopping(state.opt_state.good, metrics)

        def finish(state: TrainState) -> Pruned:
            if not bool(state.opt_state.good):
                raise errors.DivergenceError(
                    "the training of gates diverged: an update was not finite, and nothing moved "
                    "any more. Write a smaller rate of the gates or --finetune-learning-rate."
                )
            last = whole(state)
            values, carried = last["gates"], last["carried"]
            if self.keep is not None and np.isfinite(float(carried["best"]["quality"])):
                values = carried["best"]["gates"]
            extra = {
                "gates": gating.settled(values, carried), "scores": gating.scores(values, carried)
            }  # fmt: skip
            return pruned._replace(variables=last["net"], extra=extra)

        net_of = lambda state: settled_net(net.groups, gating, whole(state))
        return learner._replace(step=step, variables=net_of, finish=finish)

    def judged(self, task: Task, gating: Gating, state: TrainState, whole: Any) -> TrainState:
        """The state, which remembers its gates if they are few enough and the best so far."""
        values, carried = whole["gates"], whole["carried"]
        gates = gating.settled(values, carried)
        open_ = np.concatenate([np.asarray(gate) > 0 for gate in gates.values()]).mean()
        if self.keep is None or open_ > self.keep:
            return state
        net = settled_net(Net(task).groups, gating, whole)
        quality = mean_quality(task, net, "validation")
        if not quality > float(carried["best"]["quality"]):
            return state
        # Copies: the next step gives the state's arrays away.
        best = {"gates": jax.tree.map(jnp.copy, values), "quality": jnp.asarray(quality)}
        best["quality"] = best["quality"].astype(carried["best"]["quality"].dtype)
        return state._replace(rest={**state.rest, "carried": {**carried, "best": best}})

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


def parts_of(sizes: dict[str, int], part: tuple[int, int]) -> dict[str, int]:
    """The groups of one part of all, contiguous.

    Example:
        >>> parts_of({"a": 4, "b": 8, "c": 16}, (0, 2)), parts_of({"a": 4}, (3, 4))
        ({'a': 4, 'b': 8}, {})
    """
    which, of = part
    return {
        name: size
        for number, (name, size) in enumerate(sizes.items())
        if number * of // len(sizes) == which
    }


def _at_an_end(step: int, learner: Learner) -> bool:
    return step % learner.epoch == 0 or step == learner.steps


def even_widths(net: Net, budget: Budget) -> dict[str, int]:
    """{group: how many units it keeps where all groups keep the same fraction}.

    Raises:
        BudgetError: a budget that cannot be met.
    """
    return widths(ones(net.groups), budget, net.cost, lambda masks: masks)


@jax.jit
def _stopping(good: jax.Array, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A loss of NaN once the guard has stopped the training, so that the runner stops."""
    return {**metrics, "loss": jnp.where(good, metrics["loss"], jnp.nan)}


@dataclasses.dataclass(frozen=True)
class OnlyFinite:
    """A wrap that stops at the first update that is not finite.

    Attributes:
        inner: how the method takes part, or None.
    """

    inner: Wrap | None

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Any:
        """As `jprune.base.Wrap`."""
        inside = (lambda tx: tx) if self.inner is None else self.inner(net, rate, key)
        return lambda tx: guarded(inside(optax.with_extra_args_support(tx)))


@dataclasses.dataclass(frozen=True)
class CutGates:
    """Masks the units with the lowest gates, and folds the gates of the others into the net.

    Of a unit that is kept although its gate is closed, for a floor, a multiple or a count, the gate
    counts as 1.

    Attributes:
        budget: what is kept.
        gated: which units have gates.
        scope: "global": all gates are ranked together, until the budget is met; "layer": every
            group keeps the number of its own that the same fraction everywhere would keep.
        closed: "rank": closed gates are ranked like the others; "gone": they go, whatever the
            budget still allows (where it has no multiples).
        part: which groups, as in `TrainGates`.
        name: of the record: fractions kept, and `settled`, the fraction of gates that the budget
            has opened or closed.
    """

    budget: Budget
    gated: Gated
    scope: str = "global"
    closed: str = "rank"
    part: tuple[int, int] = (0, 1)
    name: str = "prune"

    def __post_init__(self):
        errors.check_words(
            "CutGates",
            ("scope", self.scope, ("global", "layer")),
            ("closed", self.closed, ("rank", "gone")),
        )

    def check(self, task: Task) -> None:
        """Refuses nets without anything to gate, and budgets out of reach."""
        self.gated.check(task, self.budget)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            ArgumentError: the net has no gates, or one is NaN.
        """
        del key
        if not (isinstance(pruned.extra, dict) and {"gates", "scores"} <= set(pruned.extra)):
            raise errors.ArgumentError(
                "the net comes without gates. Put TrainGates before CutGates."
            )
        net = Net(task)
        sizes, walled = self.gated.check(task, self.budget)
        sizes = parts_of(sizes, self.part)
        gates = {name: np.asarray(pruned.extra["gates"][name], float) for name in sizes}
        scores = {name: np.asarray(pruned.extra["scores"][name], float) for name in sizes}
        if self.scope == "layer":
            even = even_widths(net, walled)
            counts = {name: even[name] for name in sizes}
            least = Budget(density=sum(counts.values()) / sum(sizes.values()))
            masks = toward(counts)(scores, least, None)
        else:
            if self.closed == "gone" and walled.multiple_of == 1:
                scores = {n: np.where(gates[n] > 0, s, -np.inf) for n, s in scores.items()}
            # Without gates: never pruned, so that a density is that of all units.
            rest = {name: np.full(n, np.inf) for name, n in net.groups.sizes.items()}
            masks = global_topk({**rest, **scores}, walled, net.cost)
        masks = {name: np.asarray(masks[name], bool) for name in sizes}
        # A closed gate of a unit that stays counts as 1.
        factors = {name: np.where(gate > 0, gate, 1.0) for name, gate in gates.items()}
        folded = jax.jit(lambda tree: scaled(net.groups, factors, {}, tree))(pruned.variables)
        moved = np.concatenate([masks[name] != (gates[name] > 0) for name in sizes])
        masks = {**net.unit_masks(pruned), **masks}
        variables = apply_masks(folded, net.weight_masks(masks))
        metrics = fractions(task, masks) | {"settled": float(moved.mean())}
        return pruned._replace(variables=variables, masks=masks, extra=None), [
            record(self.name, metrics)
        ]
