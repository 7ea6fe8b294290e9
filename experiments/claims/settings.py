"""Settings that several claims have, each documented once; a claim sets its own values."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers of a claim depend on.

    Attributes:
        epochs: of the dense net, and of every training that has no number of its own.
        learning_rate: the largest one; trainings that have another say it.
    """

    epochs: float = 5.0
    learning_rate: float = 0.05


@dataclasses.dataclass(frozen=True)
class PartSettings(Settings):
    """Those of a claim whose nets are trained on a part of the images.

    Attributes:
        train_images: of the training split; None: all of them.
    """

    train_images: int | None = 5_000


@dataclasses.dataclass(frozen=True)
class BatchSettings(PartSettings):
    """Those of a claim whose trainings all have batches of one size.

    Attributes:
        batch_size: examples in a step.
    """

    batch_size: int = 64
