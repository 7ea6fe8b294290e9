"""What a network costs, as a function of masks, widths or gates.

`cost` counts once; `cost_model` gives a function for allocators and for penalties (jittable,
differentiable). Read `counts.py` first: how many positions of an axis are kept; then
`contractions.py` and `model.py`.
`samples.py` counts example by example, for nets that choose their channels for every example;
`units.py` says what a single unit costs, `energy.py` what a layer takes on an accelerator,
`roofline.py` how fast a sparse one can be.

Latency that is measured on a device does not belong here but to `jprune.measure`; a table of it
is plugged in as `latency`.
"""

from jprune.cost.contractions import Contraction, Term, bytes_moved, call_sites, macs
from jprune.cost.energy import Energy, EnergyCosts, Traffic, energies, layer_energy, reads, sums
from jprune.cost.model import cost, cost_model, spent
from jprune.cost.roofline import ATOM, XEON, Machine, Work, works
from jprune.cost.samples import gate_macs_of, gates_of, sample_macs
from jprune.cost.units import marginal_macs, own_flops

__all__ = [
    "ATOM",
    "XEON",
    "Contraction",
    "Energy",
    "EnergyCosts",
    "Machine",
    "Term",
    "Traffic",
    "Work",
    "bytes_moved",
    "call_sites",
    "cost",
    "cost_model",
    "energies",
    "gate_macs_of",
    "gates_of",
    "layer_energy",
    "macs",
    "marginal_macs",
    "own_flops",
    "reads",
    "sample_macs",
    "spent",
    "sums",
    "works",
]
