"""E7 [7]: surgery prunes LeNets by a factor of 50 and more, because weights can come back.

Guo, Yao, Chen, arXiv 1608.04493: LeNet-300-100 keeps 1/56 of its weights, LeNet-5 1/108, without
loss (their table 1), three and nine times fewer than Han et al.

Of a row, `arm` is dense, longer (the dense net, trained on for as many steps as surgery and what
follows), dns, no_splice (the same surgery, but no weight comes back and masked ones take no
gradient), or iterative (Han's pruning in rounds, with as many epochs in all); `density` is the
fraction of weights and biases of pruned layers that is kept, `found` the one that surgery left
before it settled on the budget, `spliced` the fraction of weights that came back at least once,
`changes` the fraction of mask entries that change in a step, in tenths of the surgery.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, accuracy
from experiments.claims.plots import Style, finish, line
from experiments.claims.statements import (
    Rows,
    Statement,
    above,
    at_least,
    at_most,
    below,
    each,
    gap,
    select,
)
from experiments.claims.thresholds import thresholds
from experiments.rows import Row
from jprune import masks_of, recipes
from jprune.base import Budget, Pruned
from jprune.masks import density
from jprune.recipes import Save
from jprune.recipes.han import han
from jprune.sparsify.surgery import CUT
from jprune.stages.surgery import DynamicSurgery, SettleSurgery
from jprune.train.numbers import Numbers

KEPT = {
    "lenet300": (1 / 50, {"fc1": 0.018, "fc2": 0.018, "fc3": 0.055}),
    "lenet5": (1 / 80, {"conv1": 0.142, "conv2": 0.031, "fc1": 0.007, "fc2": 0.043}),
}
"""The budget, and the paper's fractions by layer, from which the thresholds are made."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of the dense nets.
        surgery: epochs of surgery.
        after: epochs under the masks that it leaves.
        learning_rate: the largest one of the dense nets' training.
        surgery_rate: that of surgery, which is constant, and the largest one after it.
        gamma: masks are revised with probability 1 / (1 + gamma i).
    """

    epochs: float = 5.0
    surgery: float = 8.0
    after: float = 3.0
    learning_rate: float = 0.05
    surgery_rate: float = 0.02
    gamma: float = 1e-3


def rates(net: Pruned, kept: dict[str, float], budget: float) -> Numbers:
    """The c of every layer at which the first cut leaves the paper's fraction, for the budget."""
    values = []
    for name, least in thresholds(net.variables, kept, budget).items():
        sizes = np.abs(np.asarray(net.variables["params"][name]["kernel"]))
        values.append(round(float((least / CUT - sizes.mean()) / sizes.std()), 4))
    return tuple(values)


def operated(case: Case, stage: DynamicSurgery, pruned: Pruned) -> tuple[Pruned, dict[str, Any]]:
    """The net after surgery, and what its masks did."""
    learner = stage.learner(pruned, case.task, case.fold(2))
    state = learner.init()
    flat = lambda: np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks_of(state.opt_state))])
    before, back, changes = flat(), np.zeros(flat().size, bool), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, _ = learner.step(state, batch)
        after = flat()
        back |= after & ~before
        changes.append(float(np.mean(after != before)))
        before = after
    tenths = [float(part.mean()) for part in np.array_split(changes, min(10, len(changes)))]
    record = {"found": float(before.mean()), "spliced": float(back.mean()), "changes": tenths}
    return learner.finish(state), record


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, trained on, with surgery that splices or not, and with Han's rounds."""
    settings, (kept, by_layer) = case.settings, KEPT[case.net.name]
    # A step of LeNet-5 takes ten times as long: 0.4 of the steps, each of a quarter of the images.
    shorter, size = (0.1, 32) if case.net.name == "lenet5" else (1.0, 128)
    of = lambda epochs, rate, **more: case.train(shorter * epochs, rate, size, **more)
    unseen = dict.fromkeys(("found", "spliced", "changes"))
    dense = case.dense(of(settings.epochs, settings.learning_rate))
    dense, _ = Save("dense")(dense, case.task, case.key)
    yield {"arm": "dense", **unseen}, dense
    whole = of(settings.surgery + settings.after, settings.surgery_rate, name="finetune")
    yield {"arm": "longer", **unseen}, case.apply(dense, 5, whole)
    budget, c = Budget(density=kept), rates(dense, by_layer, kept)
    during = of(settings.surgery, settings.surgery_rate, schedule="constant")
    after = of(settings.after, settings.surgery_rate)
    for arm in ("dns", "no_splice"):
        stage = DynamicSurgery(during, budget, c, settings.gamma, splice=arm == "dns")
        pruned, record = operated(case, stage, dense)
        pruned, _ = SettleSurgery(budget)(pruned, case.task, case.key)
        yield {"arm": arm, **record}, case.apply(pruned, 3, after)
    recipe = han(budget, None, whole, rounds=1 if case.smoke else 5)
    pruned, _ = recipes.run(recipe, dense, case.task, case.fold(4))
    yield {"arm": "iterative", **unseen}, pruned


