"""The steps that recipes are made of; with them a recipe of one's own is put together.

A stage is a frozen dataclass of settings, called as `stage(pruned, task, key) -> (pruned, records)`
(`jprune.base.Stage`). Called so, it runs in memory and to the end. A long stage can also be taken
apart: `learner(pruned, task, key)` hands out its steps, and `jprune.runs` drives them with
checkpoints and a progress bar. A stage may have `check(task)`, which is asked before anything is
trained. A stage has a `name`: of its records and of its folder in a run directory.

A recipe is a tuple of stages. `framed` puts a method's own between the dense net and fine-tuning:

    >>> import jax
    >>> from jprune import data, stages, train, zoo
    >>> from jprune.allocate import uniform
    >>> from jprune.base import Budget, Pruned
    >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
    >>> short = stages.Train(1, 0.1, max_steps=2)
    >>> recipe = stages.framed(
    ...     short,
    ...     stages.Prune(stages.l1_of, uniform, Budget(density=0.5)),
    ...     stages.Rewind("dense"),
    ...     finetune=stages.Train(1, 0.05, max_steps=2, name="finetune"),
    ... )
    >>> key = jax.random.key(0)
    >>> pruned, records = stages.run(recipe, Pruned(task.init(key), None), task, key)
    >>> [record["stage"] for record in records]
    ['train', 'dense', 'prune', 'before_finetune', 'finetune']
    >>> records[2]["metrics"]["density"]
    0.5

One file a mechanism, under the mechanism's name. Read `frame.py` first, then `prune.py` and
`train.py`; `rounds.py` prunes in rounds with training in between.
"""

from jprune.stages.admm import Admm, Cut, Sets
from jprune.stages.adversarial import Adversarial, SettleSoftMasks, Soft
from jprune.stages.centripetal import Cluster, MergeClusters, Pull
from jprune.stages.dead_units import RemoveDead
from jprune.stages.deformed import EvaluateDeformed
from jprune.stages.dimensions import Narrow, Observe, Optimum
from jprune.stages.dropout import RescaleDropout
from jprune.stages.eigenbasis import Rotate, cores_only
from jprune.stages.feature_boosting import Boost
from jprune.stages.forward import SelectForward
from jprune.stages.frame import (
    CheckedStage,
    Evaluate,
    LongStage,
    Recalibrate,
    Repeat,
    Rewind,
    Save,
    check,
    check_prunable,
    fractions,
    framed,
    opening,
    record,
    run,
    saved,
    settled,
    unrolled,
)
from jprune.stages.grains import PruneGrains
from jprune.stages.group_lasso import Penalty, ReadOff, Shrink
from jprune.stages.hypernetwork import Rounds, Search, TrainHypernetwork
from jprune.stages.kronecker import PruneFilters
from jprune.stages.layer_wise import ByLasso, ByThiNet, LayerWise, by_least_squares
from jprune.stages.merge import MergeUnits
from jprune.stages.obs import BrainSurgery
from jprune.stages.particles import FilterParticles
from jprune.stages.popup import Popup, Redraw
from jprune.stages.probe import Probe
from jprune.stages.prune import (
    CriterionOf,
    Prune,
    l1_of,
    l2_of,
    obd_of,
    random_of,
    random_weights_of,
    taylor_of,
)
from jprune.stages.reinitialise import (
    BeginAnew,
    Reinitialise,
    ShuffleMasks,
    Small,
    TrainAnew,
    small,
)
from jprune.stages.rounds import evenly, in_rounds, kept_after, rounds_for, scheduled
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.std_rule import L1Penalty, OnlyMoves, StdPrune
from jprune.stages.subset_sums import Approximate
from jprune.stages.surgery import DynamicSurgery, SettleSurgery
from jprune.stages.tickets import PruneRound
from jprune.stages.train import Train, trained
from jprune.stages.variational import Gate, Select

__all__ = [
    "Admm",
    "Adversarial",
    "Approximate",
    "BeginAnew",
    "Boost",
    "BrainSurgery",
    "ByLasso",
    "ByThiNet",
    "CheckedStage",
    "Cluster",
    "CriterionOf",
    "Cut",
    "DynamicSurgery",
    "Evaluate",
    "EvaluateDeformed",
    "FilterParticles",
    "Gate",
    "L1Penalty",
    "LayerWise",
    "LongStage",
    "MergeClusters",
    "MergeUnits",
    "Narrow",
    "Observe",
    "OnlyMoves",
    "Optimum",
    "Penalty",
    "Popup",
    "Probe",
    "Prune",
    "PruneFilters",
    "PruneGrains",
    "PruneRound",
    "Pull",
    "ReadOff",
    "Recalibrate",
    "Redraw",
    "Reinitialise",
    "RemoveDead",
    "Repeat",
    "RescaleDropout",
    "Rewind",
    "Rotate",
    "Rounds",
    "Save",
    "Search",
    "Select",
    "SelectForward",
    "Sensitivity",
    "Sets",
    "SettleSoftMasks",
    "SettleSurgery",
    "Shrink",
    "ShuffleMasks",
    "Small",
    "Soft",
    "StdPrune",
    "Train",
    "TrainAnew",
    "TrainHypernetwork",
    "by_least_squares",
    "check",
    "check_prunable",
    "cores_only",
    "evenly",
    "fractions",
    "framed",
    "in_rounds",
    "kept_after",
    "l1_of",
    "l2_of",
    "obd_of",
    "opening",
    "random_of",
    "random_weights_of",
    "record",
    "rounds_for",
    "run",
    "saved",
    "scheduled",
    "settled",
    "small",
    "taylor_of",
    "trained",
    "unrolled",
]
