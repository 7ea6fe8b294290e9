"""E13 [13]: group lasso takes whole filters, columns, inputs and branches out of nets.

Wen, Wu, Wang, Chen, Li, arXiv 1608.03665: LeNet keeps 5-19 of 20-50 filters (3-12 for 0.1 points),
or 7-14 of 25-500 columns; an MLP loses inputs on the border of the image and neurons; ResNet-20
loses layers.

Of a row, `families` and `strength` are of the penalty, `arm` is dense (trained as long), prox,
subgradient (with the authors' threshold) or subgradient_alone (without), `zeros` the fraction of
groups that are 0, `kept` the groups left by block, `before` the accuracy before fine-tuning.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean

from experiments.claims import lasso
from experiments.claims.claim import Case, Claim, Made, accuracy, named, validation
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import above, percent, says

RUNS: dict[str, dict[str, tuple[float, ...]]] = {  # {net: {families: strengths}}
    "lenet5": {"filter+channel": (0.01, 0.02), "shape": (0.01, 0.02)},
    "lenet300": {"filter+shape": (0.002, 0.003)},
    "resnet8": {"depth": (0.05, 0.1)},
}
SIZES = {"lenet5": 32, "lenet300": 32, "resnet8": 64}  # of batches
COMPARED = ("lenet5", "filter+channel", 0.02)


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of E13; the learning rate of ResNet-8 is five times as large.

    Attributes:
        finetune: epochs under the masks.
    """

    epochs: float = 4.0
    shrink: float = 6.0
    finetune: float = 2.0
    learning_rate: float = 0.02
    lenet_images: int = 10_000
    train_images: int = 5_000


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, trained on, and the net of every penalty."""
    used = case.settings
    rate = (5 if case.net.name == "resnet8" else 1) * used.learning_rate
    # What counts for a penalty is the number of steps.
    of = lambda epochs, rate=rate: case.train(epochs, rate, SIZES[case.net.name])
    finetune = of(used.finetune, rate / 2)
    dense = case.dense(of(used.epochs))
    longer = case.apply(dense, 2, of(used.shrink), finetune)
    yield {"arm": "dense", "families": "", "strength": 0.0, "zeros": 0.0}, longer
    for arm, penalty in lasso.penalties(case, RUNS[case.net.name], COMPARED):
        row, net = lasso.shrunk(case, dense, of(used.shrink), penalty)
        yield {"arm": arm, **row}, case.apply(net, 3, finetune)


FAMILIES = [(net, families) for net, of_net in RUNS.items() for families in of_net]
COLOURS = ("slim", "second", "muted", "ink")
ZEROS = {arm: percent("zeros", net=COMPARED[0], arm=arm, families=COMPARED[1], strength=COMPARED[2])
         for arm in ("prox", "subgradient", "subgradient_alone")}  # fmt: skip
TEXT = f"{{}}, {COMPARED[1]} {COMPARED[2]}: groups that are exactly 0, %"
CLAIM = Claim(
    "e13", "E13: structured sparsity learning [13]", refs=(13,), settings=Settings(),
    nets=lambda settings: [
        *(named(name, images=settings.lenet_images) for name in ("lenet5", "lenet300")),
        named("resnet8", "cifar10", settings.train_images)],
    arms=arms, measures=(validation, accuracy),
    smoke=(named("lenet300"), named("resnet8", "cifar10")),
    statements=(
        lasso.of_lenet5(RUNS["lenet5"]),
        above(TEXT.format("prox"), "-", ZEROS["prox"], 20, digits=1),
        above(TEXT.format("subgradient"), "many", ZEROS["subgradient"], 20, digits=1),
        says(TEXT.format("subgradient_alone"), "none", ZEROS["subgradient_alone"],
             lambda shares: fmean(shares) == 0, digits=1),
        lasso.of_lenet300(RUNS["lenet300"]["filter+shape"]),
        lasso.of_resnet8(RUNS["resnet8"]["depth"]),
    ),
    plot=curves(
        [Curve(Style(f"{net}, {families}", colour),
               [percent("macs", net=net, **lasso.arm_of(families, s)) for s in RUNS[net][families]],
               [lasso.lost(net, families, s) for s in RUNS[net][families]], bars=False)
         for (net, families), colour in zip(FAMILIES, COLOURS)],
        "MACs left, %", "test accuracy lost, points", across=[Level(0)],
    ),
    remarks="LeNet-300-100 stands for the paper's 784-500-300-10, ResNet-8 with three branches for "
    "ResNet-20. On LeNet-5 the penalty is on filters and channels of the convolutions' units (the "
    "channels of conv2's are inputs of fc1, which the paper's are not). The norm of a branch has "
    "the scales of its batch norms in it. LeNets take batches of {small}, ResNet-8 of {large}: "
    "{epochs:g} epochs before the penalty, {shrink:g} under it, {finetune:g} after it.",
    figures={"small": SIZES["lenet5"], "large": SIZES["resnet8"]},
    tried="With fc1's neurons in the penalty of LeNet-5, 0.01 leaves 12 and 11 filters (and 17 of "
    "500 neurons) for 0.9 points (seed 0). With the norm of a branch over kernels alone, as in the "
    "paper, none vanished with 0.05, 0.1 or 0.3 (seed 0; 0.3 costs 16 points), because a norm "
    "divides by the size of a kernel.",
)  # fmt: skip
