"""Dynamic network surgery: prune while training, and splice back what was cut by mistake.

The masks are revised again and again as the weights move; masked weights go on learning. Masks meet
gradients *straight-through* during surgery: the net runs on w * m, and all of w takes the step.
After it the masks are fixed and the rest of the training is *frozen* (the paper lets masked weights
take steps without effect).

References:
    Guo, Yao, Chen, Dynamic network surgery for efficient DNNs, 2016, arXiv 1608.04493 [7]; details
    as in the authors' Caffe code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.surgery import DynamicSurgery, SettleSurgery
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def dns(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    c_rate: Numbers | None = None,
    gamma: float = 1e-4,
    power: float = 1.0,
    stop: float = 0.875,
    biases: bool = True,
    splice: bool = True,
    correct: bool = True,
) -> Recipe:
    """Surgery on the trained net, then training under the masks that it found.

    Args:
        budget: what is kept; of weights (a density is that of all kernels, and of their biases).
        train: training of the dense net; None where it is trained already.
        finetune: surgery and the training after it. The paper's LeNet-5 takes 16,000 steps of 64.
        c_rate: the thresholds are mu + c sd of |w| in a layer. None finds the one c at which the
            first cut meets the budget; a number is the c of all layers; or one for each kernel
            in execution order (on the command line 3:3:4:3), or {kernel: c} (the paper's are tuned
            by hand, about 3 to 4).
        gamma: masks are revised in step i with probability (1 + gamma i)^-power; the authors'
            LeNet-5 has 1e-4, their code's default is 1e-3.
        power: of the same.
        stop: fraction of the fine-tuning epochs after which the masks are fixed (the paper's
            LeNet-5: 14,000 of 16,000 steps).
        biases: whether biases of pruned layers are pruned too, as in the authors' code.
        splice: False is the control in which no weight comes back.
        correct: surgery drifts away from the budget of the first cut; True cuts the smallest
            weights that are left, or splices back the largest that are not, until it is met. False
            leaves what surgery found, as the paper does.

    Returns:
        The recipe; it prunes weights, and biases with `biases`.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = dns(Budget(density=0.02), None, Train(8, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('surgery', None), ('settle', None), ('before_finetune', None), ('finetune', 1.0)]
    """
    if not 0 < stop < 1 or gamma < 0 or power < 0:
        raise errors.ArgumentError(
            f"dns(stop={stop}, gamma={gamma}, power={power}); stop is in (0, 1), the others are 0 "
            "or more."
        )
    # Constant: masks move as long as weights do.
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs, schedule="constant")
    return framed(
        train,
        DynamicSurgery(during, budget, c_rate, gamma, power, biases, splice),
        SettleSurgery(budget if correct else None),
        finetune=dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"dns": dns}
