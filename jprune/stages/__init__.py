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

from jprune.stages.activations import ByActivations, layer_by_layer
from jprune.stages.active_gradients import Active, CutPassive, TrainActive
from jprune.stages.actor_critic import Repair, SearchRatios, TakeGoal
from jprune.stages.admm import Admm, Cut
from jprune.stages.adversarial import Adversarial, SettleSoftMasks, Soft
from jprune.stages.batch_codes import ByCodes
from jprune.stages.by_energy import PruneByEnergy
from jprune.stages.candidates import Trial
from jprune.stages.centripetal import Cluster, MergeClusters, Pull
from jprune.stages.channel_menu import Choosing, CutMenus, EvaluateChoices, LearnMenus, TrainChosen
from jprune.stages.choices import Choices
from jprune.stages.compactor import CutRows, Forget, TrainCompactors
from jprune.stages.dead_units import RemoveDead
from jprune.stages.deformed import EvaluateDeformed
from jprune.stages.difficulty import EvaluateDifficulty
from jprune.stages.dimensions import Narrow, Observe, Optimum
from jprune.stages.drop_grow import DropGrow
from jprune.stages.dropout import RescaleDropout
from jprune.stages.dwindling import DwindleUnits
from jprune.stages.eigenbasis import Rotate, cores_only
from jprune.stages.error_weights import ErrorWeights
from jprune.stages.feature_boosting import Boost
from jprune.stages.feedback import PruneWithFeedback
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
from jprune.stages.goal import Goal, Settle
from jprune.stages.grains import PruneGrains
from jprune.stages.group_decay import ChooseGroups, CutGroups, Grouped
from jprune.stages.group_lasso import Penalty, ReadOff, Shrink
from jprune.stages.growing_decay import Grow, Growing
from jprune.stages.halving import Halve, MeetBudget
from jprune.stages.hard_concrete import ByBarrier
from jprune.stages.hard_threshold import HardThreshold
from jprune.stages.hypernetwork import Rounds, Search, TrainHypernetwork
from jprune.stages.jointly import PruneJointly
from jprune.stages.kronecker import PruneFilters
from jprune.stages.layer_wise import ByLasso, ByThiNet, LayerWise, by_least_squares
from jprune.stages.low_rank import RankPenalty
from jprune.stages.manifold import KeepManifold
from jprune.stages.mean_gates import ToMean
from jprune.stages.merge import MergeUnits
from jprune.stages.movement import Movement
from jprune.stages.n_of_m import Pattern, PruneNOfM, RefineNOfM
from jprune.stages.narrowing import NarrowByProposals
from jprune.stages.obs import BrainSurgery
from jprune.stages.offsets import Aging, SearchOffsets
from jprune.stages.one_by_one import Adjust, ByMagnitude, BySlopes, RemoveOneByOne
from jprune.stages.partial_order import SearchByOrder
from jprune.stages.particles import FilterParticles
from jprune.stages.popup import Popup, Redraw
from jprune.stages.probe import Probe
from jprune.stages.proximal import CutSupport, Regulariser, Split
from jprune.stages.prune import (
    CriterionOf,
    Prune,
    coupled_of,
    distance_of,
    l1_of,
    l2_of,
    layer_adaptive_of,
    obd_of,
    random_of,
    random_weights_of,
    taylor_of,
)
from jprune.stages.random_masks import RandomMasks
from jprune.stages.ranked_decay import RaiseByRank, Ranked
from jprune.stages.rates import Annealing, Purify, Searched, SearchRates, by_size
from jprune.stages.reinitialise import (
    BeginAnew,
    Reinitialise,
    ShuffleMasks,
    Small,
    TrainAnew,
    like_the_dense,
    small,
)
from jprune.stages.relative_decay import Fade, FadeUnits
from jprune.stages.rounds import evenly, in_rounds, kept_after, parts, rounds_for, scheduled
from jprune.stages.scales import L1OfScales, PruneScales, ShrinkScales
from jprune.stages.scheduled import PruneGradually
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.soft_prune import Pool, SoftPrune
from jprune.stages.solvers import Eliminate, SolveLayers, Sweep
from jprune.stages.splitting import Sets
from jprune.stages.std_rule import L1Penalty, OnlyMoves, StdPrune
from jprune.stages.subset_sums import Approximate
from jprune.stages.surgery import DynamicSurgery, SettleSurgery
from jprune.stages.tickets import PruneRound
from jprune.stages.tolerance import CutBelow, Game, Press, Watch
from jprune.stages.train import Train, trained
from jprune.stages.truncated_lasso import PruneColumns, ReadOffColumns, ShrinkWeakest
from jprune.stages.unit_gates import CutGates, Gated, TrainGates
from jprune.stages.untrained import PruneUntrained, before_training
from jprune.stages.untrained_scores import ByGradientFlow, BySensitivity, BySynapticFlow
from jprune.stages.useful_range import PruneWithinRange
from jprune.stages.variational import Gate, Select
from jprune.stages.width_mixture import SearchShape

