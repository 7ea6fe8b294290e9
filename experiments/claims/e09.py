"""E9 [9]: winning tickets train better than the same masks from other initial values.

Frankle, Carbin, arXiv 1803.03635, LeNet-300-100 on MNIST (their figures 3 and 4): with 21 % and
13.5 % of the weights a ticket is as good as the dense net or better, with 3.6 % about as good; from
new initial values accuracy is below dense already at 21 %, and the ticket's validation loss is at
its least 2.51 times sooner. Each round removes 20 % of the weights of the hidden layers and 10 % of
those of the last one, by layer; here with SGD in place of Adam, and fewer epochs.

Of a row, `arm` is dense or one of `STYLES`, `kept` the fraction of weights, `accuracy` that of the
test set after the last step, `best_step` the step with the least validation loss.
"""

import dataclasses
from collections.abc import Iterator

import jax

from experiments.claims.claim import Case, Claim, Made, Net, accuracy, weights_kept
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Finding, Rows, at_least, each, gap, percent
from experiments.claims.tickets import controls, pruned_round, remaining, rewound
from experiments.claims.watched import least_loss
from experiments.rows import Row
from jprune.base import Pruned
from jprune.recipes import Save

ROUNDS = range(1, 19)
COMPARED = (3, 7, 9, 12, 15, 18)  # rounds after which the controls are trained
EVERY = 86  # steps between two looks at the validation loss: a fifth of an epoch
STYLES = {
    "ticket": Style("ticket", "slim"),
    "reinit": Style("new initial values", "second"),
    "random_mask": Style("shuffled masks", "muted"),
}


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    epochs: float = 8.0
    learning_rate: float = 0.05


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, the ticket after every round, and its controls after some."""
    training = case.train(case.settings.epochs, case.settings.learning_rate)

    def made(arm: str, number: int, start: Pruned, key: jax.Array) -> tuple[Row, Pruned]:
        pruned, best = least_loss(case, training, start, key, EVERY)
        return {"arm": arm, "round": number, "best_step": best}, pruned

    row, pruned = made("dense", 0, case.apply(case.start, 1, Save("rewind")), case.fold(1))
    yield row, pruned
    for number in case.first(ROUNDS):
        pruned = pruned_round(case, pruned, number)
        ticket = rewound(case, pruned, number)
        if number in COMPARED or case.smoke:
            for arm, start in controls(case, pruned, number):
                yield made(arm, number, start, case.fold(10 * number, 3))
        row, pruned = made("ticket", number, ticket, case.fold(10 * number, 3))
        yield row, pruned


DENSE, LEFT = percent("accuracy", arm="dense"), {n: 100 * remaining(n) for n in ROUNDS}
AT = {(arm, n): percent("accuracy", arm=arm, round=n) for arm in STYLES for n in ROUNDS}


def turning(rows: Rows) -> Iterator[Finding]:
    """Where tickets fall behind the dense net, and how soon losses are least."""
    late = (n for n in ROUNDS if AT["ticket", n].mean(rows) < DENSE.mean(rows) - 0.05)
    below = LEFT[next(late, ROUNDS[-1])]
    yield Finding("ticket below dense from 7 to 2 % on", "3.6 %", f"{below:.1f} %", 1.8 < below < 7)
    anew, ticket = (each("best_step", arm=a, round=7).mean(rows) for a in ("reinit", "ticket"))
    text = "at 21 %, new initial values take longer to the least validation loss"
    yield Finding(text, "2.51 times", f"{anew / ticket:.2f} times", anew / ticket > 1.5)


CLAIM = Claim(
    "e09", "E9: winning tickets [9]", refs=(9,), settings=Settings(),
    nets=lambda settings: (Net("lenet300"),), arms=arms, seeds=(0, 1, 2, 3, 4),
    measures=(weights_kept, accuracy),
    statements=(
        *(at_least(f"at {LEFT[n]:.1f} %, ticket - dense >= -0.05", paper,
                   gap("accuracy", {"arm": "ticket", "round": n}, "dense"), -0.05)
          for n, paper in ((7, "above 0"), (9, "+0.3"))),
        *(at_least(f"at {LEFT[n]:.1f} %, ticket - new initial values >= {least}", paper,
                   gap("accuracy", "ticket", "reinit", round=n), least)
          for n, paper, least in ((7, "+0.5", 0), (9, "above 0", 0.2), (12, "above 0", 0.4))),
        turning,
    ),
    plot=curves(
        [Curve(style, [*LEFT.values()], [AT[arm, n] for n in ROUNDS])
         for arm, style in STYLES.items()],
        "weights kept, %", "test accuracy, %", across=[Level(DENSE, colour="ink")], log="x",
        falls=True, size=9,
        ticks={float(tick): tick for tick in ("100", "51", "21", "13.5", "7", "3.6", "1.9")},
    ),
    remarks="LeNet-300-100 on MNIST, SGD with a one-cycle schedule for {epochs:g} epochs where the "
    "paper has Adam at a constant rate: a rate that falls to nothing brings the least validation "
    "loss to the end of every training, so that steps to it do not tell the nets apart.",
)  # fmt: skip
