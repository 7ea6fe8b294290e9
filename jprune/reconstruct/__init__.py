"""Reconstruction: new values for the weights that stay, so that layer outputs change little.

Here belongs the mathematics of refits: inputs and outputs of a consumer at sampled positions
(`windows.py`) and their second moments (`moments.py`); for a `jprune.base.Problem`, which units to
keep (`lasso.py`, `greedy.py`) and what their weights become (`least_squares.py`, the scales of
`greedy.py`); units merged by their weights alone (`merge.py`, with `folded.py`); surgery on single
weights (`obs.py`; many at once: `jointly.py`; layer by layer: `elimination.py`, `sweep.py`,
`restore.py`) and on filters (`kronecker.py`). Data, budgets and the order of layers are up to the
recipes. Read `least_squares.py` first.
`greedy.py`; `masked.py` where the choice is traced); units merged by their weights alone
(`merge.py`, with `folded.py`); surgery on single weights (`obs.py`; many at once: `jointly.py`;
layer by layer: `elimination.py`, `sweep.py`) and on filters (`kronecker.py`). Data, budgets and
the order of layers are up to the recipes. Read `least_squares.py` first.
"""

from jprune.reconstruct.elimination import eliminate, refitted
from jprune.reconstruct.greedy import channel_scales, thinet
from jprune.reconstruct.jointly import Surgery
from jprune.reconstruct.lasso import lasso
from jprune.reconstruct.least_squares import least_squares, relative_error
from jprune.reconstruct.masked import masked_refit
from jprune.reconstruct.merge import Merge, cutoff, merges
from jprune.reconstruct.obs import Operated, obs
from jprune.reconstruct.restore import refit, restored
from jprune.reconstruct.sweep import sweep

__all__ = [
    "Merge",
    "Operated",
    "Surgery",
    "channel_scales",
    "cutoff",
    "eliminate",
    "lasso",
    "least_squares",
    "masked_refit",
    "merges",
    "obs",
    "refit",
    "refitted",
    "relative_error",
    "restored",
    "sweep",
    "thinet",
]
