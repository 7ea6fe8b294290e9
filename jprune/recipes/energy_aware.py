"""Energy-aware pruning: layers are pruned in the order of the energy that they take.

Energy is that of the multiplications and of moving data through the levels of memory, which is most
of it (`jprune.cost.energy`). Layer by layer, the one of most energy first, every filter keeps its
largest weights and those whose return lowers the error of its outputs most, and is refitted in
closed form to what it said in the dense net, each filter on its own weights. Then the whole net is
fine-tuned.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

Differences. The paper minimises the l1 or l2 error when weights come back; here it is l2, from
second moments. Its energies are those of the best mapping onto a row-stationary chip, with
compressed data; here every value is read from outside once and crosses the buffer once, and three
registers are read for a multiplication. Its q for each layer follows from a tolerance in accuracy
and is not published, nor is what part of it comes back; here a budget says how much is kept, and
`hardness` how much less of a layer that takes much. Kernels that are no plain convolution or dense
layer stay whole.

References:
    Yang, Chen, Sze, Designing energy-efficient convolutional neural networks using energy-aware
    pruning, 2017, arXiv 1611.05128 [22].
"""

from jprune.base import Budget, Recipe
from jprune.cost.energy import EnergyCosts
from jprune.stages.by_energy import PruneByEnergy
from jprune.stages.frame import framed
from jprune.stages.rounds import evenly, in_rounds
from jprune.stages.train import Train


def energy_aware(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    order: str = "energy",
    hardness: float = 0.5,
    back: float = 0.2,
    ridge: float = 1e-6,
    rounds: int = 1,
    dram: float = 200.0,
    buffer: float = 6.0,
    register: float = 1.0,
    bits: int = 16,
    index_bits: int = 5,
    batches: int = 8,
    batch_size: int = 128,
    points: int = 10,
) -> Recipe:
    """Prunes single weights layer by layer in the order of energy, then fine-tunes the whole net.

    Args:
        budget: what is kept; a density is that of the kernels that are pruned.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks.
        order: "energy", the paper's; "params", "macs", or "forward", the order of execution.
        hardness: densities of layers are as their energy to the power -hardness; 0: all alike.
        back: fraction of the weights that stay which come back by their joint effect, in [0, 1];
            0: magnitude alone.
        ridge: of the refit, towards the old weights, over the mean square of an input.
        rounds: how often all layers are pruned, with training in between; the paper repeats while
            the accuracy allows.
        dram: cost of reading a value of 16 bits from outside, in multiply-accumulates.
        buffer: of reading it from the global buffer.
        register: of reading it from a register.
        bits: of a value.
        index_bits: stored beside a value where zeros are left out.
        batches: of calibration images.
        batch_size: images in one.
        points: sampled positions per image and layer.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = energy_aware(Budget(density=0.3), None, Train(4, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    costs = EnergyCosts(dram, buffer, register=register, bits=bits, index_bits=index_bits)
    prune = lambda each: PruneByEnergy(
        each, order, hardness, back, ridge, costs, batches, batch_size, points
    )
    stages, rest = in_rounds(prune, evenly(budget, rounds), finetune)
    return framed(train, *stages, finetune=rest)


METHODS = {"energy_aware": energy_aware}
