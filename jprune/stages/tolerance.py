"""Pruning as long as a net is no worse than a tolerance allows: both how strongly and how much.

Two players take turns. One presses on the smallest units and cuts what is below a threshold; the
other says how strong the press and how high the threshold may be, by what is left of the tolerance.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jprune import blocks, errors
from jprune.allocate.budgets import floor_of, step_of, widths
from jprune.allocate.lowest_first import priced
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.masks import apply_masks
from jprune.sparsify import CandidateState, candidate_decay, candidates
from jprune.stages.frame import check_prunable, fractions, record, saved
from jprune.stages.train import Train, trained
from jprune.train.evaluate import mean_quality
from jprune.train.net import Net
from jprune.train.step import TrainState

Units = dict[str, np.ndarray]
WITHIN = "within"
"""Name in `saved` of the last net that was within the tolerance."""


class Move(NamedTuple):
    """What the controller allows.

    Attributes:
        margin: T: how far the quality is above the least that is allowed.
        strength: lambda_A, of the penalty on candidates.
        scale: W_A / W_gamma, of the threshold.
    """

    margin: float
    strength: float
    scale: float


def controlled(now: float, base: float, tolerance: float, strength: float, gain: float) -> Move:
    """How strong the penalty and how high the threshold may be.

    Args:
        now: the quality of the net, higher being better.
        base: that of the dense net.
        tolerance: by how much the quality may be below it.
        strength: lambda.
        gain: delta_w.

    Example:
        >>> controlled(0.985, 0.99, 0.01, 1.0, 100.0).scale
        0.5
    """
    # T = max(Acc - (xi - eps), 0); 1e-12: a margin of rounding errors is none
    margin = max(now - (base - tolerance), 0.0)
    margin = margin if margin > 1e-12 else 0.0
    # lambda_A = T lambda; W_A = delta_w T W_gamma, at most W_gamma
    return Move(margin, margin * strength, round(min(gain * margin, 1.0), 12))


@dataclasses.dataclass(frozen=True)
class Game:
    """Settings of both players.

    Attributes:
        tolerance: by how much the quality on validation images may fall below the dense net's: of
            an accuracy as a fraction, or of the loss of a task without accuracy.
        fraction: of the units of a layer that are candidates.
        strength: lambda of the penalty at a margin of 1; None: with the whole tolerance left, a
            candidate of mean size comes to 0 in one press if the loss does not hold it.
        gain: delta_w; None: 1 / tolerance, so that the threshold begins at W_gamma.
        slack: of quality that the removal of units of one layer may cost, for W_gamma.
        scales: whether the scales of norms belong to a unit's size and are pressed too.
    """

    tolerance: float = 0.01
    fraction: float = 0.1
    strength: float | None = None
    gain: float | None = None
    slack: float = 0.0
    scales: bool = False

    def __post_init__(self):
        errors.check_numbers(
            "play_and_prune",
            ("tolerance", self.tolerance, 0 < self.tolerance < np.inf, "above 0"),
            ("fraction", self.fraction, 0 < self.fraction < 1, "in (0, 1)"),
            ("strength", self.strength, (self.strength or 0) >= 0, "0 or more"),
            ("gain", self.gain, self.gain is None or self.gain > 0, "above 0"),
            ("slack", self.slack, self.slack >= 0, "0 or more"),
        )

    def of(self, net: Net, budget: Budget) -> blocks.Blocks:
        """The filters that may go: those of groups that the budget's floors do not leave whole."""
        sizes = net.groups.sizes
        names = [n for n, size in sizes.items() if floor_of(n, size, budget) < size]
        return blocks.filters(net.groups, names, scales=self.scales)

    def move(self, state: Mapping[str, Any]) -> Move:
        """What the controller allows a net whose `extra` is this."""
        gain = 1 / self.tolerance if self.gain is None else self.gain
        strength = 1 / self.tolerance if self.strength is None else self.strength
        now, base = float(state["quality"]), float(state["base"])
        return controlled(now, base, self.tolerance, strength, gain * float(state["share"]))


def state_of(pruned: Pruned) -> Mapping[str, Any]:
    """What `Watch` has put into `extra`.

    Raises:
        ArgumentError: there is nothing.
    """
    if not (isinstance(pruned.extra, Mapping) and "share" in pruned.extra):
        raise errors.ArgumentError(
            "nothing says how good the dense net is. Put Watch() before Press and CutBelow."
        )
    return pruned.extra


