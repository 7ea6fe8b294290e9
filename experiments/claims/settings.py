"""The words of settings: what a field means in every claim that has it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CommonSettings:
    """What the numbers of a claim depend on: it has the fields that it needs.

    What is documented here means the same in all claims; a claim documents its own words, and the
    ones that it means otherwise.

    Attributes:
        epochs: of the dense net, and of all trainings that have no number of their own.
        lenet_epochs: the same of LeNet-5, where other nets have `epochs`.
        pruning_epochs: of the training that prunes.
        finetune_epochs: of the training after pruning.
        finetune: the same.
        retrain: the same.
        shrink: epochs under a penalty.
        again: epochs of training after a round of pruning.
        between: the same.
        retraining_rate: the largest learning rate of it.
        learning_rate: the largest one of every training that has none of its own.
        pruning_rate: the same of the training that prunes.
        trained_rate: the same of nets whose weights are trained, where others train scores.
        warmup: fraction of the steps in which the weight of a penalty grows.
        weight_decay: of every training.
        decay: lambda of a penalty lambda ||w||^2 / 2, and damping of the Hessian.
        batch_size: examples in a step of every training.
        train_images: of the training split; where there are two data sets, of CIFAR-10's; None:
            all of them.
        lenet_images: of MNIST's.
        test_images: the first ones of the test split, on which accuracy is measured.
        images: that is calibrated with: scores, curvature, layers' outputs, losses.
        probes: random vectors a batch, of a curvature that is sampled.
        density: the fraction that is kept.
    """
