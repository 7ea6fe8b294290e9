"""The words of settings: what a field means in every claim that has it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CommonSettings:
    """What the numbers of a claim depend on: it has the fields that it needs.

    What is documented here means the same in all claims; a claim documents its own words, and
    those that it means otherwise.

    Attributes:
        epochs: of the dense net, and of all trainings that have no number of their own.
        lenet_epochs: of LeNet-5, where `epochs` are of other nets.
        pruning_epochs: of the training that prunes.
        shrink: epochs under a penalty, before anything is pruned.
        finetune_epochs: of the training after pruning.
        finetune: epochs of the training after pruning.
        retrain: epochs of the training after pruning.
        again: epochs of training after every round of pruning.
        between: epochs of training after every round of pruning.
        learning_rate: the largest one of every training that has none of its own.
        pruning_rate: the learning rate of the training that prunes.
        retraining_rate: the largest learning rate of training after a round of pruning.
        trained_rate: the largest learning rate of nets whose weights are trained, where
            `learning_rate` and `weight_decay` are of scores.
        warmup: fraction of the steps in which the weight of a penalty grows.
        weight_decay: of every training.
        decay: lambda of a penalty lambda ||w||^2 / 2, and damping of the Hessian.
        batch_size: examples in a step of every training.
        train_images: of the training split; where there are two data sets, of CIFAR-10's; None:
            all of them.
        lenet_images: of the training split of MNIST, where there are two data sets.
        test_images: the first ones of the test split, on which accuracy is measured.
        images: on which scores, curvature, layers' outputs or losses are measured.
        probes: random vectors a batch, of a curvature that is sampled.
        density: the fraction that is kept.
    """
