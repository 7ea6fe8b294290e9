"""P41 [41]: filters that grow equal are merged without loss.

Ding, Ding, Guo, Han (arXiv 1904.03837): merging changes nothing; ResNet-56 keeps its accuracy at
5/8 of its width; C-SGD beats the narrow net trained from scratch. Here LeNet-5 with half of its
filters, and ResNet-8 with 5/8 of all its channels, residual streams included.

Of a row, `arm` is dense (trained on as long as C-SGD), csgd, l1 (smallest filters pruned, then
trained as long) or scratch (the narrow net, trained as long as both); `deviation` is the sum of
squared differences of parameters from the means of their clusters, `drift` the largest change of an
output by merging over the largest output, `same` the fraction of images whose class merging keeps.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean

from experiments.claims import statements as say
from experiments.claims.claim import Case, Claim, Made, accuracy, named, sizes
from experiments.claims.clusters import merged
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import at_least, each, gap, percent, says
from jprune import allocate
from jprune.base import Budget
from jprune.recipes import Prune
from jprune.recipes.three_step import l1_of
from jprune.stages.centripetal import Pull
from jprune.stages.reinitialise import BeginAnew

LENET, RESNET = "lenet5", "resnet8"
BUDGETS = {LENET: Budget(density=0.5, floors={"params/fc1/kernel": 500})}
EIGHTHS = Budget(density=5 / 8)  # of the other nets
STRENGTHS = (0.01, 1.0)  # of ResNet-8: too weak for the steps that it has, and enough


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of P41: `epochs` of all trainings; the learning rate of LeNet-5 is a fifth."""

    lenet_epochs: float = 8.0
    epochs: float = 6.0
    learning_rate: float = 0.1
    lenet_images: int = 10_000
    train_images: int = 5_000
    batch_size: int = 64


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, trained on, C-SGD, smallest filters pruned, and the narrow net."""
    used, small = case.settings, case.net.name == LENET
    budget = BUDGETS.get(case.net.name, EIGHTHS)
    epochs = used.lenet_epochs if small else used.epochs
    rate = used.learning_rate / (5 if small else 1)
    of = lambda times=1.0: case.train(times * epochs, rate, used.batch_size)
    dense = case.dense(of())
    yield {"arm": "dense", "strength": None}, case.apply(dense, 3, of())
    for strength in STRENGTHS[1:] if small else STRENGTHS[-1 if case.smoke else 0 :]:
        net, row = merged(case, dense, budget, Pull(of(), strength))
        yield {"arm": "csgd", "strength": strength, **row}, net
    cut, _ = Prune(l1_of, allocate.uniform, budget)(dense, case.task, case.key)
    yield {"arm": "l1", "strength": None}, case.apply(cut, 3, of())
    yield {"arm": "scratch", "strength": None}, case.apply(cut, 4, BeginAnew(), of(2.0))


WEAK, STRONG = ({"model": RESNET, "arm": "csgd", "strength": strength} for strength in STRENGTHS)
LAW = (5 / 8) ** 2
PULLS = (
    (STRENGTHS[0], "a gap", lambda same, drift: max(drift) > 0.01, WEAK),
    (STRENGTHS[1], "100; 0", lambda same, drift: min(same) == 100, STRONG),
)
CLAIM = Claim(
    "p41", "P41: centripetal SGD [41]", refs=(41,), settings=Settings(),
    nets=lambda settings: [named(LENET, "mnist", settings.lenet_images, "model"),
                           named(RESNET, "cifar10", settings.train_images, "model")],
    arms=arms, measures=(accuracy, sizes), smoke=(named("lenet300", "cifar10", word="model"),),
    statements=(
        say.largest("LeNet-5, half of the filters: squared deviation", "0",
                each("deviation", model=LENET, arm="csgd"), 1e-8),
        says("LeNet-5: classes that merging keeps, %", "100",
             percent("same", model=LENET, arm="csgd"),
             lambda same: min(same) == 100),
        at_least("LeNet-5: merged - dense, points", "about 0",
                 gap("accuracy", "csgd", "dense", model=LENET), -0.3),
        *(say.several(f"ResNet-8 at 5/8, strength {s}: classes kept, %; largest drift", paper,
                      holds, percent("same", **at), each("drift", **at).worst)
          for s, paper, holds, at in PULLS),
        *(
            at_least(f"ResNet-8, strength {STRENGTHS[1]}: merged - {other} >= {least}, points",
                     "about 0 or above", gap("accuracy", STRONG, other, model=RESNET), least)
            for other, least in (("scratch", -0.5), ("dense", -2.5), ("l1", 0.0))
        ),
        says("MACs over (5/8)^2", "1", each(lambda row: row["macs"] / LAW, **STRONG),
             lambda ratios: abs(fmean(ratios) - 1) < 0.1),
    ),
    plot=curves(
        [Curve(Style(name, colour), STRENGTHS, [percent(what, **at) for at in (WEAK, STRONG)],
               bars=False, more={"markersize": 4, "linewidth": None})
         for what, name, colour in (("before", "C-SGD, not merged", "second"),
                                    ("accuracy", "C-SGD, merged", "slim"))],
        "strength of the pull, ResNet-8 at 5/8 of its width", "test accuracy, %", log="x",
        across=[Level(percent("accuracy", model=RESNET, arm=arm), arm, colour,
                      {"linestyle": mark, "linewidth": 0.9})
                for arm, colour, mark in (("dense", "ink", "-"), ("l1", "muted", "--"),
                                          ("scratch", "muted", ":"))],
    ),
    remarks="ResNet-8 on {train_images:,} images of CIFAR-10 for {epochs:g} + {epochs:g} epochs, "
    "where the paper has ResNet-56 for 600 + 600 a round. Differences shrink by exp(-sum of rates "
    "* strength / (1 - momentum)), with a tenth of the strength for scales and biases, so "
    "strengths are larger here.",
)  # fmt: skip
