"""The search for a shape by mixed widths and depths, whose logits learn beside the weights."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.allocate.budgets import MISSED
from jprune.base import Batch, Budget, Learner, Pruned, Records, Schedule, Task, Variables
from jprune.learners.width_mixture import (
    Mixture,
    Price,
    cost_loss,
    entropy,
    temperature,
)
from jprune.masks import apply_masks
from jprune.stages.choices import Choices, costs_of, price_of
from jprune.stages.frame import fractions, record
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain, stream
from jprune.units import ones

HELD = "held_"
"""Before the names of what a batch holds of other examples, from which logits learn."""


def settle(
    mixture: Mixture, logits: Mapping[str, Any], price: Price, high: float, low: float
) -> tuple[dict[str, int], int]:
    """The likeliest candidates, moved until the cost is in a window, and by how many steps.

    While the cost is above the window, the candidate that loses least log-probability for what it
    saves is moved to the next smaller one; while it is below, the one that loses least for what it
    adds goes up. Where that would leave the window above, others go down for it.

    Args:
        mixture: the candidates.
        logits: {group or stage: [candidates]}.
        price: what a shape costs.
        high: what it may cost.
        low: what it should cost.
    """
    names = [*mixture.sizes]
    log_p = [np.asarray(jax.nn.log_softmax(logits[name]), float) for name in names]
    costs = costs_of(lambda choice: price(mixture.shape(choice)), names)
    row, last = np.array([of.argmax() for of in log_p]), np.array([of.size - 1 for of in log_p])
    one, above = np.eye(len(names), dtype=int), high + 1e-6
    cost = lambda row: float(costs(row[None])[0])
    log_of = lambda row: sum(of[choice] for of, choice in zip(log_p, row))

    def best(row: np.ndarray, rows: np.ndarray, up: bool) -> np.ndarray | None:
        """Of these rows the one that costs least log-probability for its change of the cost."""
        rows = rows[((rows >= 0) & (rows <= last)).all(axis=1)]
        change = costs(rows) - cost(row)
        right = (change > 1e-9) & (change + cost(row) <= above) if up else change < 0
        if not right.any():
            return None
        loss = log_of(row) - np.array([log_of(chosen) for chosen in rows[right]])
        return rows[right][np.argmin(loss / np.abs(change[right]))]

    def lowered(row: np.ndarray, but: int = -1) -> np.ndarray:
        """The row, moved down until it is in the window or nothing goes down any more."""
        while cost(row) > above:
            new = best(row, row - np.delete(one, but, axis=0) if but >= 0 else row - one, up=False)
            if new is None:
                break
            row = new
        return row

    start, row = row, lowered(row)
    while cost(row) < low:
        wider = best(row, row + one, up=True)
        if wider is None:
            places = np.flatnonzero(row < last).tolist()
            swaps = [lowered(row + one[place], place) for place in places]
            wider = best(row, np.array(swaps).reshape(-1, len(names)), up=True)
        if wider is None:
            break
        row = wider
    return dict(zip(names, row.tolist())), int(np.abs(row - start).sum())


@dataclasses.dataclass(frozen=True)
class SearchShape:
    """Trains weights with mixed widths and depths, and logits that say which; then chooses.

    After every step of the weights on the training split, the logits take one of Adam on examples
    of the validation split, on the loss and the cost. What the net is then is masked to the
    likeliest shape, whose cost is brought into the tolerance.

    Attributes:
        train: of the weights.
        budget: what is kept; floors and multiples hold for widths.
        choices: what is chosen from.
        rate: Adam's, of the logits; None: 1e-3, or 5 over the number of steps where that is
            more, 0.5 at most.
        decay: of the logits, added to their gradient.
        name: of the records: `share` is the cost of the likeliest shape, `entropy` that of the
            choices.
    """

    train: Train
    budget: Budget
    choices: Choices = dataclasses.field(default_factory=Choices)
    rate: float | None = None
    decay: float = 1e-3
    name: str = "search"

    def check(self, task: Task) -> None:
        """Refuses what `Choices.check` does, and settings that do not fit.

        Raises:
            JpruneError: what `Choices.check` and `Train.takes` raise.
        """
        self.train.takes(self.name, "optimizer", "warmup", "clip")
        self.choices.check(task, self.budget)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps.

        Raises:
            DivergenceError: when it is finished, if the logits are not finite.
        """
        net, steps = Net(task), self.train.steps(task.data.sizes["train"])
        mixture, price = self.choices.mixture(task, self.budget), price_of(task, self.budget)
        of_logits, of_steps = jax.random.split(key)
        mixed = mixed_task(task, mixture, price, self.choices, float(self.budget.value), steps)
        start = {
            "net": pruned.variables,
            "norms": mixture.norms(),
            "logits": mixture.logits(of_logits),
            "step": jnp.zeros((), jnp.int32),
        }
        never = lambda tree: jax.tree.map(lambda _: False, tree)
        decayed = {
            "net": task.split(net.is_kernel)[0], **never({n: start[n] for n in ("norms", "logits")})
        }  # fmt: skip
        rate = max(1e-3, min(0.5, 5 / steps)) if self.rate is None else self.rate
        optimizer, size = self.train.optimizer_for(task), self.train.batch_size
        learner = plain(
            mixed,
            pruned._replace(variables=start),
            None,
            optimizer,
            of_steps,
            size,
            Alternate(rate, self.decay),
            decayed,
        )
        goal = float(self.budget.value)
        within = goal, goal - min(self.choices.tolerance, MISSED)

        def chosen(state: TrainState) -> Pruned:
            logits = state.params["logits"]
            if not all(np.isfinite(np.asarray(leaf)).all() for leaf in logits.values()):
                raise errors.DivergenceError(
                    "the search for a shape diverged: its logits are not finite. Write a smaller "
                    "rate of the logits or --learning-rate."
                )
            choice, _ = settle(mixture, logits, price, *within)
            masks = masks_of(mixture, choice)
            variables = mixed.merge(state.params, state.rest)["net"]
            variables = apply_masks(variables, net.weight_masks(masks))
            return pruned._replace(variables=variables, masks=masks)

        return learner._replace(
            batches=lambda start: _with_held(task, size, key, learner.batches(start), start),
            variables=lambda state: chosen(state).variables,
            finish=chosen,
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last step and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, records = trained(learner, self.name)
        metrics = records[0]["metrics"] | fractions(task, done.masks)
        return done, [record(self.name, metrics, learner.steps)]


def masks_of(mixture: Mixture, choice: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The masks of a choice: the leading units of every group, and the branches that stay."""
    sizes, masks = mixture.groups.sizes, ones(mixture.groups)
    for name, count in mixture.shape(choice).items():
        masks[name] = np.arange(sizes.get(name, 1)) < int(count)
    return masks


def mixed_task(
    task: Task, mixture: Mixture, price: Price, choices: Choices, goal: float, steps: int
) -> Task:
    """The task of a search, for variables {"net", "norms", "logits", "step"}.

    Args:
        task: of the net.
        mixture: the candidates.
        price: what a shape costs.
        choices: strength and tolerance of the cost, and temperatures.
        goal: what the net may cost, as a fraction of the dense one.
        steps: of the search.
    """
    run = mixture.run(task.train_fn)

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> Any:
        # Widths are drawn apart from what the net draws.
        ours, theirs = jax.random.split(key)
        logits, progress = variables["logits"], variables["step"] / steps
        tau = temperature(progress, choices.highest, choices.lowest)
        draw = mixture.draw(logits, ours, tau)
        out, new = run(variables["net"], variables["norms"], draw, x, theirs)
        # lambda L_cost
        cost = choices.strength * cost_loss(mixture, logits, price, goal, choices.tolerance)
        seen = {"share": price(mixture.likeliest(logits)), "entropy": entropy(logits)}
        return (out, cost, seen), new

    def split(variables: Variables) -> tuple[Any, Any]:
        params, rest = task.split(variables["net"])
        learned = {name: variables[name] for name in ("norms", "logits")}
        return {"net": params, **learned}, {"net": rest, "step": variables["step"]}

    def update(variables: Variables, new: Any) -> Variables:
        net = task.update(variables["net"], new)
        return {**variables, "net": net, "step": variables["step"] + 1}

    def metrics(outs: Any, batch: Batch) -> dict[str, jax.Array]:
        seen = {name: jnp.full_like(batch["weight"], value) for name, value in outs[2].items()}
        return {"loss": task.loss(outs[0], batch), **task.metrics(outs[0], batch), **seen}

    return task._replace(
        train_fn=train_fn,
        # Both terms: of the cost, weights have no gradient.
        loss=lambda outs, batch: task.loss(outs[0], batch) + outs[1],
        metrics=metrics,
        split=split,
        merge=lambda params, rest: {
            **params, "net": task.merge(params["net"], rest["net"]), "step": rest["step"]
        },
        update=update,
    )  # fmt: skip


def _with_held(
    task: Task, size: int, key: jax.Array, batches: Iterator[Batch], start: int
) -> Iterator[Batch]:
    """Training batches, each with one of the validation split under other names."""
    data = task.data
    own = {**data.sizes, "train": data.sizes["validation"]}
    others = lambda split, *args, **options: data.batches("validation", *args, **options)
    held = data._replace(batches=others, sizes=own)
    for batch, other in zip(batches, stream(held, min(size, own["train"]), key, start)):
        yield {**batch, **{HELD + name: value for name, value in other.items()}}


@dataclasses.dataclass(frozen=True)
class Alternate:
    """A wrap under which logits take a step of Adam after every step of the weights.

    The gradient is that of the same task on other examples, those that a batch holds under names
    that begin with `HELD`; of the weights' own step the logits see nothing.

    Attributes:
        rate: Adam's.
        decay: of the logits, added to the gradient.
    """

    rate: float
    decay: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Any:
        """As `jprune.base.Wrap`."""
        del rate
        task = net.task
        # torch's Adam: decay is added to the gradient.
        own = optax.chain(
            optax.add_decayed_weights(self.decay), optax.adam(self.rate, b1=0.5, b2=0.999)
        )

        def wrapped(inner: Any) -> optax.GradientTransformationExtraArgs:
            tx: Any = optax.with_extra_args_support(inner)

            def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
                batch, rest = extra["batch"], extra["rest"]
                still = {**updates, "logits": jax.tree.map(jnp.zeros_like, updates["logits"])}
                changes, inner_state = tx.update(still, state[0], params, **extra)
                moved: Any = optax.apply_updates(params, changes)
                held = {n.removeprefix(HELD): v for n, v in batch.items() if n.startswith(HELD)}
                weight, of_step = held["weight"], jax.random.fold_in(state[2], rest["step"])

                def loss(logits: Any) -> jax.Array:
                    variables = task.merge({**moved, "logits": logits}, rest)
                    outs, _ = task.train_fn(variables, held["image"], of_step)
                    return weight @ task.loss(outs, held) / weight.sum()

                slope = jax.grad(loss)(moved["logits"])
                steps, own_state = own.update(slope, state[1], moved["logits"])
                return {**changes, "logits": steps}, (inner_state, own_state, state[2])

            init = lambda params: (tx.init(params), own.init(params["logits"]), key)
            return optax.GradientTransformationExtraArgs(init, update)

        return wrapped
