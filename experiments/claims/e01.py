"""E1 [1]: OBD's saliencies tell what a deletion costs, and its order beats that of magnitude.

LeCun, Denker, Solla (NIPS 1989), a digit net of 2,578 free parameters: predicted and measured error
agree until 30 % of them are deleted; deletion by saliency beats deletion by magnitude clearly, and
random deletion is off the scale; with training after it, errors stay the same until 60 % are gone.

Of a row, `arm` is dense, one of `STYLES` (not trained after it) or obd_iterative (`ROUNDS`, with
training); `kept` is of the weights, `predicted` the sum of the deleted ones' saliencies.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean, geometric_mean

from experiments.claims.claim import Case, Claim, Made, Net, accuracy, training_loss
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.scored import at_once, in_rounds
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import at_least, at_most, each, gap, says, together
from jprune import criteria, curvature

KEPT = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
ROUNDS = [0.7**number for number in range(1, 8)]
STYLES = {
    "obd": Style("OBD, Gauss-Newton", "slim"),
    "obd_hutchinson": Style("OBD, Hutchinson", "slim", "--"),
    "obd_recursion": Style("OBD, recursion", "slim", ":"),
    "magnitude": Style("magnitude", "second"),
    "random": Style("random", "muted"),
}


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    epochs: float = 8.0
    between: float = 2.0
    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    images: int = 10_000
    probes: int = 16


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, all levels of all criteria, and deletion and training in turn."""
    used, task, key = case.settings, case.task, case.fold(2)
    train = lambda epochs: case.train(epochs, used.learning_rate, weight_decay=used.weight_decay)
    batches = case.batches("train", 250, used.images, case.seed)
    dense = case.dense(train(used.epochs))
    yield {"arm": "dense", "kept": 1.0, "predicted": None}, dense
    sampled = curvature.gauss_newton(used.probes), curvature.hutchinson(used.probes)
    obd = [criteria.obd(task.fn, task.loss, d, key) for d in (*sampled, curvature.recursion())]
    for arm, criterion in zip(STYLES, (*obd, criteria.magnitude(), criteria.random(key))):
        for kept, net, removed in at_once(case, dense, criterion, batches, KEPT):
            yield {"arm": arm, "kept": kept, "predicted": removed if "obd" in arm else None}, net
    for kept, net in in_rounds(case, dense, obd[0], batches, ROUNDS, train(used.between)):
        yield {"arm": "obd_iterative", "kept": kept, "predicted": None}, net


DENSE = each("loss", arm="dense")
LOSS = {(arm, kept): each("loss", arm=arm, kept=kept) for arm in STYLES for kept in KEPT}
PREDICTED, BLIND = ({kept: each("predicted", arm=arm, kept=kept) for kept in KEPT}
                    for arm in ("obd", "obd_hutchinson"))  # fmt: skip
AHEAD = {kept: LOSS["magnitude", kept] / LOSS["obd", kept] for kept in KEPT}
DELETED = {kept: 100 * (1 - kept) for kept in KEPT}
CLAIM = Claim(
    "e01", "E1: optimal brain damage [1]", refs=(1,), settings=Settings(),
    nets=lambda settings: (Net("lenet300"),), arms=arms, measures=(training_loss, accuracy),
    statements=(
        at_least("levels of 8 at which OBD's training loss is no higher than magnitude's",
                 "all along (ours: 5 or more)",
                 together(lambda *all_: sum(r >= 1 for r in all_), *AHEAD.values()), 5, digits=1),
        at_least("60 to 90 % deleted: loss of magnitude over that of OBD",
                 "clearly above 1 (ours: 1.3)",
                 together(lambda *all_: geometric_mean(all_), *(AHEAD[k] for k in KEPT[2:7])), 1.3),
        at_least("60 % deleted: loss of random over that of magnitude", "off the scale",
                 LOSS["random", 0.4] / LOSS["magnitude", 0.4], 5, digits=1),
        *(says(f"{DELETED[kept]:.0f} % deleted: loss measured over loss predicted", paper,
               LOSS["obd", kept] / (DENSE + PREDICTED[kept]),
               lambda ratio, near=kept > 0.5: (abs(fmean(ratio) - 1) <= 0.05) == near, digits=3)
          for kept, paper in ((0.8, "the same up to 30 %"), (0.6, ""), (0.4, "apart"))),
        at_most("60 % deleted: increase measured over increase predicted", "at most 2 (ours)",
                (LOSS["obd", 0.4] - DENSE) / PREDICTED[0.4], 2, digits=1),
        *(at_most(f"{100 * (1 - 0.7**n):.0f} % deleted in {n} rounds with training: accuracy "
                  "lost, points", paper,
                  gap("accuracy", "dense", {"arm": "obd_iterative", "kept": 0.7**n}), 0.3)
          for n, paper in ((2, "0 up to 60 % deleted"), (4, "more than x2"), (7, ""))),
    ),
    plot=curves(
        [*(Curve(style, [*DELETED.values()], [LOSS[arm, kept] for kept in KEPT])
           for arm, style in STYLES.items()),
         Curve(Style("predicted by Gauss-Newton", "ink"), [*DELETED.values()],
               [DENSE + PREDICTED[kept] for kept in KEPT], bars=False,
               more={"marker": None, "linewidth": 0.8})],
        "weights deleted, %, without training", "training loss, nats", across=[Level(DENSE)],
        log="y", plain=True, limits=(None, 20), loc="upper left", ncols=3,
    ),
    remarks="LeNet-300-100 on MNIST with cross entropy, where the paper has a net of its own and "
    "the squared error; curvature on {images:,} training images. The loss is that of the training "
    "set, which is what OBD predicts. Of the increase it sees little: probably because the net is "
    "at a minimum of loss and weight decay together, so that the loss alone still has a slope, and "
    "because deletions add to each other. The Gauss-Newton diagonal and OBD's own recursion rank "
    "much alike. The diagonal of the Hessian itself, by Hutchinson, does not serve: for "
    "{blind:.0f} % of the weights or more the estimate is 0 or below (in truth or by its noise, "
    "which was not told apart), and clipped at 0 they go first, whatever their size. From "
    "{late:.0f} % on magnitude is level with OBD and then ahead, as long as nothing is trained.",
    figures={"blind": lambda rows: DELETED[min(k for k in KEPT if not any(BLIND[k].list(rows)))],
             "late": lambda rows: DELETED[max(k for k in KEPT if min(AHEAD[k].list(rows)) < 1)]},
)  # fmt: skip