__all__ = [
    "Active",
    "Adjust",
    "Admm",
    "Adversarial",
    "Aging",
    "Annealing",
    "Approximate",
    "BeginAnew",
    "Boost",
    "BrainSurgery",
    "ByActivations",
    "ByBarrier",
    "ByCodes",
    "ByGradientFlow",
    "ByLasso",
    "ByMagnitude",
    "BySensitivity",
    "BySlopes",
    "BySynapticFlow",
    "ByThiNet",
    "CheckedStage",
    "Choices",
    "ChooseGroups",
    "Choosing",
    "Cluster",
    "CriterionOf",
    "Cut",
    "CutBelow",
    "CutGates",
    "CutGroups",
    "CutMenus",
    "CutPassive",
    "CutRows",
    "CutSupport",
    "DropGrow",
    "DwindleUnits",
    "DynamicSurgery",
    "Eliminate",
    "ErrorWeights",
    "Evaluate",
    "EvaluateChoices",
    "EvaluateDeformed",
    "EvaluateDifficulty",
    "Fade",
    "FadeUnits",
    "FilterParticles",
    "Forget",
    "Game",
    "Gate",
    "Gated",
    "Goal",
    "Grouped",
    "Grow",
    "Growing",
    "Halve",
    "HardThreshold",
    "KeepManifold",
    "L1OfScales",
    "L1Penalty",
    "LayerWise",
    "LearnMenus",
    "LongStage",
    "MeetBudget",
    "MergeClusters",
    "MergeUnits",
    "Movement",
    "Narrow",
    "NarrowByProposals",
    "Observe",
    "OnlyMoves",
    "Optimum",
    "Pattern",
    "Penalty",
    "Pool",
    "Popup",
    "Press",
    "Probe",
    "Prune",
    "PruneByEnergy",
    "PruneColumns",
    "PruneFilters",
    "PruneGradually",
    "PruneGrains",
    "PruneJointly",
    "PruneNOfM",
    "PruneRound",
    "PruneScales",
    "PruneUntrained",
    "PruneWithFeedback",
    "PruneWithinRange",
    "Pull",
    "Purify",
    "RaiseByRank",
    "RandomMasks",
    "RankPenalty",
    "Ranked",
    "ReadOff",
    "ReadOffColumns",
    "Recalibrate",
    "Redraw",
    "RefineNOfM",
    "Regulariser",
    "Reinitialise",
    "RemoveDead",
    "RemoveOneByOne",
    "Repair",
    "Repeat",
    "RescaleDropout",
    "Rewind",
    "Rotate",
    "Rounds",
    "Save",
    "Search",
    "SearchByOrder",
    "SearchOffsets",
    "SearchRates",
    "SearchRatios",
    "SearchShape",
    "Searched",
    "Select",
    "SelectForward",
    "Sensitivity",
    "Sets",
    "Settle",
    "SettleSoftMasks",
    "SettleSurgery",
    "Shrink",
    "ShrinkScales",
    "ShrinkWeakest",
    "ShuffleMasks",
    "Small",
    "Soft",
    "SoftPrune",
    "SolveLayers",
    "Split",
    "StdPrune",
    "Sweep",
    "TakeGoal",
    "ToMean",
    "Train",
    "TrainActive",
    "TrainAnew",
    "TrainChosen",
    "TrainCompactors",
    "TrainGates",
    "TrainHypernetwork",
    "Trial",
    "Watch",
    "before_training",
    "by_least_squares",
    "by_size",
    "check",
    "check_prunable",
    "cores_only",
    "coupled_of",
    "distance_of",
    "evenly",
    "fractions",
    "framed",
    "in_rounds",
    "kept_after",
    "l1_of",
    "l2_of",
    "layer_adaptive_of",
    "layer_by_layer",
    "like_the_dense",
    "obd_of",
    "opening",
    "parts",
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
