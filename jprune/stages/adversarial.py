"""The stages of adversarial pruning: training with soft masks, and removal of masks that are 0."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import global_topk
from jprune.base import Budget, Learner, Pruned, Records, Task
from jprune.cost import spent
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
"""Last over first strength of the penalty, where none is asked for."""


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
    """Masks {group: [units], residual branch: [1]}: what has a soft mask other than exactly 0.

    Initial masks may be drawn below 0; the first step makes zeros of those.
    """
    sizes = Net(task).groups.sizes

    def of_one(name: str, mask: Any) -> Any:
        size = sizes.get(name, 1)
        alive = xnp.broadcast_to(mask != 0, (size,))
        # One mask for a whole group: at 0 it leaves the channels that a floor asks for.
        single = name in sizes and mask.shape != (size,)
        least = max(budget.min_units, budget.floors.get(name, 0))
        return alive | (np.arange(size) < least) if single else alive

    return {name: of_one(name, mask) for name, mask in masks.items()}


def price(task: Task, budget: Budget, masks: dict[str, Any], xnp: Any = np) -> Any:
    """What soft masks keep, in the budget's unit; traceable with `xnp=jnp`.

    Raises:
        ArgumentError: a budget in something that the cost model does not count.
    """
    if budget.kind == "density":
        # A density is of masks, and not of units: a branch or block has one.
        return sum(xnp.sum(m != 0) for m in masks.values()) / sum(m.size for m in masks.values())
    model, alive = Net(task).cost, kept_units(task, budget, masks, xnp)
    # Gates of 0 and 1: the cost model is then traceable, and stops the training at the right step.
    gates = {name: mask.astype(np.float32) for name, mask in alive.items()}
    return spent(model(gates), budget) / spent(model({}), budget)


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """Adversarial training of weights and soft masks.

    Afterwards the masks are folded into the variables and stand in `extra["soft_masks"]`, the
    discriminator in `extra["judge"]`; nothing is pruned yet.

    Attributes:
        train: how long, and how; labels are not used.
        budget: masks stop moving once it is met; None: never.
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
        self.train.takes("gal", "warmup", "clip")
        outputs_of(task, Net(task).shapes)
        self.falling(task, self.sizes(task), 1)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: a gate on nothing, or nothing was saved as "dense".
            FrozenError: a gate on something frozen.
            BudgetError: not even masks that are all 0 meet the budget.
        """
        groups, soft, train = Net(task).groups, self.soft, self.train
        sizes = self.sizes(task)
        ends = ends_of(task, groups, sizes, pruned.variables)
        masked = lambda masks, tree: scaled(groups, masks, ends, tree)
        sgd = train.sgd(task)
        steps = sgd.taken
        # The authors step on masks once an epoch: here `soft.steps` times in the training, evenly.
        moves = evenly_in(steps, soft.steps)
        held = Net(task).weight_masks(pruned.masks)
        # No decay for the judge: its regulariser is a term of its loss.
        judge = Sgd(self.judge_rate, "constant", steps, train.momentum, weight_decay=0.0)
        optimizers = (
            sgd.transformation(
                task.split(Net(task).is_kernel)[0], None if held is None else task.split(held)[0]
            ),
            self.falling(task, sizes, len(moves)),
            judge.transformation(decayed=False),
        )
        teacher = saved(pruned, "dense", "gal")
        step = step_of(task, teacher, masked, optimizers, self.terms, moves)
        variables = lambda s: masked(s.masks, task.merge(s.params, s.rest))
        # Masks, judge and data draw from keys of their own:
        # another `init` trains on the same batches.
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
            epoch=task.data.sizes["train"] // train.batch_size,
            init=init,
            batches=lambda start: stream(task.data, train.batch_size, key, sgd.begin + start),
            step=lambda state, batch: step(state, batch, key),
            variables=variables,
            finish=finish,
        )

    def sizes(self, task: Task) -> dict[str, int]:
        """{group or residual branch: how many masks}."""
        groups, floors = Net(task).groups, self.budget.floors if self.budget else {}
        sizes = sizes_of(groups, self.soft.masks.split("+"))
        whole = [name for name, floor in floors.items() if floor >= groups.sizes.get(name, 1)]
        return chosen(groups, sizes, [p for p in self.soft.gates.split(":") if p], whole)

    def floors(self, sizes: dict[str, int]) -> dict[str, int]:
        """{group or residual branch: how many of its masks the penalty leaves alone}."""
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
        # Under a constant pull FISTA goes rate lambda k / 4 in step k, and rate lambda K^2 / 8
        # in K steps: lambda = 8 / (rate K^2) is the least that brings a mask of 1 to 0.
        least = 8 / (max(steps, 1) ** 2 * soft.rate)
        constant = soft.strength
        # lambda_k = lambda_0 RISE^(k / (K - 1)): from hardly
        # a pull to one that no gradient outweighs.
        rising = lambda step: least * RISE ** (step / max(steps - 1, 1))
        strength = rising if constant is None else lambda step: constant
        enough = None
        if budget is not None:
            # 1e-6: the price is a float32 on the device.
            goal = float(budget.value) + 1e-6
            # Before anything is trained: can zeros everywhere meet the budget?
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
        # The step has frozen the state before that, and reports NaN from then on.
        if not np.isfinite(metrics["loss"]):
            raise errors.DivergenceError(
                "the adversary diverged: a loss or weight was not finite, and the state before "
                "that is kept. Write a smaller judge_rate, mask_rate or --finetune-learning-rate."
            )
        return done, [record(self.name, metrics, learner.steps)]


def evenly_in(steps: int, moves: int) -> tuple[int, ...]:
    """So many steps of all, as evenly as whole numbers are; all of them where they are fewer.

    Example:
        >>> evenly_in(20, 14)[:7], evenly_in(6, 3), len(evenly_in(5, 100))
        ((2, 3, 5, 6, 8, 9, 10), (2, 4, 6), 5)
    """
    moves = min(moves, steps)
    # ceil(k T / M) for k = 1, ..., M: the last one is the last step
    return tuple(-(-number * steps // moves) for number in range(1, moves + 1))


@dataclasses.dataclass(frozen=True)
class SettleSoftMasks:
    """Removes what has the mask 0, and checks that the budget is met.

    Widths are rounded to the budget's multiples by the order of the masks.

    Attributes:
        budget: that must be met; None takes whatever is 0.
        name: of the record: fractions kept, and `reached`, by the penalty alone.
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
        metrics = fractions(task, masks) | {"reached": reached}
        return pruned._replace(variables=variables, masks=masks, extra=None), [
            record(self.name, metrics)
        ]


def rounded(
    task: Task, budget: Budget, soft: dict[str, np.ndarray], masks: dict[str, Any]
) -> dict[str, Any]:
    """Masks whose widths are multiples of the budget's: the highest soft masks are kept.

    Blocks and branches stay as they are; channels share the rest of the budget.
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
        kept_single = sum(int((soft[name] != 0).sum()) for name in single)
        # density d of all entries: (d n - those that blocks and branches keep) / n of channels
        share = (float(budget.value) * entries - kept_single) / units
    else:
        whole = {n: np.ones(soft[n].size, bool) for n in scores}
        # Below, a budget is a fraction of the net without the removed blocks and branches.
        share = float(budget.value) / float(price(task, budget, {**whole, **single}))
    asked = dataclasses.replace(budget, **{budget.kind: min(1.0, share)})
    model = Net(task).cost
    return masks | global_topk(scores, asked, lambda channels: model({**single, **channels}))
