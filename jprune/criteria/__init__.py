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
from jprune.criteria.distance import distance
from jprune.criteria.entropy import entropy
from jprune.criteria.gate_slopes import gate_slopes
from jprune.criteria.gradient_flow import gradient_flow
from jprune.criteria.independence import independence
from jprune.criteria.kronecker import kronecker
from jprune.criteria.layer_adaptive import layer_adaptive
from jprune.criteria.magnitude import magnitude
from jprune.criteria.map_rank import map_rank
from jprune.criteria.masked import masked
from jprune.criteria.obd import obd
from jprune.criteria.random import random
from jprune.criteria.removal import Agreement, rank_agreement, removal, spearman
from jprune.criteria.scales import scales
from jprune.criteria.sensitivity import sensitivity
from jprune.criteria.std_rule import std_rule
from jprune.criteria.synaptic_flow import synaptic_flow
from jprune.criteria.taylor import taylor
from jprune.criteria.zeros import zeros
from jprune.graph.look.activations import places_read, rectified

__all__ = [
    "Agreement",
    "Statistic",
    "activations",
    "coupled_norm",
    "distance",
    "entropy",
    "gate_slopes",
    "gradient_flow",
    "independence",
    "kronecker",
    "layer_adaptive",
    "magnitude",
    "map_rank",
    "masked",
    "obd",
    "places_read",
    "random",
    "rank_agreement",
    "rectified",
    "removal",
    "scales",
    "sensitivity",
    "spearman",
    "std_rule",
    "synaptic_flow",
    "taylor",
    "zeros",
]
