"""Recipes: a survey method whole, its stages put together with the paper's defaults.

Here belongs one short file per paper or family; it defines `METHODS`, {name on the command line:
factory}, and is found by that (`methods.py`). A factory is called as `factory(budget, train,
finetune, **options)` with a `Budget` and two `Train` stages (the first is None where the net is
trained already) and returns a recipe; one that has no fine-tuning takes no `finetune`. Its
keyword-only arguments are the options that the command line may pass on (`options.py`). Nothing
here touches files: `jprune.runs` runs recipes with checkpoints, `run` runs them in memory.

The stages that recipes are made of are in `jprune.stages`. Read `three_step.py` first.
"""

from jprune.base import Learner
from jprune.recipes.methods import METHODS, find
from jprune.recipes.options import options, read_options, read_values
from jprune.stages.frame import (
    CheckedStage,
    Evaluate,
    LongStage,
    Recalibrate,
    Repeat,
    Rewind,
    Save,
    run,
    unrolled,
)
from jprune.stages.prune import Prune
from jprune.stages.train import Train
from jprune.train.evaluate import evaluate
from jprune.train.net import Net
from jprune.train.optimizers import Sgd
from jprune.train.step import plain
from jprune.train.task import distilled

__all__ = [
    "METHODS",
    "CheckedStage",
    "Evaluate",
    "Learner",
    "LongStage",
    "Net",
    "Prune",
    "Recalibrate",
    "Repeat",
    "Rewind",
    "Save",
    "Sgd",
    "Train",
    "distilled",
    "evaluate",
    "find",
    "options",
    "plain",
    "read_options",
    "read_values",
    "run",
    "unrolled",
]