@dataclasses.dataclass(frozen=True)
class Watch:
    """Measures the quality on the validation split; a net below the tolerance is taken back.

    The first one says how good the dense net is. Each later one keeps the net if it is within the
    tolerance; if not, the last one that was comes back, and the threshold is half as high from then
    on.

    Attributes:
        game: the tolerance.
        last: whether nothing follows: `extra` is then empty again.
        name: of the record: fractions kept, `quality` (as measured), `base` (the dense net's) and
            `taken_back`, 1 or 0.
    """

    game: Game = Game()
    last: bool = False
    name: str = "watch"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net, or the last one that was within the tolerance."""
        del key
        now = mean_quality(task, pruned.variables, "validation")
        first = not (isinstance(pruned.extra, Mapping) and "share" in pruned.extra)
        if first and not np.isfinite(now):
            raise errors.DivergenceError(
                f"the dense net's quality on validation images is {now}. Write a smaller "
                "--learning-rate."
            )
        masks = Net(task).unit_masks(pruned)
        masks = {name: np.asarray(mask, bool) for name, mask in masks.items()}
        begun: dict[str, Any] = {"base": now, "share": 1.0, "masks": masks}
        before = begun if first else state_of(pruned)
        # Acc >= xi - eps, or the last cut is taken back; a NaN is no quality
        fine = now >= float(before["base"]) - self.game.tolerance
        extra: dict[str, Any] = {**before, "quality": np.asarray(now, float)}
        if fine:
            good = {**pruned.saved, WITHIN: pruned.variables}
            after = pruned._replace(masks=masks, saved=good)
            extra["masks"] = masks
        else:
            extra |= {"share": float(before["share"]) / 2, "quality": before["within"]}
            back = saved(pruned, WITHIN, "Watch")
            masks = {n: np.asarray(mask, bool) for n, mask in before["masks"].items()}
            after = pruned._replace(variables=back, masks=masks)
        extra["within"] = extra["quality"]
        extra = {n: v if n == "masks" else np.asarray(v, float) for n, v in extra.items()}
        if self.last:
            others = {name: tree for name, tree in after.saved.items() if name != WITHIN}
            after = after._replace(saved=others)
        metrics = fractions(task, after.masks) | {
            "quality": now, "base": float(before["base"]), "taken_back": float(not fine),
        }  # fmt: skip
        after = after._replace(extra=None if self.last else extra)
        return after, [record(self.name, metrics)]


@dataclasses.dataclass(frozen=True)
class Press:
    """Trains under a penalty on the smallest units of every layer, as strong as the margin allows.

    Attributes:
        train: how long, and how.
        budget: whose floors say which groups stay whole.
        game: how many units, how strong.
        name: of the records.
    """

    train: Train
    budget: Budget
    game: Game = Game()
    name: str = "press"

    def check(self, task: Task) -> None:
        """Refuses an average of weights that go to 0, and a net without filters."""
        self.train.takes("play_and_prune", "optimizer", "warmup", "clip", "accumulate")
        check_prunable(task, self.budget)

    def strengths(self, pruned: Pruned, task: Task) -> dict[str, float]:
        """{group: lambda_A}."""
        of, strength = (
            self.game.of(Net(task), self.budget),
            self.game.move(state_of(pruned)).strength,
        )
        if self.game.strength is not None:
            return dict.fromkeys(of, strength)
        strength, moved = min(strength, 1.0), float(self.train.rates(task).sum())
        sizes = jax.tree.map(np.abs, Net(task).leaves(pruned.variables))
        means, chosen = blocks.pool(of, sizes, "mean"), candidates(of, sizes, self.game.fraction)
        of_chosen = {n: np.asarray(means[n])[np.asarray(chosen[n])] for n in of}
        # |w| - (sum of the rates) lambda_A = 0 for the mean |w| of the candidates
        whole = {
            n: float(mean.mean()) / moved if mean.size else 0.0 for n, mean in of_chosen.items()
        }
        return {n: strength * each for n, each in whole.items()}

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: no `Watch` came before.
        """
        strengths = self.strengths(pruned, task)
        wrap = Pressed(self.budget, self.game.fraction, self.game.scales)
        learner = dataclasses.replace(self.train, wrap=wrap).learner(pruned, task, key)

        def init() -> TrainState:
            state = learner.init()
            # Strengths are put into the state, and not into the wrap: all rounds then share what
            # was compiled.
            *others, last = state.opt_state
            wanted = {n: np.asarray(strengths[n], np.float32) for n in last.strength}
            put: CandidateState = last._replace(strength=jax.tree.map(jax.numpy.asarray, wanted))
            return state._replace(opt_state=(*others, put))

        return learner._replace(init=init)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Pressed:
    """How the penalty takes part in training: behind the optimizer.

    Attributes:
        budget: see `Press`.
        fraction: see `Game`.
        scales: see `Game`.
    """

    budget: Budget
    fraction: float
    scales: bool

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del key
        of = Game(scales=self.scales).of(net, self.budget)
        penalty = candidate_decay(of, self.fraction, 0.0, rate)
        return lambda inner: optax.chain(inner, penalty)


