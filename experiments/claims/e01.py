"""E1 [1]: OBD's saliencies tell what a deletion costs, and its order beats that of magnitude.

LeCun, Denker, Solla (NIPS 1989), a digit net of 2,578 free parameters: predicted and measured error
agree until 30 % of them are deleted; deletion by saliency beats deletion by magnitude clearly, and
random deletion is off the scale; with training after it, errors stay the same until 60 % are gone.
Here LeNet-300-100 on MNIST, with cross entropy in place of the squared error and the Gauss-Newton
or Hutchinson diagonal in place of the recursion, on 10,000 training images.

Of a row, `arm` is dense, obd (by Gauss-Newton), obd_hutchinson, obd_recursion, magnitude or random,
all pruned at once and without training, or obd_iterative (30 % of what is left, then training);
`kept` is the fraction of weights, `loss` that of the training set, `accuracy` that of the test set,
`predicted` the sum of the deleted weights' saliencies.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean, geometric_mean

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, scored_before
from experiments.claims.plots import Style, finish, level, line, spread
from experiments.claims.statements import (
    Rows,
    at_least,
    at_most,
    each,
    gap,
    listed,
    says,
    together,
)  # fmt: skip
from experiments.rows import Row
from jprune import allocate, criteria, curvature, run_criterion
from jprune.base import Batch, Budget, Criterion, Pruned, Scores, is_none
from jprune.masks import apply_masks
from jprune.recipes import Prune

KEPT = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
ROUNDS = 7
STYLES = {
    "obd": Style("OBD, Gauss-Newton", "slim"),
    "obd_hutchinson": Style("OBD, Hutchinson", "slim", "--"),
    "obd_recursion": Style("OBD, recursion", "slim", ":"),
    "magnitude": Style("magnitude", "second"),
    "random": Style("random", "muted"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of the dense net.
        between: epochs after every round of the iterative arm.
        learning_rate: the largest one.
        weight_decay: of all training.
        images: that curvature is measured on.
        probes: of a sampled diagonal, a batch of 250.
    """

    epochs: float = 8.0
    between: float = 2.0
    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    images: int = 10_000
    probes: int = 16


def criteria_of(case: Case[Settings]) -> dict[str, Criterion]:
    """By arm."""
    fn, loss, key, probes = case.task.fn, case.task.loss, case.fold(2), case.settings.probes
    of = lambda estimator: criteria.obd(fn, loss, estimator, key)
    return {
        "obd": of(curvature.gauss_newton(probes)),
        "obd_hutchinson": of(curvature.hutchinson(probes)),
        "obd_recursion": of(curvature.recursion()),
        "magnitude": criteria.magnitude(),
        "random": criteria.random(key),
    }


