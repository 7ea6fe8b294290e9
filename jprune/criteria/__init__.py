"""Criteria: variables and data in, scores out. One method, one short file.

A criterion is three functions (`jprune.base.Criterion`): `init`, `update` per batch, `score`.
Scores are a tree like the variables, None for statistics, or `{group: [units]}`;
`jprune.to_units` turns the first into the second. `masked` wraps any of them so that pruned entries
score -inf. `activations` scores units by what they say, by a `Statistic` or several of them in one
pass. Read `magnitude.py` first, then `taylor.py`. Code that several criteria share is in files with
an underscore.
"""

from jprune.criteria.activations import Statistic, activations
from jprune.criteria.coupled_norm import coupled_norm
from jprune.criteria.entropy import entropy
from jprune.criteria.independence import independence
from jprune.criteria.kronecker import kronecker
from jprune.criteria.layer_adaptive import layer_adaptive
from jprune.criteria.magnitude import magnitude
from jprune.criteria.map_rank import map_rank
from jprune.criteria.masked import masked
from jprune.criteria.obd import obd
from jprune.criteria.random import random
from jprune.criteria.scales import scales
from jprune.criteria.std_rule import std_rule
from jprune.criteria.taylor import taylor
from jprune.criteria.zeros import zeros
from jprune.graph.look.activations import places_read, rectified

__all__ = [
    "Statistic",
    "activations",
    "coupled_norm",
    "entropy",
    "independence",
    "kronecker",
    "layer_adaptive",
    "magnitude",
    "map_rank",
    "masked",
    "obd",
    "places_read",
    "random",
    "rectified",
    "scales",
    "std_rule",
    "taylor",
    "zeros",
]
