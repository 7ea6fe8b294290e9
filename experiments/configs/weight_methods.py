"""Methods for single weights on one task: a tenth of LeNet-300-100's weights, equal epochs.

Han et al., arXiv 1506.02626 [4], keep a twelfth of them without loss, Guo et al., arXiv 1608.04493
[7], a 56th, Frankle, Carbin, arXiv 1803.03635 [9], at least a 28th as a ticket. Expected: before
fine-tuning all of them above random weights, after it all within half a point of the dense net but
edge-popup [10], which trains no weight and is best at half of them. Structured baselines (L1,
Scratch-E, Scratch-B) have no place here, so that the comparison is labelled as one without them.

    python -m experiments.run weight_methods --workers 2

writes `experiments/results/weight_methods/weight_methods.jsonl`.
"""

from experiments.sweep import Net, Sweep

CONFIG = Sweep(
    nets=(Net("lenet300", "mnist", epochs=5, finetune_epochs=5, finetune_learning_rate=0.02),),
    methods=(
        *("dense", "random:per=weight", "l1:per=weight,allocator=global_topk"),
        *("obd", "obs", "han", "dns", "lottery_ticket", "edge_popup"),
    ),
    density=(0.1,),
    seeds=(0, 1, 2),
)
