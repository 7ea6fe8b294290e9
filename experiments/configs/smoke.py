"""Tries the runner out: LeNet-300-100 on the digits of scikit-learn, a few steps each.

    python -m experiments.run smoke --results runs/smoke

Its numbers mean nothing: expected is that it ends, in less than a minute.
"""

from experiments.sweep import Net, Sweep

CONFIG = Sweep(
    nets=(Net("lenet300", "digits"),),
    methods=("dense", "l1"),
    macs=(0.5,),
    seeds=(0,),
    steps=40,
    measure_seconds=0.0,
)
