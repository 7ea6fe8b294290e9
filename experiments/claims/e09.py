"""E9 [9]: winning tickets train better than the same masks from other initial values.

Frankle, Carbin, arXiv 1803.03635, LeNet-300-100 on MNIST (their figures 3 and 4): with 21 % and
13.5 % of the weights a ticket is as good as the dense net or better, with 3.6 % about as good; from
new initial values accuracy is below dense already at 21 %, and the ticket's validation loss is at
its least 2.51 times sooner. Each round removes 20 % of the weights of the hidden layers and 10 % of
those of the last one, by layer; here with SGD in place of Adam, and 8 epochs a training.

Of a row, `arm` is dense, ticket, reinit or random_mask, `kept` the fraction of weights, `accuracy`
that of the test set after the last step, `best_step` the step with the least validation loss
(looked at every `EVERY` steps).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from statistics import fmean

import jax
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, accuracy
from experiments.claims.plots import Style, finish, level, spread
from experiments.claims.statements import Finding, Rows, Statement, Value, at_least, each, gap
from experiments.rows import Row
from jprune.base import Budget, Pruned
from jprune.recipes import Rewind, Save, Train, evaluate
from jprune.stages.prune import fractions
from jprune.stages.reinitialise import Reinitialise, ShuffleMasks
from jprune.stages.tickets import PruneRound, after

ROUNDS = 18
COMPARED = (3, 7, 9, 12, 15, 18)
"""Rounds after which the controls are trained: 51, 21, 13.5, 7, 3.6 and 1.9 % are left."""
EVERY = 86
"""Steps between two looks at the validation loss: a fifth of an epoch."""
STYLES = {
    "ticket": Style("ticket", "slim"),
    "reinit": Style("new initial values", "second"),
    "random_mask": Style("shuffled masks", "muted"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of every training.
        learning_rate: the largest one.
    """

    epochs: float = 8.0
    learning_rate: float = 0.05


def remaining(number: int) -> float:
    """The fraction of weights after so many rounds of 20 %, 20 % and 10 %.

    Example:
        >>> round(remaining(7), 4)
        0.2107
    """
    sizes = ((235200, 0.2), (30000, 0.2), (1000, 0.1))
    return sum(after(size, rate, number) for size, rate in sizes) / 266200


def trained(case: Case, stage: Train, pruned: Pruned, key: jax.Array) -> tuple[Pruned, int]:
    """The net after a training, and the step whose validation loss was least."""
    learner = stage.learner(pruned, case.task, key)
    state, losses = learner.init(), {}
    for step, batch in enumerate(itertools.islice(learner.batches(0), learner.steps), start=1):
        state, _ = learner.step(state, batch)
        if step % EVERY == 0 or step == learner.steps:
            losses[step] = evaluate(case.task, learner.variables(state), "validation")["loss"]
    return learner.finish(state), min(losses, key=lambda step: losses[step])


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, the ticket after every round, and its controls after some."""
    stage, task = case.train(case.settings.epochs, case.settings.learning_rate), case.task

    def made(arm: str, number: int, start: Pruned, key: jax.Array) -> tuple[Row, Pruned]:
        pruned, best = trained(case, stage, start, key)
        return {"arm": arm, "round": number, "best_step": best}, pruned

    start, _ = Save("rewind")(case.start, task, case.key)
    row, pruned = made("dense", 0, start, case.fold(1))
    yield row, pruned
    for number in case.first(range(1, ROUNDS + 1)):
        fold = 10 * number
        pruned = case.apply(pruned, fold, PruneRound(Budget(density=remaining(number)), 1))
        ticket = case.apply(pruned, fold, Rewind("rewind"))
        if number in COMPARED or case.smoke:
            anew, _ = Reinitialise()(pruned, task, case.fold(fold, 1))
            shuffled, _ = ShuffleMasks()(pruned, task, case.fold(fold, 2))
            shuffled = case.apply(shuffled, fold, Rewind("rewind"))
            yield made("reinit", number, anew, case.fold(fold, 3))
            yield made("random_mask", number, shuffled, case.fold(fold, 3))
        row, pruned = made("ticket", number, ticket, case.fold(fold, 3))
        yield row, pruned


def fraction(case: Case, pruned: Pruned) -> Row:
    """Of the weights."""
    none = pruned.masks is None
    return {"kept": 1.0 if none else fractions(case.task, pruned.masks)["density"]}


def ahead(number: int, other: str, paper: str, least: float) -> Statement:
    """The ticket after so many rounds against another net."""
    than = {"arm": "dense"} if other == "dense" else {"arm": "reinit", "round": number}
    text = f"at {100 * remaining(number):.1f} %, ticket - {other} >= {least:g}"
    lead = gap("accuracy", {"arm": "ticket", "round": number}, than)
    return at_least(text, paper, lead, least)


def percent(arm: str, number: int) -> Value:
    """Test accuracy."""
    return 100 * each("accuracy", arm=arm, round=number)


def turning(rows: Rows) -> Iterator[Finding]:
    """Where tickets fall behind the dense net, and how soon losses are least."""
    dense = percent("dense", 0).mean(rows)
    late = (n for n in range(1, ROUNDS + 1) if percent("ticket", n).mean(rows) < dense - 0.05)
    below = 100 * remaining(next(late, ROUNDS))
    holds = 1.8 < below < 7
    yield Finding("ticket below dense from 7 to 2 % on", "3.6 %", f"{below:.1f} %", holds)
    anew, ticket = (each("best_step", arm=a, round=7).mean(rows) for a in ("reinit", "ticket"))
    later = anew / ticket
    text = "at 21 %, new initial values take longer to the least validation loss"
    yield Finding(text, "2.51 times", f"{later:.2f} times", later > 1.5)


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy over the fraction kept, an arm a line."""
    for arm, style in STYLES.items():
        rounds = sorted({row["round"] for row in rows if row["arm"] == arm})
        values = [percent(arm, number).list(rows) for number in rounds]
        spread(axes, [100 * remaining(number) for number in rounds], values, style)
    level(axes, fmean(percent("dense", 0).list(rows)), colour="ink")
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = ("100", "51", "21", "13.5", "7", "3.6", "1.9")
    axes.set_xticks([float(tick) for tick in ticks], ticks)
    finish(axes, "weights kept, %", "test accuracy, %", 9)


CLAIM = Claim(
    "e09",
    "E9: winning tickets [9]",
    refs=(9,),
    settings=Settings(),
    nets=lambda settings: (Net("lenet300"),),
    seeds=(0, 1, 2, 3, 4),
    arms=arms,
    measures=(fraction, accuracy),
    statements=(
        ahead(7, "dense", "above 0", -0.05),
        ahead(9, "dense", "+0.3", -0.05),
        ahead(7, "new initial values", "+0.5", 0),
        ahead(9, "new initial values", "above 0", 0.2),
        ahead(12, "new initial values", "above 0", 0.4),
        turning,
    ),
    plot=plot,
    remarks="LeNet-300-100 on MNIST, SGD with a one-cycle schedule for 8 epochs where the paper "
    "has Adam at a constant rate: a rate that falls to nothing brings the least validation loss to "
    "the end of every training, so that steps to it do not tell the nets apart.",
)
