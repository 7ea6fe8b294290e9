"""P32 [32]: channels chosen for every image, against channels chosen once.

Gao et al. (arXiv 1810.05331): M-CifarNet, 91.37 % with 174 M MACs, has 90.54 % with 57 M at density
0.5. Here a quarter of its widths on a part of CIFAR-10, and the survey's complaint beside it: the
same nets on mosaics and on partly hidden images.

Of a row, `arm` is dense (trained as long as the others), fbs, static (the channels with the largest
mean gates stay, fine-tuned as long) or narrow (as many channels, trained from scratch as long as
dense net and fine-tuning together). `macs` is a mean over the test images; `mosaic` and `occlusion`
are accuracies on deformed ones; `apart` {layer: mean Jaccard distance of the channels of two
images}.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean

from experiments.claims.boosted import channels_apart, first_channels, gates, largest_gates
from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.nets import cifarnet
from experiments.claims.plots import bars
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import at_least, at_most, each, gap, percent, told
from experiments.rows import Row
from jprune.base import Budget, Pruned
from jprune.learners import Boosting
from jprune.recipes import Evaluate
from jprune.stages.deformed import DEFORMATIONS, EvaluateDeformed
from jprune.stages.feature_boosting import Boost

COLOURS = {"dense": "second", "fbs": "slim", "static": "ink", "narrow": "muted"}


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of P32.

    Attributes:
        drop: of the density, from one part of the training to the next.
    """

    epochs: float = 8.0
    finetune_epochs: float = 8.0
    learning_rate: float = 0.05
    density: float = 0.5
    drop: float = 0.5
    train_images: int = 5_000
    batch_size: int = 32


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, FBS, and fixed channels, chosen by FBS's gates or the first ones."""
    used, start = case.settings, case.start
    of = lambda epochs: case.train(epochs, used.learning_rate, used.batch_size, few=3)
    again = of(used.finetune_epochs)
    dense = case.apply(start, 1, of(used.epochs))
    yield {"arm": "dense", "apart": {}}, case.apply(dense, 3, again)
    stage = Boost(again, Budget(density=used.density), Boosting(start="scale"), drop=used.drop)
    boosted = case.apply(dense, 2, stage)
    by_layer = gates(case, boosted)
    yield {"arm": "fbs", "apart": channels_apart(by_layer)}, boosted
    static = case.masked(dense, largest_gates(by_layer, used.density))
    yield {"arm": "static", "apart": {}}, case.apply(static, 3, again)
    narrow = case.masked(start, first_channels(by_layer, used.density))
    longer = of(used.epochs + used.finetune_epochs)
    yield {"arm": "narrow", "apart": {}}, case.apply(narrow, 3, longer)


def measured(case: Case, pruned: Pruned) -> Row:
    """Accuracy and MACs, on images as they are and on deformed ones."""
    metrics = lambda stage: stage(pruned, case.task, case.key)[1][0]["metrics"]
    plain = metrics(Evaluate("test"))
    return {
        **{name: plain[name] for name in ("accuracy", "macs", "params")},
        **{name: metrics(EvaluateDeformed(name))["accuracy"] for name in DEFORMATIONS},
    }


MOVING = each(lambda row: fmean(d > 0.05 for d in row["apart"].values()), arm="fbs")
KINDS = {"accuracy": "as they are", **{name: name for name in DEFORMATIONS}}
CLAIM = Claim(
    "p32", "P32: FBS [32]", refs=(32,), settings=Settings(),
    nets=lambda settings: [Net("cifarnet", "cifar10", settings.train_images, build=cifarnet)],
    arms=arms, measures=(measured,),
    statements=(
        at_least("fbs - dense >= -2, points", "-0.8", gap("accuracy", "fbs", "dense"), -2),
        at_least("fbs - static >= 0.5, points", "-", gap("accuracy", "fbs", "static"), 0.5),
        told("fbs - narrow, points", "-", gap("accuracy", "fbs", "narrow")),
        at_most("MACs kept, mean over images, <= 0.35", "0.33",
                each("macs", arm="fbs") / each("macs", arm="dense"), 0.35, digits=3),
        at_least("layers whose channels differ by more than 0.05 between images: half or more",
                 "-", MOVING, 0.5),
        *(told(f"{name}: fbs - static, points", "-", gap(name, "fbs", "static"))
          for name in DEFORMATIONS),
    ),
    plot=bars({arm: (colour, [percent(kind, arm=arm) for kind in KINDS])
               for arm, colour in COLOURS.items()}, [*KINDS.values()], "test accuracy, %"),
    remarks="M-CifarNet with a quarter of its widths, without dropout, on {train_images:,} images "
    "of CIFAR-10. Half of FBS's training is at density 1 and half at {density:g}, and gates begin "
    "where the dense net is itself.",
    tried="With the paper's parts of 0.1, little more than an epoch each, seed 0 ends at 58.3 %, "
    "and with the authors' gates, which begin at 1, at 56.8 % (at 58.8 % in two parts).",
)  # fmt: skip