def fraction(case: Case, pruned: Pruned) -> Row:
    """Of weights and biases of pruned layers."""
    return {"density": density(pruned.masks)}


def plot(rows: Rows, axes: Axes) -> None:
    """How often masks change, over the surgery."""
    styles = (("dns", "surgery", "-"), ("no_splice", "without splicing", ":"))
    for (net, colour), (arm, name, mark) in itertools.product(
        (("lenet300", "slim"), ("lenet5", "second")), styles
    ):
        values = np.array([row["changes"] for row in select(rows, net=net, arm=arm)])
        where = 100 * ((np.arange(values.shape[1]) + 0.5) / values.shape[1])
        percent = 100 * np.maximum(values.mean(axis=0), 1e-9)
        line(axes, where.tolist(), percent.tolist(), Style(f"{net}, {name}", colour, mark))
    axes.set_yscale("log")
    finish(axes, "surgery, %", "mask entries that change in a step, %", 9)


def of_net(net: str, times: int, paper: str, most: float) -> Iterator[Statement]:
    """Points lost, and how far surgery is ahead of rounds and of surgery without splicing."""
    for arm, name in (("dense", "the dense net"), ("longer", "it, trained on for as long")):
        text = f"{net}, {times} times fewer weights: points lost to {name}"
        yield at_most(text, paper, gap("accuracy", arm, "dns", net=net), most)
    text = f"{net}: surgery - Han's rounds, both at {times} times"
    yield above(text, "above 0", gap("accuracy", "dns", "iterative", net=net), 0)
    spliced = gap("accuracy", "dns", "no_splice", net=net)
    yield at_least(f"{net}: splicing - none", "above 0", spliced, 0.3)


RARER = each(lambda row: row["changes"][-1] / row["changes"][0], net="lenet300", arm="dns")
CLAIM = Claim(
    "e07",
    "E7: dynamic network surgery [7]",
    refs=(7,),
    settings=Settings(),
    nets=lambda settings: [Net(net, says={"net": net}) for net in KEPT],
    smoke=(Net("lenet300", says={"net": "lenet300"}),),
    arms=arms,
    measures=(fraction, accuracy),
    statements=(
        *of_net("lenet300", 50, "-0.29 at 56 times", 0.3),
        *of_net("lenet5", 80, "0 at 108 times", 0.25),
        above("weights that came back at least once, %", "many",
              100 * each("spliced", net="lenet300", arm="dns"), 5, digits=1),
        below("mask changes, last tenth over first", "towards 0", RARER, 0.5),
    ),
    plot=plot,
    remarks="Surgery takes 3,440 steps where the paper has 25,000 (LeNet-5: 1,376 for 16,000), so "
    "gamma is 1e-3. The c of every layer is such that the first cut leaves the paper's fraction, "
    "scaled to the budget; surgery drifts from it and is settled on it at the end.",
)  # fmt: skip
