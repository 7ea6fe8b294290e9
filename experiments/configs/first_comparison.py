"""The first comparison: simple criteria and training from scratch on two small nets.

Liu et al., Rethinking the value of network pruning, arXiv 1810.05270 [49]: the pruned shape trained
from scratch is as good as the pruned and fine-tuned net (their table 1, CIFAR-10, uniform L1:
ResNet-56-A fine-tuned 92.97 %, Scratch-E 92.96 %, Scratch-B 93.09 %). Mittal et al., arXiv
1801.10447 [47]: after fine-tuning, criteria hardly differ from random. Neither used these nets, so
what is expected is their order, within a deviation, not their numbers.

    python -m experiments.run first_comparison --workers 2

writes `experiments/results/first_comparison/first_comparison.jsonl`. The learning rates of
fine-tuning are chosen among 0.3, 1 and 3 times the usual one with L1, the first seed and the first
budget, on the validation split. Trainings are short, so that the whole takes about an hour on two
cores.
"""

from experiments.sweep import Net, Sweep

CONFIG = Sweep(
    nets=(
        Net("lenet5", "mnist", epochs=2, finetune_epochs=1, rates=(0.00375, 0.0125, 0.0375)),
        Net(
            "resnet8",
            "cifar10",
            train_images=5000,
            epochs=10,
            finetune_epochs=3,
            rates=(0.015, 0.05, 0.15),
        ),
    ),
    methods=("dense", "random", "l1", "l2", "taylor", "scratch_e", "scratch_b"),
    macs=(0.5, 0.25),
    seeds=(0, 1, 2),
)
