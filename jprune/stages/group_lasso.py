"""The stages of SSL: training under group lasso, and masks of the groups that became 0."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jprune import allocate, blocks, errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.blocks import Blocks
from jprune.blocks.kinds import UNITS, least_of
from jprune.masks import apply_masks
from jprune.sparsify.group_lasso import Term, group_lasso
from jprune.stages.frame import fractions, record
from jprune.stages.low_rank import RankPenalty
from jprune.stages.silent import folded, noise
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_kind

FAMILIES = ("shape", "filter", "channel", "depth")
"""Kinds of groups, in the order of their proximal steps: small groups first."""

TINY = np.finfo(float).tiny
"""The smallest divisor, for a block that was 0 in the dense net."""

Scores = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: [groups]}}."""

Alive = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: bool [groups]}}."""


@dataclasses.dataclass(frozen=True)
class Penalty:
    """Settings of group lasso on a net.

    Attributes:
        families: kinds of groups, of `FAMILIES`.
        strength: lambda of all; of each block in execution order; a sequence of either, one a
            family; or {family: either}. None: see `settled`.
        names: of groups, kernels or branches that are penalised; None: all.
        how: "prox" or "subgradient", see `jprune.sparsify.group_lasso`.
        threshold: weights below it become 0 after every step.
        scales: whether the norm of a filter or branch counts the scales of its batch norms.
        shifts: whether the norm of a filter counts its biases and shifts.

    Raises:
        ArgumentError: another `how`, or a negative threshold.
    """

    families: tuple[str, ...] = ("filter", "channel")
    strength: Numbers | Sequence[Sequence[float]] | Mapping[str, Numbers] | None = (
        dataclasses.field(default=0.003, hash=False)
    )
    names: tuple[str, ...] | None = None
    how: str = "prox"
    threshold: float = 0.0
    scales: bool = True
    shifts: bool = False

    def __post_init__(self):
        if self.how not in ("prox", "subgradient") or self.threshold < 0:
            raise errors.ArgumentError(
                f"how={self.how!r}, threshold={self.threshold}; write how='prox' or "
                "'subgradient', and a threshold of 0 or more."
            )

    def terms(self, task: Task, budget: Budget) -> dict[str, Term]:
        """{family: its groups and strengths}, small groups first.

        Args:
            task: of the net whose groups are penalised.
            budget: whose floors are read.

        Raises:
            FrozenError: a penalty on a frozen group.
            StructureError: a family or name that the net does not have.
            ArgumentError: not as many strengths as blocks, or a negative one.
        """
        # Columns lie inside channels, channels inside branches: in this order the step of the sum
        # is exact where groups are nested (`sparsify.shrunk`).
        order = [kind for kind in FAMILIES if kind in self.families]
        made = blocks.of_kinds(
            Net(task).groups, self.families, self.names,
            scales=self.scales, shifts=self.shifts, floors=budget.floors,
        )  # fmt: skip
        by_kind = {each.kind: each for each in made}
        # A strength that is not known before training is 1: positive is all that is asked.
        strengths = per_kind(1.0 if self.strength is None else self.strength, by_kind, "strength")
        # `not lowest >= 0` refuses NaN too.
        lowest = min(value for of_kind in strengths.values() for value in of_kind.values())
        if not lowest >= 0:
            raise errors.ArgumentError(f"strength={self.strength!r}; each is 0 or more.")
        return {
            kind: Term(by_kind[kind], strengths[kind], least_of(by_kind[kind], budget))
            for kind in order
        }

    def settled(self, task: Task, budget: Budget, variables: Any, travel: float) -> "Penalty":
        """With strengths in numbers: None is one that has the time to act.

        It brings a group of the mean norm of its block to 0 in half of the training, unless
        gradients hold it: lambda = 2 mean over g of ||w_g|| / sum over steps of the rate.

        Args:
            task: of the net.
            budget: whose floors are read.
            variables: where training begins.
            travel: sum of the rates of all steps.
        """
        if self.strength is not None:
            return self
        norms = norms_of([term.blocks for term in self.terms(task, budget).values()], variables)
        # lambda / 2 sum_t rate_t = mean ||w_g||
        strengths = {
            k: {n: 2 * float(v.mean()) / travel for n, v in of.items()} for k, of in norms.items()
        }
        return dataclasses.replace(self, strength=strengths)

    def within(self, task: Task, budget: Budget, variables: Any) -> Budget:
        """The budget with floors: no group loses more units than its norms and the budget take.

        A strength that is not tuned may be too large: what it cannot take stays for the cut.
        """
        families = [
            term.blocks for term in self.terms(task, budget).values() if term.blocks.per == "unit"
        ]
        scores = {
            # ||w_g|| / mean over h of ||w_h||: groups of other sizes can be compared
            kind: {name: norm / max(norm.mean(), TINY) for name, norm in of.items()}
            for kind, of in norms_of(families, variables).items()
        }
        kept = allocate.jointly(families, scores, budget, Net(task).cost, allocate.global_topk)
        floors = {n: int(np.sum(m)) for of_kind in kept.values() for n, m in of_kind.items()}
        sizes = Net(task).groups.sizes
        if all(floors[name] == sizes[name] for name in floors):
            # Floors of all units would leave nothing to penalise.
            floors = {name: size - 1 for name, size in sizes.items() if name in floors}
        return dataclasses.replace(budget, floors={**budget.floors, **floors})


@dataclasses.dataclass(frozen=True)
class Penalised:
    """How group lasso takes part in training: a step against the penalty behind the optimizer's.

    Attributes:
        penalty: on what, and how much.
        budget: whose floors are read.
        rank: a penalty on singular values, whose step comes first; None: none.
    """

    penalty: Penalty
    budget: Budget
    rank: RankPenalty | None = None

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`; raises what `Penalty.terms` does."""
        ranked = (lambda inner: inner) if self.rank is None else self.rank(net, rate, key)
        terms = self.penalty.terms(net.task, self.budget)
        step = group_lasso(
            [term.blocks for term in terms.values()],
            {kind: term.strengths for kind, term in terms.items()},
            rate,
            how=self.penalty.how,
            threshold=self.penalty.threshold,
            least={kind: term.least for kind, term in terms.items()},
        )
        return lambda inner: optax.chain(ranked(inner), step)


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Training under group lasso.

    Attributes:
        train: how long, and how.
        budget: whose floors are read.
        penalty: on what, and how much.
        rank: a penalty on singular values beside it; None: none.
        name: of the records.
    """

    train: Train
    budget: Budget
    penalty: Penalty
    rank: RankPenalty | None = None
    name: str = "shrink"

    def check(self, task: Task) -> None:
        """Refuses an average of zeros that come late; raises what `Penalty.terms` does."""
        self.train.takes("group lasso", "optimizer", "warmup", "clip", "accumulate")
        self.penalty.terms(task, self.budget)
        if self.rank is not None:
            self.rank.strengths(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `Penalty.terms` does."""
        self.check(task)
        travel = float(self.train.rates(task).sum())
        budget = self.budget
        if self.penalty.strength is None:
            budget = self.penalty.within(task, budget, pruned.variables)
        penalty = self.penalty.settled(task, budget, pruned.variables, travel)
        rank = self.rank and self.rank.settled(task, pruned.variables, travel)
        # Behind the optimizer, where neither momentum nor weight decay gathers the penalty.
        wrap = Penalised(penalty, budget, rank)
        stage = dataclasses.replace(self.train, wrap=wrap, name=self.name)
        return stage.learner(pruned, task, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class ReadOff:
    """Makes masks of the groups that are exactly 0, and meets a budget.

    A filter of zeros still says f(bias) to its readers, which is not 0 behind a sigmoid, or a ReLU
    and a positive bias. That constant goes into their biases, or into the mean of a norm that
    follows at once; where it is none (a padded border shows) or nothing can take it, the filter
    stays, unless the budget asks for it.

    Attributes:
        budget: what may be kept.
        penalty: the settings under which the net was trained.
        correct: if the penalty has not reached the budget, cut the groups with the smallest
            `scores_of`; False: raise an error that says what it has reached.
        name: of the record: fractions kept, `reached` by the penalty alone, in the budget's unit,
            and `zeros`, the fraction of groups that it has brought to 0.
    """

    budget: Budget
    penalty: Penalty
    correct: bool = True
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Refuses a budget that no zeros can reach; raises what `Penalty.terms` does.

        Raises:
            BudgetError: it is one.
        """
        terms = self.penalty.terms(task, self.budget)
        whole = {
            kind: {name: np.ones(group.size) for name, group in term.blocks.items()}
            for kind, term in terms.items()
        }
        # Zeros of the penalty do not keep to multiples.
        budget = dataclasses.replace(self.budget, multiple_of=1)
        families = [term.blocks for term in terms.values()]
        scores = scores_of(whole, whole, terms)
        allocate.refuse_impossible_jointly(families, scores, budget, Net(task).cost)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks.

        Raises:
            BudgetError: the penalty has not reached the budget, or has left nothing of a group.
        """
        net = Net(task)
        terms = self.penalty.terms(task, self.budget)
        families = [term.blocks for term in terms.values()]
        norms = norms_of(families, pruned.variables)
        # ||w_g|| > 0: the proximal step makes exact zeros, so nothing is to be tuned here.
        alive = {k: {n: norm > 0 for n, norm in of.items()} for k, of in norms.items()}
        flat = np.concatenate([mask for of in alive.values() for mask in of.values()])
        variables, alive = without_zeros(task, pruned.variables, alive, key)
        masks = blocks.masks(families, alive, pruned.masks)
        reached = allocate.fraction_kept(net.groups, masks, self.budget, net.cost)
        # 1e-9: fractions of whole numbers, in float64.
        if reached > float(self.budget.value) + 1e-9:
            if flat.all() and self.penalty.strength != 0:
                warnings.warn(
                    f"group lasso has made none of {flat.size} groups 0, so that the cut does all "
                    f"of the work: strength={self.penalty.strength} is too weak for so few steps. "
                    "Write a larger strength, more epochs or a larger stop.",
                    stacklevel=2,
                )
            if not self.correct:
                raise errors.BudgetError(
                    f"the penalty reached {self.budget.kind}={reached:.4f} of the dense net, and "
                    f"{self.budget.kind}={self.budget.value} was asked for: {int((~flat).sum())} "
                    f"of {flat.size} groups are 0. Write a larger strength than "
                    f"{self.penalty.strength}, more epochs, or correct=true."
                )
            # Measured by what a group was before the penalty: see `scores_of`.
            dense = norms_of(families, pruned.saved.get("dense", pruned.variables))
            scores = scores_of(norms, dense, terms)
            chosen = allocate.jointly(
                families, scores, self.budget, net.cost, allocate.global_topk, masks
            )
            masks = blocks.masks([each for each in families if each.kind in chosen], chosen, masks)
        variables = apply_masks(variables, net.weight_masks(masks))
        metrics = {"reached": reached, "zeros": float(1 - flat.mean())}
        after = pruned._replace(variables=variables, masks=masks)
        return after, [record(self.name, fractions(task, masks) | metrics)]


def without_zeros(task: Task, variables: Any, alive: Alive, key: jax.Array) -> tuple[Any, Alive]:
    """Folds what units of zeros still say into their readers.

    Args:
        task: of the net.
        variables: of the net.
        alive: {kind: {block: bool [groups]}}, False where one is 0.
        key: of the inputs that are looked at.

    Returns:
        The variables, and what is alive: with units that could not be folded.
    """
    sizes = Net(task).groups.sizes
    zero = {
        # A unit goes with its filter or with its channel.
        name: ~np.logical_and.reduce([alive[k][name] for k in UNITS if name in alive.get(k, ())])
        for name in sizes
        if any(name in alive.get(kind, ()) for kind in UNITS)
    }
    if not any(units.any() for units in zero.values()):
        return variables, alive
    variables, gone = folded(task, variables, zero, noise(task, key))
    stays = {name: units & ~gone[name] for name, units in zero.items()}
    kept = {
        kind: {n: mask | stays[n] if kind in UNITS else mask for n, mask in of_kind.items()}
        for kind, of_kind in alive.items()
    }
    return variables, kept


def norms_of(families: Sequence[Blocks], variables: Any) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {block: [groups]}}: the norm of every group."""
    return {each.kind: blocks.norms(each, variables) for each in families}


def scores_of(norms: Scores, dense: Scores, terms: Mapping[str, Term]) -> Scores:
    """The norm of every group over the mean norm of its block in the dense net.

    Relative to the dense net, groups of different sizes can be compared: by their norms alone small
    kernels would always go before the filters of a residual stream. Blocks of strength 0 have no
    scores, unless all have strength 0. A unit has one score, the smaller one of its filter and its
    channel, since it goes when either does.

    Returns:
        {kind: {block: [groups]}}, -inf where a group is 0.
    """
    free = not any(strength for term in terms.values() for strength in term.strengths.values())
    scores = {
        kind: {
            # ||w_g|| / mean over h of ||w_h||, the mean in the dense net
            name: np.where(norm > 0, norm / max(dense[kind][name].mean(), TINY), -np.inf)
            for name, norm in of_kind.items()
            if free or terms[kind].strengths[name]
        }
        for kind, of_kind in norms.items()
    }
    if not set(UNITS) <= set(scores):
        return scores
    first, second = (scores.pop(kind) for kind in UNITS)
    units = {
        # min over filter and channel; a unit that only one of the two kinds has takes that one
        name: np.minimum(first.get(name, np.inf), second.get(name, np.inf))
        for name in {**first, **second}
    }
    return {**scores, "filter": units}
