"""Measuring: how long a net takes, on what machine, with which versions of what.

Here belongs everything that is measured with a clock or read off the machine. Counts that follow
from shapes (MACs, parameters, bytes moved) are in `jprune.cost`. Read `clock.py` first: one loop
times everything in turns, so that a ratio of two latencies comes from one run. `nets.py` times nets
in that loop, `provenance.py` records where the numbers come from.
"""

from jprune.measure.clock import MINIMUM_REPEATS, Latency, interleaved
from jprune.measure.nets import latency, tflite_latency, xla_latency
from jprune.measure.provenance import Device, commit, device, versions

__all__ = [
    "MINIMUM_REPEATS",
    "Device",
    "Latency",
    "commit",
    "device",
    "interleaved",
    "latency",
    "tflite_latency",
    "versions",
    "xla_latency",
]