@dataclasses.dataclass(frozen=True)
class CutBelow:
    """Masks the units below the threshold that the margin allows; none go below the budget.

    Attributes:
        budget: what is kept at least; floors and multiples hold.
        game: the threshold.
        name: of the record: fractions kept, `removed` (units), `quality` before the cut, `margin`,
            `scale` (W_A / W_gamma), and `strength` (lambda_A, which the next press has).
    """

    budget: Budget
    game: Game = Game()
    name: str = "cut"

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            ArgumentError: no `Watch` came before; weights that are NaN.
        """
        del key
        net, state = Net(task), state_of(pruned)
        net.refuse_nan(pruned.variables, net.kernels(net.prunable(None, self.budget)))
        now = mean_quality(task, pruned.variables, "validation")
        move = self.game.move({**state, "quality": now})
        alive = {n: np.asarray(m, bool) for n, m in net.unit_masks(pruned).items()}
        masks = alive if move.scale == 0 else self.cut(pruned, task, now, move, alive)
        variables = apply_masks(pruned.variables, net.weight_masks(masks))
        removed = sum(int((alive[n] & ~mask).sum()) for n, mask in masks.items())
        metrics = fractions(task, masks) | {"removed": removed, "quality": now} | move._asdict()
        after = pruned._replace(variables=variables, masks=masks)
        return after, [record(self.name, metrics)]

    def cut(
        self, pruned: Pruned, task: Task, now: float, move: Move, alive: Units
    ) -> dict[str, np.ndarray]:
        """The masks of a cut."""
        net = Net(task)
        of = self.game.of(net, self.budget)
        leaves = net.leaves(pruned.variables)
        sizes = {p: np.abs(np.asarray(leaves[p], float)) for p in of.counted}
        sums = {name: np.asarray(size) for name, size in blocks.pool(of, sizes).items()}
        ratio = {}
        for name, size in sums.items():
            highest = self.threshold(pruned, task, now, alive, name, size)
            # s_j < W_A = delta_w T W_gamma goes
            ratio[name] = size / highest if highest > 0 else np.full(size.shape, np.inf)
        return self.within_budget(task, ratio, alive, move.scale)

    def threshold(
        self, pruned: Pruned, task: Task, now: float, alive: Units, name: str, size: np.ndarray
    ) -> float:
        """W_gamma: the largest size below which units of one group cost (almost) no quality.

        By bisection on the number of units, which takes log2 of it evaluations.
        """
        order = np.flatnonzero(alive[name])[np.argsort(size[alive[name]], kind="stable")]

        def fine(count: int) -> bool:
            masks = {**alive, name: alive[name] & ~np.isin(np.arange(size.size), order[:count])}
            masked = apply_masks(pruned.variables, Net(task).weight_masks(masks))
            return mean_quality(task, masked, "validation") >= now - self.game.slack

        low, high = 0, order.size - floor_of(name, size.size, self.budget)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fine(middle) else (low, middle - 1)
        # Between the last that may go and the first that may not
        return float(size[order[min(max(low, 0), order.size - 1)]])

    def within_budget(
        self, task: Task, ratio: Mapping[str, np.ndarray], alive: Units, scale: float
    ) -> dict[str, np.ndarray]:
        """The masks of a cut that is smaller where the budget would be passed by."""
        net = Net(task)
        scores = {n: np.where(alive[n], r, -np.inf) for n, r in ratio.items()}
        masks = {**alive, **{n: self.keep(n, score, scale) for n, score in scores.items()}}
        price, goal = priced(net.groups.sizes, self.budget, net.cost)
        if price(alive) <= goal + 1e-6:
            return alive
        if price(masks) >= goal:
            return masks
        # The lowest threshold that meets the budget: what is cut is a part of what may be.
        steps = sorted({r for score in scores.values() for r in score[np.isfinite(score)]})
        low, high = 0, len(steps)
        at = lambda number: {
            **alive,
            **{n: self.keep(n, s, min(scale, steps[number])) for n, s in scores.items()},
        }
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if price(at(middle)) <= goal + 1e-6 else (middle + 1, high)
        return at(min(low, len(steps) - 1)) if low < len(steps) else masks

    def keep(self, name: str, score: np.ndarray, scale: float) -> np.ndarray:
        """Which units of a group stay: as many as are above, up to the next allowed width."""
        wanted, size = int((score >= scale).sum()), score.size
        allowed = widths(size, floor_of(name, size, self.budget), step_of(size, self.budget))
        count = min(width for width in allowed if width >= wanted)
        order = np.argsort(-score, kind="stable")
        mask = np.zeros(size, bool)
        mask[order[:count]] = True
        return mask & (score > -np.inf)
