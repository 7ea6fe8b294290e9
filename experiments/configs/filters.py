"""All filter methods on the pretrained ResNet-20, with equal totals and what stands beside each.

The net is the published one of 91.73 % on CIFAR-10; every method halves its MACs and gets 624 steps
of 128 images, at one learning rate. L1 and random filters are run beside each method at its own
steps after the cut, and random filters in the widths that it chose. Criteria that a `Prune` stage
scores units by have three arms: every layer the same fraction, all units competing, and all units
competing by damage a MAC. Expected, by Mittal et al., arXiv 1801.10447 [47], and Liu
et al., arXiv 1810.05270 [49]: little of the score is left after fine-tuning, and more of the
widths; the papers of the methods expect more. Rate and lengths were fixed beforehand, and the last
step is reported. Scratch-E trains the small net as long as the others are trained behind the
published weights, Scratch-B for twenty times as many steps.

    JPRUNE_PRETRAINED=FOLDER python -m experiments.run filters --workers 2

writes `experiments/results/filters/filters.jsonl`; FOLDER has the published weights. Rows that are
there are not run again, and the run can be stopped at any moment.
"""

from experiments.sweep import Net, Sweep

ARMS = ("uniform", "global", "global_per_cost")
SCORED = ("l2", "taylor", "fpgm", "apoz", "entropy", "hrank", "chip", "depgraph")
"""Criteria whose allocation can be told apart from the score, beside L1 and random."""
OTHERS = (
    *("c_obd", "c_obs", "kron_obd", "kron_obs", "eigendamage", "fisher", "taylor2016"),
    *("data_free", "channel_lasso", "thinet", "greedy_forward", "cpli", "three_d"),
    *("ssl", "struct_admm", "slimming", "ssr", "greg", "increg", "csgd", "play_and_prune"),
    *("sfp", "asfp", "mfp", "aofp", "autopruner", "bar", "gal:mask_rate=0.1"),
)
ANEW = ("scratch_e:epochs=4,learning_rate=0.1", "scratch_b:epochs=40,learning_rate=0.1")
"""Scratch-B takes its epochs times the MACs that are saved: twice 40, twenty times 4."""

CONFIG = Sweep(
    nets=(
        Net(
            "resnet20",
            "cifar10",
            train_images=20000,
            finetune_epochs=4,
            batch_size=128,
            finetune_learning_rate=0.05,
            weights="pretrained",
        ),
    ),
    methods=(
        *("dense", "l1", "random"),
        *(f"{name}@{arm}" for name in ("l1", "random") for arm in ARMS[1:]),
        *SCORED,
        *(f"{name}@{arm}" for name in SCORED for arm in ARMS),
        *OTHERS,
        *ANEW,
    ),
    macs=(0.5,),
    settled=20,
    compared=True,
)
