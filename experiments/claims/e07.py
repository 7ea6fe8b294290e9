"""E7 [7]: surgery prunes LeNets by a factor of 50 and more, because weights can come back.

Guo, Yao, Chen, arXiv 1608.04493: LeNet-300-100 keeps 1/56 of its weights, LeNet-5 1/108, without
loss (their table 1), three and nine times fewer than Han et al.

Of a row, `arm` is dense, longer (dense, trained on for as many steps as surgery and what follows),
dns, no_splice (no weight comes back, masked ones take no gradient) or iterative (Han's rounds, as
many epochs); `found` is the density that surgery left before it settled on the budget, `spliced`
the fraction of weights that came back, `changes` that of mask entries that change in a step.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from experiments.claims.claim import Case, Claim, Made, accuracy, density_of_pruned, named
from experiments.claims.plots import Curve, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Statement, Value, above, at_least, below, each, gap
from experiments.claims.thresholds import points_lost, rates, shorter
from experiments.claims.watched import mask_changes
from jprune import recipes
from jprune.base import Budget
from jprune.recipes.han import han
from jprune.stages.surgery import DynamicSurgery, SettleSurgery

KEPT = {  # the budget, and the paper's fractions by layer, of which thresholds are made
    "lenet300": (1 / 50, {"fc1": 0.018, "fc2": 0.018, "fc3": 0.055}),
    "lenet5": (1 / 80, {"conv1": 0.142, "conv2": 0.031, "fc1": 0.007, "fc2": 0.043}),
}


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of E7.

    Attributes:
        surgery: epochs of it, at a rate that is constant.
        after: epochs under the masks that it leaves.
        surgery_rate: of both.
        gamma: masks are revised with probability 1 / (1 + gamma i).
    """

    epochs: float = 5.0
    surgery: float = 8.0
    after: float = 3.0
    learning_rate: float = 0.05
    surgery_rate: float = 0.02
    gamma: float = 1e-3


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, trained on, with surgery that splices or not, and with Han's rounds."""
    used, (kept, by_layer) = case.settings, KEPT[case.net.name]
    of = lambda epochs, rate, **more: shorter(case, epochs, rate, 32, 0.1, **more)
    unseen = dict.fromkeys(("found", "spliced", "changes"))
    dense = case.apply(case.dense(of(used.epochs, used.learning_rate)), 2, recipes.Save("dense"))
    yield {"arm": "dense", **unseen}, dense
    whole = of(used.surgery + used.after, used.surgery_rate, name="finetune")
    yield {"arm": "longer", **unseen}, case.apply(dense, 5, whole)
    budget, c = Budget(density=kept), rates(dense.variables, by_layer, kept)
    during = of(used.surgery, used.surgery_rate, schedule="constant")
    for arm in ("dns", "no_splice"):
        stage = DynamicSurgery(during, budget, c, used.gamma, splice=arm == "dns")
        pruned, record = mask_changes(case, stage, dense, case.fold(2))
        pruned, _ = SettleSurgery(budget)(pruned, case.task, case.key)
        yield {"arm": arm, **record}, case.apply(pruned, 3, of(used.after, used.surgery_rate))
    recipe = han(budget, None, whole, rounds=1 if case.smoke else 5)
    pruned, _ = recipes.run(recipe, dense, case.task, case.fold(4))
    yield {"arm": "iterative", **unseen}, pruned


def of_net(net: str, times: int, paper: str, most: float) -> Iterator[Statement]:
    """Points lost, and how far surgery is ahead of rounds and of surgery without splicing."""
    yield from points_lost(f"{net}, {times} times fewer weights", "dns", paper, most, net)
    text = f"{net}: surgery - Han's rounds, both at {times} times"
    yield above(text, "above 0", gap("accuracy", "dns", "iterative", net=net), 0)
    yield at_least(f"{net}: splicing - none", "above 0",
                   gap("accuracy", "dns", "no_splice", net=net), 0.3)  # fmt: skip


def changes(tenth: int, **where: Any) -> Value:
    """The fraction of mask entries that change in a step of a tenth of the surgery."""
    return each(lambda row: row["changes"][tenth], **where)


OF_300 = {"net": "lenet300", "arm": "dns"}
CLAIM = Claim(
    "e07", "E7: dynamic network surgery [7]", refs=(7,), settings=Settings(),
    nets=lambda settings: [*map(named, KEPT)], arms=arms, measures=(density_of_pruned, accuracy),
    smoke=(named("lenet300"),), statements=(
        *of_net("lenet300", 50, "-0.29 at 56 times", 0.3),
        *of_net("lenet5", 80, "0 at 108 times", 0.25),
        above("weights that came back at least once, %", "many", 100 * each("spliced", **OF_300), 5,
              digits=1),
        below("mask changes, last tenth over first", "towards 0",
              changes(-1, **OF_300) / changes(0, **OF_300), 0.5),
    ),
    plot=curves(
        [Curve(Style(f"{net}, {name}", colour, mark), [100 * (n + 0.5) / 10 for n in range(10)],
               [100 * changes(n, net=net, arm=arm) for n in range(10)], bars=False)
         for net, colour in (("lenet300", "slim"), ("lenet5", "second"))
         for arm, name, mark in (("dns", "surgery", "-"), ("no_splice", "without splicing", ":"))],
        "surgery, %", "mask entries that change in a step, %", log="y", size=9,
    ),
    remarks="Surgery takes {surgery:g} epochs (of LeNet-5 a tenth, of smaller batches) where the "
    "paper has 25,000 steps (16,000), so gamma is {gamma:g}. The c of every layer is such that the "
    "first cut leaves the paper's fraction, scaled to the budget; surgery drifts from it and is "
    "settled on it at the end.",
)  # fmt: skip