def prune(case: Case, pruned: Pruned, scores: Scores, kept: float) -> tuple[Pruned, float]:
    """The net with so many weights left, and the sum of the scores that went."""
    stage = Prune(scored_before, allocate.global_topk, Budget(density=kept), per="weight")
    masks = stage.of_weights(pruned, case.task, scores)
    gone = lambda mask, score: 0.0 if mask is None else float(np.sum(score, where=~mask))
    went = jax.tree.leaves(jax.tree.map(gone, masks, scores, is_leaf=is_none))
    variables = apply_masks(pruned.variables, masks)
    return pruned._replace(variables=variables, masks=masks), sum(went)


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, all levels of all criteria, and deletion and training in turn."""
    settings = case.settings
    of = lambda epochs: case.train(
        epochs, settings.learning_rate, weight_decay=settings.weight_decay
    )
    count = 1 if case.smoke else settings.images // 250
    batches: Sequence[Batch] = list(
        itertools.islice(case.task.data.batches("train", 250, seed=case.seed), count)
    )
    dense = case.dense(of(settings.epochs))
    yield {"arm": "dense", "kept": 1.0, "predicted": None}, dense
    for arm, criterion in criteria_of(case).items():
        scores = run_criterion(criterion, dense.variables, batches)
        for kept in case.first(KEPT):
            pruned, went = prune(case, dense, scores, kept)
            predicted = went if arm.startswith("obd") else None
            yield {"arm": arm, "kept": kept, "predicted": predicted}, pruned
    pruned, criterion = dense, criteria_of(case)["obd"]
    for number in case.first(range(1, ROUNDS + 1)):
        scores = run_criterion(criterion, pruned.variables, batches)
        pruned, _ = prune(case, pruned, scores, 0.7**number)
        pruned = case.apply(pruned, 10 + number, of(settings.between))
        yield {"arm": "obd_iterative", "kept": 0.7**number, "predicted": None}, pruned


def measured(case: Case, pruned: Pruned) -> Row:
    """The loss that OBD predicts is that of the training set."""
    return {"loss": case.score(pruned, "train", "loss"), "accuracy": case.score(pruned)}


DENSE = each("loss", arm="dense")
LOSS = {(arm, kept): each("loss", arm=arm, kept=kept) for arm in STYLES for kept in KEPT}
PREDICTED = {kept: each("predicted", arm="obd", kept=kept) for kept in KEPT}
AHEAD = {kept: LOSS["magnitude", kept] / LOSS["obd", kept] for kept in KEPT}
STATEMENTS = (
    at_least(
        "levels of 8 at which OBD's training loss is no higher than magnitude's",
        "all along (ours: 5 or more)",
        together(lambda *ratios: sum(ratio >= 1 for ratio in ratios), *AHEAD.values()),
        5, digits=1,
    ),
    at_least(
        "60 to 90 % deleted: loss of magnitude over that of OBD", "clearly above 1 (ours: 1.3)",
        together(lambda *all_: geometric_mean(all_), *(AHEAD[k] for k in KEPT[2:7])), 1.3,
    ),
    at_least(
        "60 % deleted: loss of random over that of magnitude", "off the scale",
        LOSS["random", 0.4] / LOSS["magnitude", 0.4], 5, digits=1,
    ),
    *(
        says(
            f"{100 * (1 - kept):.0f} % deleted: loss measured over loss predicted", paper,
            LOSS["obd", kept] / (DENSE + PREDICTED[kept]),
            lambda ratio, near=kept > 0.5: (abs(fmean(ratio) - 1) <= 0.05) == near, digits=3,
        )
        for kept, paper in ((0.8, "the same up to 30 %"), (0.6, ""), (0.4, "apart"))
    ),
    at_most(
        "60 % deleted: increase measured over increase predicted", "at most 2 (ours)",
        (LOSS["obd", 0.4] - DENSE) / PREDICTED[0.4], 2, digits=1,
    ),
    *(
        at_most(
            f"{100 * (1 - 0.7**number):.0f} % deleted in {number} rounds with training: accuracy "
            "lost, points",
            paper, gap("accuracy", "dense", {"arm": "obd_iterative", "kept": 0.7**number}), 0.3,
        )
        for number, paper in ((2, "0 up to 60 % deleted"), (4, "more than x2"), (7, ""))
    ),
)  # fmt: skip


def plot(rows: Rows, axes: Axes) -> None:
    """Training loss over the weights deleted, and what OBD predicted."""
    deleted = [100 * (1 - kept) for kept in KEPT]
    for arm, style in STYLES.items():
        spread(axes, deleted, [LOSS[arm, kept].list(rows) for kept in KEPT], style)
    dense = fmean(listed(rows, "loss", arm="dense"))
    predicted = [dense + PREDICTED[kept].mean(rows) for kept in KEPT]
    style = Style("predicted by Gauss-Newton", "ink")
    line(axes, deleted, predicted, style, marker=None, linewidth=0.8)
    level(axes, dense)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(top=20)  # room for the legend
    x = "weights deleted, %, without training"
    finish(axes, x, "training loss, nats", loc="upper left", ncols=3)


CLAIM = Claim(
    "e01",
    "E1: optimal brain damage [1]",
    refs=(1,),
    settings=Settings(),
    nets=lambda settings: (Net("lenet300"),),
    arms=arms,
    measures=(measured,),
    statements=STATEMENTS,
    plot=plot,
    remarks="LeNet-300-100 on MNIST with cross entropy, where the paper has a net of its own and "
    "the squared error; curvature on 10,000 training images. The loss is that of the training set, "
    "which is what OBD predicts. Of the increase it sees little: probably because the net is at a "
    "minimum of loss and weight decay together, so that the loss alone still has a slope, and "
    "because deletions add to each other. The Gauss-Newton diagonal and OBD's own recursion rank "
    "much alike. The diagonal of the Hessian itself, by Hutchinson, does not serve: for 40 % of "
    "the weights or more the estimate is 0 or below (in truth or by its noise, which was not told "
    "apart), and clipped at 0 they go first, whatever their size. From 85 % on magnitude is level "
    "with OBD and then ahead, as long as nothing is trained.",
)
