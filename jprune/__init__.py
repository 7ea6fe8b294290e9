"""Pruning of convolutional networks in JAX, functional and mask-centric.

A network is any pure function `fn(variables, *args)`. `trace` finds its units, criteria score them,
allocators turn scores into masks under a budget, `slim` makes the network small.

Read `jprune.base` first: it holds every protocol. The rooms are `jprune.blocks` (which weights go
together), `criteria`, `allocate`, `sparsify`, `schedules` and `recipes`; the leaves that need more
libraries are `jprune.zoo`, `data`, `train`, `measure`, `export` and `report`. `load` opens what a
run or `save` has written; `Pruner` is one object in front of the public functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Before the rest, whose imports take seconds: see its last line.
from jprune import errors
from jprune import interrupts as interrupts
from jprune.base import Budget, Cost, Criterion, Groups, run_criterion
from jprune.citation import citation
from jprune.cost import cost, cost_model
from jprune.execute import compact
from jprune.graph import (
    Site,
    gated,
    intercept,
    perturbed,
    shift_depthwise,
    slim,
    slim_params,
    taps,
    trace,
)
from jprune.masks import apply_masks, ste, straight_through
from jprune.sparsify import hold, masks_of, scheduled_prune, with_masks
from jprune.units import expand, map_units, rows, to_units

if TYPE_CHECKING:
    from jprune.job.saved import load, save
    from jprune.pruner import Pruner

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Cost",
    "Criterion",
    "Groups",
    "Pruner",
    "Site",
    "apply_masks",
    "citation",
    "compact",
    "cost",
    "cost_model",
    "errors",
    "expand",
    "gated",
    "hold",
    "intercept",
    "load",
    "map_units",
    "masks_of",
    "perturbed",
    "rows",
    "run_criterion",
    "save",
    "scheduled_prune",
    "shift_depthwise",
    "slim",
    "slim_params",
    "ste",
    "straight_through",
    "taps",
    "to_units",
    "trace",
    "with_masks",
]


def __getattr__(name: str) -> Any:
    # What stands on Flax and Orbax is imported when it is asked for: `import jprune` stays light.
    if name in ("load", "save"):
        return getattr(importlib.import_module("jprune.job.saved"), name)
    if name == "Pruner":  # criteria and allocators take a while, too
        return importlib.import_module("jprune.pruner").Pruner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
