"""Measuring: how long a net takes, on what machine, with which versions of what.

Here belongs everything that is measured with a clock or read off the machine. Counts that follow
from shapes (MACs, parameters, bytes moved) are in `jprune.cost`. Read `clock.py` first: one loop
times everything in turns, so that a ratio of two latencies comes from one run. `nets.py` times nets
in that loop, `profiles.py` sets XLA's own counts beside ours, `artefacts.py` times what lies in
files, `table.py` predicts times from widths (`sampling.py`
measures, `tables.py` keeps), `provenance.py` records where the numbers come from.
"""

from jprune.measure.artefacts import Compared, bench
from jprune.measure.clock import MINIMUM_REPEATS, Latency, interleaved, percentiles, timings
from jprune.measure.nets import latency, tflite_latency, xla_latency
from jprune.measure.profiles import Profile, profile, tflite_profile
from jprune.measure.provenance import Device, commit, device, versions
from jprune.measure.table import LatencyTable
from jprune.measure.tables import TARGETS, latency_table

__all__ = [
    "MINIMUM_REPEATS",
    "TARGETS",
    "Compared",
    "Device",
    "Latency",
    "LatencyTable",
    "Profile",
    "bench",
    "commit",
    "device",
    "interleaved",
    "latency",
    "latency_table",
    "percentiles",
    "profile",
    "tflite_latency",
    "tflite_profile",
    "timings",
    "versions",
    "xla_latency",
]
