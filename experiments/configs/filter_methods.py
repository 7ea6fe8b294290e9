"""All filter methods of the library on one task, with equal budgets.

Mittal et al., arXiv 1801.10447 [47], and Liu et al., arXiv 1810.05270 [49]: after fine-tuning, how
filters were chosen hardly matters, and the pruned shape trained from scratch is as good. The papers
of the methods say otherwise, each with a task, a budget and a training of its own; here they have
one. Expected by the first two: all methods within a deviation of Scratch-B, and random not far
below. Batches are small: what trains its structure (ADMM's duals, GAL's masks, gates) needs steps,
and with batches of 128 the fine-tuning had 117, in which ADMM's duals move once. GAL's masks
take larger steps than its own, chosen on the validation split of seed 0: with a step of
the masks in every step of the weights and a rate of 0.5 they do not reach the budget at the
learning rate that L1 chooses.

    python -m experiments.run filter_methods --workers 2

writes `experiments/results/filter_methods/filter_methods.jsonl`.
"""

from experiments.sweep import Net, Sweep

CONFIG = Sweep(
    nets=(
        Net(
            "resnet8",
            "cifar10",
            train_images=5000,
            epochs=10,
            finetune_epochs=4,
            batch_size=32,
            learning_rate=0.05,
            rates=(0.005, 0.015, 0.05),
        ),
    ),
    methods=(
        *("dense", "random", "l1", "l2", "taylor", "scratch_e", "scratch_b"),
        *("data_free", "channel_lasso", "thinet"),
        *("c_obd", "c_obs", "kron_obd", "kron_obs", "eigendamage"),
        *("ssl", "struct_admm", "csgd", "variational"),
        *("gal:mask_rate=0.1", "fbs", "metapruning", "three_d"),
    ),
    macs=(0.5,),
    seeds=(0, 1, 2),
)

REMARKS = (
    "Scratch-B, which trains the small net for twice as many epochs, is 4 points above everything, "
    "as Liu et al. [49] say; merging, L1, L2, three dimensions, ThiNet, LASSO, C-SGD, Taylor, "
    "random filters and FBS lie within two points after fine-tuning, as Mittal et al. [47] say, "
    "whatever lay between them before it. Against their papers: SSL, StructADMM, GAL and "
    "variational pruning are below random filters. They have to learn a structure in a share of "
    "624 steps here (variational: of 1560), of the authors' tens of thousands; GAL's seeds lie "
    "eleven points apart. MetaPruning, whose net from scratch has the dense net's 10 epochs, and "
    "EigenDamage and its kin [28], which keep a fifth of the parameters where most keep a half, "
    "are below random filters too."
)
