"""Pruning of convolutional networks in JAX, functional and mask-centric.

A network is any pure function `fn(variables, *args)`. `trace` finds its units, criteria score them,
allocators turn scores into masks under a budget, `slim` makes the network small.

Read `jprune.base` first: it holds every protocol. The rooms are `jprune.blocks` (which weights go
together), `criteria`, `allocate`, `sparsify`, `schedules` and `recipes`; the leaves that need more
libraries are `jprune.zoo`, `data`, `train`, `measure`, `export` and `report`.
"""

# Before the rest, whose imports take seconds: see its last line.
from jprune import errors
from jprune import interrupts as interrupts
from jprune.base import Budget, Cost, Criterion, Groups, run_criterion
from jprune.citation import citation
from jprune.cost import cost, cost_model
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

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Cost",
    "Criterion",
    "Groups",
    "Site",
    "apply_masks",
    "citation",
    "cost",
    "cost_model",
    "errors",
    "expand",
    "gated",
    "hold",
    "intercept",
    "map_units",
    "masks_of",
    "perturbed",
    "rows",
    "run_criterion",
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
