"""Tries out what `filters` does, with nothing read: LeNet-300-100 on the digits, two steps each.

    python -m experiments.run filters_smoke --results runs/smoke

Its numbers mean nothing: expected is that L1 and random filters at a method's own steps, and random
filters in its widths, have their rows.
"""

from experiments.sweep import Net, Sweep

CONFIG = Sweep(
    nets=(Net("lenet300", "digits", epochs=0.2, finetune_epochs=0.3, finetune_learning_rate=0.02),),
    methods=("l1", "random", "ssl"),
    macs=(0.5,),
    seeds=(0,),
    measure_seconds=0.0,
    compared=True,
)
