"""Gates that are codes of a batch, sharpened until they are 0 or 1."""

import dataclasses

from jprune.base import Budget, Task, Wrap
from jprune.learners import Gating, Sharpening, batch_codes, seen_shapes
from jprune.stages.goal import period
from jprune.stages.unit_gates import even_widths
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class ByCodes:
    """Codes that are read off the batch; every group keeps the same fraction.

    What is None is the paper's number, or less where the training is short.

    Attributes:
        sharpening: how they become 0 or 1; `every`, `vote` and `settle` are set here.
        every: steps in which alpha stays as it is; None: 100, or a tenth of the steps.
        vote: steps between two votes; None: 20, or a tenth of the steps.
        settle: the fraction of the steps after which most codes have to be decided.
    """

    sharpening: Sharpening
    every: int | None = None
    vote: int | None = None
    settle: float = 1 / 8

    def gating(self, task: Task, sizes: dict[str, int], budget: Budget, steps: int) -> Gating:
        """As `jprune.stages.unit_gates.Kind`."""
        net = Net(task)
        counts = even_widths(net, budget)
        sharpening = dataclasses.replace(
            self.sharpening,
            every=period(self.every, 100, steps),
            vote=min(steps, period(self.vote, 20, steps)),
            settle=max(1, round(self.settle * steps)),
        )
        shapes = seen_shapes(task.fn, net.groups, list(sizes), net.shapes, task.example)
        ratios = {name: counts[name] / size for name, size in sizes.items()}
        return batch_codes(shapes, ratios, steps, sharpening)

    def wrap(self, sizes: dict[str, int], budget: Budget, steps: int) -> Wrap | None:
        """As `jprune.stages.unit_gates.Kind`: codes are trained like the weights."""
        del sizes, budget, steps
        return None
