"""Masks of single weights at random: where training that is sparse from the start begins."""

import dataclasses
from collections.abc import Callable

import jax

from jprune import errors
from jprune.allocate import erdos_renyi, uniform
from jprune.base import Allocator, Budget, Groups, Pruned, Records, Task
from jprune.stages.prune import Prune, random_weights_of
from jprune.train.net import Net

DENSITIES: dict[str, Callable[[Groups], Allocator]] = {
    "erk": lambda groups: erdos_renyi(groups),
    "er": lambda groups: erdos_renyi(groups, window=False),
    "uniform": lambda groups: uniform,
}
"""{how weights are shared out to the kernels: the allocator of a net}."""


@dataclasses.dataclass(frozen=True)
class RandomMasks:
    """Masks a random set of weights in every kernel, as many as the layer's density says.

    Attributes:
        budget: of weights; a density is that of all kernels. Groups that its floors leave whole
            have no masks.
        densities: of the layers: "erk" (large kernels keep less), "er" (the same by inputs and
            outputs alone) or "uniform".
        name: of the record: fractions kept.
    """

    budget: Budget
    densities: str = "erk"
    name: str = "random_masks"

    def __post_init__(self):
        if self.densities not in DENSITIES:
            raise errors.ArgumentError(
                f"densities={self.densities!r}; {errors.nearest(self.densities, DENSITIES)}write "
                f"one of {', '.join(DENSITIES)}."
            )

    def prune(self, task: Task) -> Prune:
        """The stage that masks the weights of this net."""
        allocator = DENSITIES[self.densities](Net(task).groups)
        return Prune(random_weights_of, allocator, self.budget, per="weight", name=self.name)

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        self.prune(task).check(task)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The masked net, and a record of the fractions kept.

        Raises:
            BudgetError: the budget asks for less than one weight a layer.
        """
        return self.prune(task)(pruned, task, key)
