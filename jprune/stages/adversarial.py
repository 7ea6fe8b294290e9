"""The stages of adversarial pruning: train with soft masks, and settle on what is 0."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import global_topk
from jprune.base import Budget, Learner, Pruned, Records, Task
from jprune.learners import Terms, to_the_end
from jprune.learners.adversarial import AdversarialState, init_judge, outputs_of, start, step_of
from jprune.learners.soft_masks import chosen, ends_of, scaled, sizes_of
from jprune.masks import apply_masks
from jprune.sparsify import fista
from jprune.stages.frame import fractions, record, saved
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.optimizers import Sgd
from jprune.train.step import stream

INITS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "ones": lambda key, size: jnp.ones(size),
    "normal": lambda key, size: jax.random.normal(key, (size,)),
}

RISE = 100.0
"""By how much the penalty rises where no strength is given."""


class Soft(NamedTuple):
    """The masks, and how they fall; see `gal`."""

    masks: str = "channel"
    gates: str = ""
    strength: float | None = None
    init: str = "ones"
    steps: int = 100
    rate: float = 0.01
    restart: int = 0


def kept_units(task: Task, budget: Budget, masks: dict[str, Any], xnp: Any = np) -> dict[str, Any]:
    """Masks {group: [units], residual branch: [1]} of what soft masks leave: all but exact zeros.

    Masks that are drawn may be below 0 until the first step makes zeros of them.
    """
    sizes = Net(task).groups.sizes

    def one(name: str, mask: Any) -> Any:
        size = sizes.get(name, 1)
        kept = xnp.broadcast_to(mask != 0, (size,))
        single = name in sizes and mask.shape != (size,)  # of a whole group: some channels stay
        least = max(budget.min_units, budget.floors.get(name, 0))
        return kept | (np.arange(size) < least) if single else kept

    return {name: one(name, mask) for name, mask in masks.items()}


def price(task: Task, budget: Budget, masks: dict[str, Any], xnp: Any = np) -> Any:
    """What soft masks keep, in the budget's unit; traceable with `xnp=jnp`.

    Raises:
        ArgumentError: a budget in something that the cost model does not count.
    """
    if budget.kind == "density":
        return sum(xnp.sum(m != 0) for m in masks.values()) / sum(m.size for m in masks.values())
    if budget.kind not in ("macs", "params"):
        raise errors.ArgumentError(
            f"gal cannot meet Budget({budget.kind}={budget.value}) while it trains; write "
            "Budget(macs=...), params or density."
        )
    model, kept = Net(task).cost, kept_units(task, budget, masks, xnp)
    gates = {name: mask.astype(np.float32) for name, mask in kept.items()}
    return getattr(model(gates), budget.kind) / getattr(model({}), budget.kind)


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """Adversarial training of weights and soft masks.

    Afterwards the masks are folded into the variables and stand in `extra["soft_masks"]`, the
    discriminator in `extra["judge"]`; nothing is pruned yet.

    Attributes:
        train: how long, and how; its labels are not looked at.
        budget: at which masks rest; None: never.
        soft: the masks.
        terms: of the losses.
        judge_rate: see `gal`.
        judge_std: see `gal`.
        name: of the records.
    """

    train: Train
    budget: Budget | None
    soft: Soft
    terms: Terms
    judge_rate: float = 0.01
    judge_std: float | None = None
    name: str = "adversarial"

    def __post_init__(self):
        soft = self.soft
        if soft.init not in INITS or soft.steps < 1 or soft.restart < 0:
            raise errors.ArgumentError(
                f"gal(init={soft.init!r}, mask_steps={soft.steps}, restart={soft.restart}); init "
                f"is one of {', '.join(INITS)}, mask_steps 1 or more, restart 0 or more."
            )
        if soft.rate <= 0 or self.judge_rate <= 0 or (soft.strength or 0.0) < 0:
            raise errors.ArgumentError(
                f"gal(mask_rate={soft.rate}, judge_rate={self.judge_rate}, "
                f"strength={soft.strength}); rates are above 0, the strength is 0 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses gates and budgets that this net cannot have.

        Raises:
            ArgumentError: a gate on nothing, a budget that is not counted here, or a net with
                another output than one array.
            FrozenError: a gate on something frozen.
            BudgetError: not even masks that are all 0 meet the budget.
        """
        outputs_of(task, Net(task).shapes)
        self.falling(task, self.sizes(task), 1)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: a gate on nothing, or nothing was saved as "dense".
            FrozenError: a gate on something frozen.
            BudgetError: not even masks that are all 0 meet the budget.
        """
        groups, soft, given = Net(task).groups, self.soft, self.train
        sizes = self.sizes(task)
        ends = ends_of(task, groups, sizes, pruned.variables)
        masked = lambda masks, tree: scaled(groups, masks, ends, tree)
        sgd = given.sgd(task)
        steps = sgd.taken
        every = max(1, steps // soft.steps)
        held = Net(task).weight_masks(pruned.masks)
        judge = Sgd(self.judge_rate, "constant", steps, given.momentum, weight_decay=0.0)
        optimizers = (
            sgd.transformation(
                task.split(Net(task).is_kernel)[0], None if held is None else task.split(held)[0]
            ),
            self.falling(task, sizes, steps // every),
            judge.transformation(decayed=False),
        )
        teacher = saved(pruned, "dense", "gal")
        step = step_of(task, teacher, masked, optimizers, self.terms, every)
        variables = lambda s: masked(s.masks, task.merge(s.params, s.rest))
        draw = jax.random.fold_in(key, 1)

        def init() -> AdversarialState:
            first = {
                name: INITS[soft.init](jax.random.fold_in(draw, number), size)
                for number, (name, size) in enumerate(sizes.items())
            }
            outputs = outputs_of(task, teacher)
            weights = init_judge(jax.random.fold_in(key, 2), outputs, self.judge_std)
            return start(task.split(pruned.variables), first, weights, optimizers)

        def finish(state: AdversarialState) -> Pruned:
            extra = {"soft_masks": state.masks, "judge": state.judge}
            return pruned._replace(variables=variables(state), extra=extra)

        return Learner(
            steps=steps,
            epoch=task.data.sizes["train"] // given.batch_size,
            init=init,
            batches=lambda start: stream(task.data, given.batch_size, key, sgd.begin + start),
            step=lambda state, batch: step(state, batch, key),
            variables=variables,
            finish=finish,
        )

    def sizes(self, task: Task) -> dict[str, int]:
        """{group or residual branch: how many masks}."""
        groups, floors = Net(task).groups, self.budget.floors if self.budget else {}
        known = sizes_of(groups, self.soft.masks.split("+"))
        whole = [name for name, floor in floors.items() if floor >= groups.sizes.get(name, 1)]
        return chosen(groups, known, [p for p in self.soft.gates.split(":") if p], whole)

    def floors(self, sizes: dict[str, int]) -> dict[str, int]:
        """{group or residual branch: how many of its masks no penalty touches}."""
        floors, least = (
            ({}, 0) if self.budget is None else (self.budget.floors, self.budget.min_units)
        )
        return {n: max(least, floors.get(n, 0)) if size > 1 else 0 for n, size in sizes.items()}

    def falling(self, task: Task, sizes: dict[str, int], steps: int) -> Any:
        """The optimizer of the masks.

        Raises:
            BudgetError: not even masks that are all 0 meet the budget.
        """
        soft, budget, floors = self.soft, self.budget, self.floors(sizes)
        least = 8 / (max(steps, 1) ** 2 * soft.rate)  # FISTA's velocity grows by a quarter a step
        given = soft.strength
        rising = lambda step: least * RISE ** (step / max(steps - 1, 1))
        strength = rising if given is None else lambda step: given
        enough = None
        if budget is not None:
            goal = float(budget.value) + 1e-6
            lowest = {name: np.arange(size) < floors[name] for name, size in sizes.items()}
            if (smallest := float(price(task, budget, lowest))) > goal:
                raise errors.BudgetError(
                    f"Budget({budget.kind}={budget.value}) cannot be met by masks of "
                    f"{self.soft.masks}: with all of them at 0 the net costs {smallest:.4f} of the "
                    "dense one. Ask for more, or for other masks."
                )
            enough = lambda masks: price(task, budget, masks, jnp) <= goal
        return fista(
            lambda step: soft.rate, strength, restart=soft.restart, floors=floors, enough=enough
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics.

        Raises:
            DivergenceError: a loss or weight was not finite.
        """
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        if not np.isfinite(metrics["loss"]):
            raise errors.DivergenceError(
                "the adversary diverged: a loss or weight was not finite, and the state before "
                "that is kept. Write a smaller judge_rate, mask_rate or --finetune-learning-rate."
            )
        return done, [record(self.name, metrics, learner.steps)]


