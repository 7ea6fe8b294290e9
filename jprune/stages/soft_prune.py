"""Training with soft pruning: after every epoch the worst units are set to 0, and train on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import criteria, errors, schedules
from jprune.base import ROLES, Batch, Criterion, Groups, Learner, Pruned, Records, Schedule, Task
from jprune.sparsify import Rule, choice, lowest, masks_by, nearest, soft_prune
from jprune.stages.goal import Goal, period
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState

CRITERIA: Mapping[str, Callable[[Groups], Criterion]] = MappingProxyType(
    {
        "l1": lambda groups: criteria.magnitude(1),
        "l2": lambda groups: criteria.magnitude(2),
        "distance": lambda groups: criteria.distance(groups),
        "manhattan": lambda groups: criteria.distance(groups, "manhattan"),
        "cosine": lambda groups: criteria.distance(groups, "cosine"),
    }
)
"""{name: makes the criterion for a net}."""

ATTRIBUTES = ("loss", "mass")
"""What copies of the net are compared by: their loss on the batch of the step; the sum of |w| over
their kernels."""

CHOICES = {"nearest": nearest, "lowest": lowest}
RAMPS = ("constant", "asymptotic")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Criteria among which the net chooses.

    Attributes:
        names: of `CRITERIA`; one alone is taken always.
        attributes: of `ATTRIBUTES`.
        by: "nearest": the criterion whose pruned copy has the attributes nearest to those of the
            net as it is; "lowest": that with the lowest loss.
    """

    names: tuple[str, ...]
    attributes: tuple[str, ...] = ("loss",)
    by: str = "nearest"

    def __post_init__(self):
        for what, names, known in (
            ("criteria", self.names, CRITERIA),
            ("attribute", self.attributes, ATTRIBUTES),
            ("choose", (self.by,), CHOICES),
        ):
            wrong = [name for name in names if name not in known]
            if wrong or not names or len({*names}) < len(names):
                raise errors.ArgumentError(
                    f"{what}={':'.join(names)!r}; write some of {', '.join(known)}, each once, "
                    "with ':' between."
                )
        if self.by == "lowest" and self.attributes != ("loss",):
            raise errors.ArgumentError(
                f"choose='lowest' with attribute={':'.join(self.attributes)!r}: it is the lowest "
                "loss that is meant. Write attribute='loss', or choose='nearest'."
            )


@dataclasses.dataclass(frozen=True)
class SoftPrune:
    """Trains all weights; again and again the worst units lose their kernels, and regrow.

    The kernels of as many units as will go in the end are set to 0 after the last step too:
    `Settle` makes the masks of them. Shifts and scales of such a unit stay, or nothing could
    regrow. With a pool, every metric comes with `took_<criterion>`: how often it was chosen.

    Attributes:
        train: how long, and how.
        goal: how many units of each group are kept, and by which norm where there is no pool.
        every: epochs from one time to the next; None: one, in short runs a tenth of the steps.
        ramp: "constant": as many units as in the end from the first time on; "asymptotic": three
            quarters of them after an eighth of the steps (`schedules.asymptotic`).
        pool: of criteria; None: the norm of the goal.
        name: of the records.
    """

    train: Train
    goal: Goal
    every: float | None = None
    ramp: str = "constant"
    pool: Pool | None = None
    name: str = "soft"

    def __post_init__(self):
        if self.ramp not in RAMPS or (self.every is not None and not self.every > 0):
            raise errors.ArgumentError(
                f"ramp={self.ramp!r}, every={self.every}; write one of {', '.join(RAMPS)}, and a "
                "number of epochs above 0."
            )

    def check(self, task: Task) -> None:
        """Refuses an average of zeros that come late; raises what `Goal.check` does."""
        self.train.takes("soft pruning", "optimizer", "warmup", "clip", "accumulate")
        self.goal.check(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `check` does, and refuses weights that are NaN."""
        self.check(task)
        net, steps = Net(task), self.train.optimizer_for(task).taken
        net.refuse_nan(pruned.variables, net.kernels(net.prunable(None, self.goal.budget)))
        epoch = task.data.sizes["train"] // self.train.batch_size
        asked = None if self.every is None else max(1, round(self.every * epoch))
        every = period(asked, epoch, steps)
        wrap = Zeroed(self.goal, every, steps, self.ramp, self.pool)
        learner = dataclasses.replace(self.train, wrap=wrap).learner(pruned, task, key)
        if self.pool is None:
            return learner
        names = self.pool.names

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            times = state.opt_state[-1].chosen
            # New arrays: the next step gives the state's own away.
            return state, {**metrics, **{f"took_{n}": times[i] + 0 for i, n in enumerate(names)}}

        return learner._replace(step=step)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Zeroed:
    """How soft pruning takes part in training: behind the optimizer.

    Attributes:
        goal: see `SoftPrune`.
        every: steps from one time to the next.
        steps: of the training; it is done after the last one.
        ramp: see `SoftPrune`.
        pool: see `SoftPrune`.
    """

    goal: Goal
    every: int
    steps: int
    ramp: str = "constant"
    pool: Pool | None = None

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        choose = None
        rules = self.rules(net, ("kernel",))
        if len(rules) > 1 and self.pool is not None:
            # The copies are without all of a unit, so that its shift says nothing.
            attributes = attributes_of(net, self.pool.attributes)
            choose = choice(self.rules(net, ROLES), attributes, CHOICES[self.pool.by])
        zeros = soft_prune(rules, every=self.every, begin=self.steps % self.every, choose=choose)
        return lambda inner: optax.chain(inner, zeros)

    def rules(self, net: Net, roles: Sequence[str]) -> list[Rule]:
        """A rule for every criterion, all with the same numbers of units."""
        density = self.goal.density(net)
        schedule = schedules.one_shot(density)
        if self.ramp == "asymptotic":
            schedule = schedules.asymptotic(density, self.steps)
        if self.pool is None:
            return [self.goal.rule(net, schedule, roles)]
        made, keep = (
            (CRITERIA[name](net.groups) for name in self.pool.names),
            self.goal.allocator(net),
        )
        return [masks_by(each, keep, schedule, net.groups, roles=roles) for each in made]


def attributes_of(net: Net, names: Sequence[str]) -> Callable[..., jax.Array]:
    """`(params, batch, rest) -> [attributes]` of a net, of `ATTRIBUTES`."""
    kernels = net.task.split(net.is_kernel)[0]

    def loss(params: Any, batch: Batch, rest: Any) -> jax.Array:
        out = net.fn(net.task.merge(params, rest), batch["image"])
        return batch["weight"] @ net.task.loss(out, batch) / batch["weight"].sum()

    def mass(params: Any, batch: Batch, rest: Any) -> jax.Array:
        del batch, rest
        one = lambda is_kernel, leaf: jnp.abs(leaf).sum() if is_kernel else jnp.zeros(())
        return sum(jax.tree.leaves(jax.tree.map(one, kernels, params)), jnp.zeros(()))

    of_name = {"loss": loss, "mass": mass}

    def attributes(params: Any, *, batch: Batch, rest: Any, **extra: Any) -> jax.Array:
        del extra
        return jnp.stack([of_name[name](params, batch, rest) for name in names])

    return attributes
