"""What is common to all methods on the command line."""

import dataclasses

from jprune import errors, schedules
from jprune.base import Budget
from jprune.learners import Optimizer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a recipe; a factory takes what applies to its method and refuses what does not.

    Args:
        budget: what may be kept.
        epochs: of all fine-tuning together.
        optimizer: of fine-tuning.
        batch_size: of fine-tuning and calibration.
        steps: fine-tune for so many steps at most, per round; None for all.
        schedule: how the budget is reached: `one_shot`, `iterative` (geometric) or `cubic`.
        rounds: prune and fine-tune so often (1 for one_shot).
        allocator: `uniform` or `global_topk`; None takes the method's own.
        calibration: batches that a criterion sees.
        recalibration: batches over which batch-norm statistics are renewed after pruning; 0 for
            none.

    Raises:
        ArgumentError: an unknown schedule, or rounds that do not fit it.
    """

    budget: Budget
    epochs: int = 20
    optimizer: Optimizer = dataclasses.field(default_factory=lambda: Optimizer(learning_rate=0.05))
    batch_size: int = 128
    steps: int | None = None
    schedule: str = "one_shot"
    rounds: int = 1
    allocator: str | None = None
    calibration: int = 8
    recalibration: int = 0

    def __post_init__(self):
        if self.schedule not in schedules.SCHEDULES:
            raise errors.ArgumentError(
                f"schedule={self.schedule!r}; write one of {', '.join(schedules.SCHEDULES)}."
            )
        if self.rounds < 1 or (self.schedule == "one_shot" and self.rounds != 1):
            raise errors.ArgumentError(
                f"rounds={self.rounds} with schedule={self.schedule!r}; one_shot has 1, "
                "iterative and cubic have 1 or more."
            )
        if self.epochs < self.rounds and self.steps is None:
            raise errors.ArgumentError(
                f"{self.epochs} epochs of fine-tuning for {self.rounds} rounds; every round needs "
                f"one. Write epochs={self.rounds} or more."
            )

    def budgets(self) -> list[Budget]:
        """The budget of every round; the last one is `budget`."""
        goal = float(self.budget.value)
        schedule = {
            "one_shot": lambda: schedules.one_shot(goal),
            "iterative": lambda: schedules.iterative(goal, self.rounds, 1),
            "cubic": lambda: schedules.cubic(goal, -1, self.rounds - 1),
        }[self.schedule]()
        values = [float(schedule(number)) for number in range(self.rounds - 1)] + [goal]
        return [dataclasses.replace(self.budget, **{self.budget.kind: value}) for value in values]

    def epochs_of_rounds(self) -> list[int]:
        """Epochs of fine-tuning after every round, as equal as can be, the last one longest."""
        share, rest = divmod(self.epochs, self.rounds)
        return [share] * (self.rounds - 1) + [share + rest]
