"""E9 [9]: winning tickets train better than the same masks from other initial values.

Frankle, Carbin, arXiv 1803.03635, LeNet-300-100 on MNIST (their figures 3 and 4): with 21 % and
13.5 % of the weights a ticket is as good as the dense net or better, with 3.6 % about as good; from
new initial values accuracy is below dense already at 21 %, and the ticket's validation loss is at
its least 2.51 times sooner. Each round removes 20 % of the weights of the hidden layers and 10 % of
those of the last one, by layer; here with SGD in place of Adam, and 8 epochs a training.

    python -m experiments.mechanisms.e09_lottery_ticket --seeds 0 1 2 3 4

writes a line a net into `experiments/results/mechanisms/e09.jsonl`: `arm` is dense, ticket, reinit
or random_mask, `kept` the fraction of weights, `accuracy` that of the test set after the last step,
`best_step` the step with the least validation loss (looked at every `EVERY` steps).
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from statistics import stdev
from typing import Any

import jax
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import mnist, task_of
from jprune.base import Budget, Pruned, Task
from jprune.recipes import Rewind, Save, Train, evaluate
from jprune.report.figures import PRINT
from jprune.stages.frame import fractions
from jprune.stages.reinitialise import Reinitialise, ShuffleMasks
from jprune.stages.tickets import PruneRound, after

RESULTS = rows.RESULTS / "mechanisms" / "e09.jsonl"
ROUNDS = 18
COMPARED = (3, 7, 9, 12, 15, 18)
"""Rounds after which the controls are trained: 51, 21, 13.5, 7, 3.6 and 1.9 % are left."""
EVERY = 86
"""Steps between two looks at the validation loss: a fifth of an epoch."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and controls.
        epochs: of every training.
        learning_rate: the largest one.
        smoke: two steps a training, one round; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: float = 8.0
    learning_rate: float = 0.05
    smoke: bool = False


def remaining(number: int) -> float:
    """The fraction of weights after so many rounds of 20 %, 20 % and 10 %.

    Example:
        >>> round(remaining(7), 4)
        0.2107
    """
    sizes = ((235200, 0.2), (30000, 0.2), (1000, 0.1))
    return sum(after(size, rate, number) for size, rate in sizes) / 266200


def trained(stage: Train, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Any]:
    """The net after a training, and the step whose validation loss was least."""
    learner = stage.learner(pruned, task, key)
    state, losses = learner.init(), {}
    for step, batch in enumerate(itertools.islice(learner.batches(0), learner.steps), start=1):
        state, _ = learner.step(state, batch)
        if step % EVERY == 0 or step == learner.steps:
            found = evaluate(task, learner.variables(state), "validation")
            losses[step] = found["loss"]
    return learner.finish(state), min(losses, key=lambda step: losses[step])


def nets(settings: Settings, task: Task, seed: int):
    """(arm, round, net, least validation loss's step) for every net that is compared."""
    key = jax.random.key(seed)
    most = 2 if settings.smoke else None
    stage = Train(settings.epochs, settings.learning_rate, max_steps=most)
    start = Pruned(task.init(jax.random.fold_in(key, 0)), None)
    start, _ = Save("rewind")(start, task, key)
    pruned, best = trained(stage, start, task, jax.random.fold_in(key, 1))
    yield "dense", 0, pruned, best
    for number in range(1, (1 if settings.smoke else ROUNDS) + 1):
        here = jax.random.fold_in(key, 10 * number)
        pruned, _ = PruneRound(Budget(density=remaining(number)), 1)(pruned, task, here)
        ticket, _ = Rewind("rewind")(pruned, task, here)
        if number in COMPARED or settings.smoke:
            fresh, _ = Reinitialise()(pruned, task, jax.random.fold_in(here, 1))
            shuffled, _ = ShuffleMasks()(pruned, task, jax.random.fold_in(here, 2))
            shuffled, _ = Rewind("rewind")(shuffled, task, here)
            for arm, begun in (("reinit", fresh), ("random_mask", shuffled)):
                yield arm, number, *trained(stage, begun, task, jax.random.fold_in(here, 3))
        pruned, best = trained(stage, ticket, task, jax.random.fold_in(here, 3))
        yield "ticket", number, pruned, best


