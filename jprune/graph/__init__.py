"""The engine: what is coupled in a network, and the same network with less of it.

A network is any pure function. Its jaxpr is flattened into a short list of equations and
interpreted with labels instead of numbers: one integer per position of every axis. Rules forward
labels or tie them; connected labels are units. The same list of equations is then run again, on
smaller arrays.

Read in this order: `jaxprs` (the equations), `labels` and `solve` (ties, and what they mean),
`rules` (what a rule is), `arithmetic` and `moves` (one short rule per primitive), `interpret` (the
loop), `roles` (what each leaf does), `vanish` (units without a consumer), `coupling` (all of that
for one function), `groups` and `trace` (units, groups, reasons). Then `slim`, `shrink`, `bodies`
and `divisors` (the smaller net), `sites` and `intercept` (where methods look and act), `branches`,
`leaves`, `windows`, `csr` and `winners` (more than channels), `affine` (what stands behind a
contraction), `parts` (trees with leaf types, written out), `plans` (what was removed, as JSON),
`depthwise` (a rewrite that makes CPUs fast).

Nothing here knows a neural-network library, a training loop or a criterion.
"""

from jprune.graph.csr import CSR
from jprune.graph.depthwise import shift_depthwise
from jprune.graph.intercept import Site, gated, intercept, perturbed, taps
from jprune.graph.leaves import Factored, Rows, Thin
from jprune.graph.slim import slim, slim_params
from jprune.graph.trace import trace

__all__ = [
    "CSR",
    "Factored",
    "Rows",
    "Site",
    "Thin",
    "gated",
    "intercept",
    "perturbed",
    "shift_depthwise",
    "slim",
    "slim_params",
    "taps",
    "trace",
]
