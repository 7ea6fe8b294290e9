"""Settings of the main job."""

import dataclasses
from typing import Any

from jprune import errors
from jprune.base import Budget


@dataclasses.dataclass(frozen=True)
class Config:
    """What decides the result of a run; written to `config.json`.

    Args:
        model: name of a net of the zoo, or `module:callable` of your own.
        data: name of a data set.
        method: name of a method.
        macs: fraction of the multiply-accumulates kept.
        params: fraction of the parameters kept.
        density: fraction of the units kept. Exactly one of the three.
        seed: of everything that is drawn.
        weights: None trains; a path or `pretrained` loads.
        epochs: of training the dense net.
        learning_rate: peak, of training the dense net.
        finetune_epochs: of all fine-tuning together.
        finetune_learning_rate: peak, of fine-tuning.
        batch_size: examples per step.
        weight_decay: on kernels.
        schedule: `one_shot`, `iterative` or `cubic`.
        rounds: of pruning and fine-tuning.
        allocator: `uniform` or `global_topk`; None takes the method's own.
        multiple_of: kept units of a group are a multiple of this.
        min_units: smallest number of units of a group.
        calibration: batches that a criterion sees.
        recalibration: batches that renew batch-norm statistics after pruning.
        dtype: `float32` or `bfloat16`, of computation; parameters stay float32.
        steps: stop every training after so many steps; None for whole epochs.
        subset: train on so many images only; None for all.
    """

    model: str
    data: str
    method: str
    macs: float | None = None
    params: float | None = None
    density: float | None = None
    seed: int = 0
    weights: str | None = None
    epochs: int = 30
    learning_rate: float = 0.1
    finetune_epochs: int = 20
    finetune_learning_rate: float = 0.05
    batch_size: int = 128
    weight_decay: float = 1e-4
    schedule: str = "one_shot"
    rounds: int = 1
    allocator: str | None = None
    multiple_of: int = 8
    min_units: int = 1
    calibration: int = 8
    recalibration: int = 0
    dtype: str = "float32"
    steps: int | None = None
    subset: int | None = None

    def __post_init__(self):
        for name, low in (("epochs", 1), ("finetune_epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise errors.ArgumentError(f"{name}={getattr(self, name)}; write {low} or more.")
        if self.dtype not in ("float32", "bfloat16"):
            raise errors.ArgumentError(
                f"dtype={self.dtype!r}; write float32 or bfloat16 (parameters stay float32)."
            )

    @property
    def budget(self) -> Budget:
        """The budget; raises ArgumentError unless exactly one fraction is given."""
        return Budget(
            macs=self.macs,
            params=self.params,
            density=self.density,
            min_units=self.min_units,
            multiple_of=self.multiple_of,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)
