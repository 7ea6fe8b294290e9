"""The engine: what is coupled in a network, and the same network with less of it.

A network is any pure function. Its jaxpr is flattened into a short list of equations and
interpreted with labels instead of numbers: one integer per position of every axis. Rules forward
labels or tie them; connected labels are units. The same list of equations is then run again, on
smaller arrays.

Read in this order: `jaxprs` (the equations), `labels` (ties and their solution), `rules` (one short
function per primitive), `interpret` (the loop), `roles` and `trace` (units, groups), `slim` and
`shrink` (the smaller net), `sites` and `intercept` (where methods look and act).

Nothing here knows a neural-network library, a training loop or a criterion.
"""

from jprune.graph.intercept import Site, gated, intercept, perturbed, taps
from jprune.graph.slim import slim, slim_params
from jprune.graph.trace import trace

__all__ = ["Site", "gated", "intercept", "perturbed", "slim", "slim_params", "taps", "trace"]