@dataclasses.dataclass(frozen=True)
class SettleSoftMasks:
    """Removes what has the mask 0, and asks whether the budget is met.

    Widths are rounded to the budget's multiples: the lowest masks go, or come back as they are.

    Attributes:
        budget: that is met; None takes whatever is 0.
        name: of the record: fractions kept, and `reached`, what the penalty had reached by itself.
    """

    budget: Budget | None
    name: str = "settle"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            BudgetError: the penalty has not made zeros enough.
        """
        del key
        budget = self.budget or Budget(density=1.0)
        soft = {name: np.asarray(mask) for name, mask in pruned.extra["soft_masks"].items()}
        reached = float(price(task, budget, soft))
        if reached > float(budget.value) + 1e-6:
            raise errors.BudgetError(
                f"gal reached {budget.kind}={reached:.4f}, and Budget({budget.kind}="
                f"{budget.value}) is asked for: the penalty is too weak, or trains too short. "
                "Write a larger strength or mask_rate, more epochs, or leave strength out."
            )
        masks = rounded(task, budget, soft, kept_units(task, budget, soft))
        chosen = {name: np.asarray(mask, bool) for name, mask in masks.items()}
        masks = {**Net(task).unit_masks(pruned), **chosen}
        variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
        seen = fractions(task, masks) | {"reached": reached}
        return pruned._replace(variables=variables, masks=masks, extra=None), [
            record(self.name, seen)
        ]


def rounded(
    task: Task, budget: Budget, soft: dict[str, np.ndarray], masks: dict[str, Any]
) -> dict[str, Any]:
    """Masks whose widths are the budget's multiples, the highest soft masks being kept.

    Blocks and branches stay as they are: channels get what these leave of the budget.
    """
    sizes = Net(task).groups.sizes
    scores = {n: m for n, m in soft.items() if n in sizes and m.size > 1}
    if budget.multiple_of == 1 or not scores:
        return masks
    single = {n: m for n, m in masks.items() if n not in scores}
    if not single:
        return global_topk(scores, budget, Net(task).cost)
    if budget.kind == "density":
        units = sum(m.size for m in scores.values())
        entries = units + sum(soft[name].size for name in single)
        kept = sum(int((soft[name] != 0).sum()) for name in single)
        left = (float(budget.value) * entries - kept) / units
    else:
        whole = {n: np.ones(soft[n].size, bool) for n in scores}
        left = float(budget.value) / float(price(task, budget, {**whole, **single}))
    asked = dataclasses.replace(budget, **{budget.kind: min(1.0, left)})
    model = Net(task).cost
    return masks | global_topk(scores, asked, lambda channels: model({**single, **channels}))