def of(found: Sequence[rows.Row], arm: str, number: int) -> list[float]:
    """Test accuracies in percent, by seed."""
    mine = [row for row in found if row["arm"] == arm and row["round"] == number]
    return [100 * row["accuracy"] for row in sorted(mine, key=lambda row: row["seed"])]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Differences in points of test accuracy, seed by seed."""

    def ahead(number: int, other: str, paper: str, least: float) -> Finding:
        than, at = ("dense", 0) if other == "dense" else ("reinit", number)
        leads = [a - b for a, b in zip(of(found, "ticket", number), of(found, than, at))]
        claim = f"at {100 * remaining(number):.1f} %, ticket - {other} >= {least:g}"
        return Finding(claim, paper, shown(leads), mean(leads) >= least)

    dense = mean(of(found, "dense", 0))
    late = (n for n in range(1, ROUNDS + 1) if mean(of(found, "ticket", n)) < dense - 0.05)
    below = 100 * remaining(next(late, ROUNDS))
    steps = {
        arm: mean([r["best_step"] for r in found if (r["arm"], r["round"]) == (arm, 7)])
        for arm in ("ticket", "reinit")
    }
    later = steps["reinit"] / steps["ticket"]
    return [
        ahead(7, "dense", "above 0", -0.05),
        ahead(9, "dense", "+0.3", -0.05),
        ahead(7, "new initial values", "+0.5", 0),
        ahead(9, "new initial values", "above 0", 0.2),
        ahead(12, "new initial values", "above 0", 0.4),
        Finding("ticket below dense from 7 to 2 % on", "3.6 %", f"{below:.1f} %", 1.8 < below < 7),
        Finding(
            "at 21 %, new initial values take longer to the least validation loss",
            "2.51 times", f"{later:.2f} times", later > 1.5,
        ),
    ]  # fmt: skip


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the fraction kept, mean and standard deviation, an arm a line."""
    styles = {"ticket": PRINT.slim, "reinit": PRINT.second, "random_mask": PRINT.muted}
    names = {"ticket": "ticket", "reinit": "new initial values", "random_mask": "shuffled masks"}
    for arm, colour in styles.items():
        rounds = sorted({row["round"] for row in found if row["arm"] == arm})
        values = [of(found, arm, number) for number in rounds]
        axes.errorbar(
            [100 * remaining(number) for number in rounds],
            [mean(each) for each in values],
            [stdev(each) if each[1:] else 0 for each in values],
            color=colour, marker="o", markersize=3, capsize=2, linewidth=1.2, label=names[arm],
        )  # fmt: skip
    axes.axhline(mean(of(found, "dense", 0)), color=PRINT.ink, linewidth=0.8, label="dense")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(
        [100, 51, 21, 13.5, 7, 3.6, 1.9], ["100", "51", "21", "13.5", "7", "3.6", "1.9"]
    )
    axes.set_xlabel("weights kept, %")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=9)


CLAIM = Claim(
    "E9: winning tickets [9]",
    findings,
    draw,
    "LeNet-300-100 on MNIST, SGD with a one-cycle schedule for 8 epochs where the paper has Adam "
    "at a constant rate: a rate that falls to nothing brings the least validation loss to the end "
    "of every training, so that steps to it do not tell the nets apart.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    task = task_of("lenet300", mnist(settings))
    for seed in seeds_of(settings):
        for arm, number, pruned, best in nets(settings, task, seed):
            seen = {} if pruned.masks is None else fractions(task, pruned.masks)
            yield {
                "arm": arm,
                "round": number,
                "kept": seen.get("density", 1.0),
                "seed": seed,
                "accuracy": evaluate(task, pruned.variables, "test")["accuracy"],
                "best_step": best,
            }


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "E9", "refs": [9]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))
