"""The optimizers of pruning papers as a handful of settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks
from jprune.sparsify import hold

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(1, steps)),
    "onecycle": lambda rate, steps: optax.cosine_onecycle_schedule(max(2, steps), rate),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW, under a learning-rate schedule.

    Args:
        learning_rate: its peak.
        kind: `sgd`, `adam` or `adamw`.
        momentum: of SGD.
        nesterov: SGD looks ahead.
        weight_decay: on kernels only (leaves with two axes or more); added to the gradient for
            sgd and adam, decoupled for adamw.
        schedule: `onecycle` (up for 30 % of the steps, then down), `cosine` or `constant`.

    Raises:
        ArgumentError: an unknown kind or schedule, or a learning rate that is not positive.
    """

    learning_rate: float = 0.1
    kind: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: str = "onecycle"

    def __post_init__(self):
        if self.kind not in ("sgd", "adam", "adamw") or self.schedule not in SCHEDULES:
            raise errors.ArgumentError(
                f"Optimizer(kind={self.kind!r}, schedule={self.schedule!r}): kinds are sgd, adam, "
                f"adamw; schedules are {', '.join(SCHEDULES)}."
            )
        if not self.learning_rate > 0:
            raise errors.ArgumentError(
                f"learning_rate={self.learning_rate}; it must be positive, such as 0.05."
            )

    def build(self, steps: int, masks: Masks | None = None) -> optax.GradientTransformation:
        """The optax chain for so many steps, ending in `hold(masks)` if there are masks."""
        rate = SCHEDULES[self.schedule](self.learning_rate, steps)
        kernels = lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
        links: list[Any] = []
        if self.kind == "adamw":
            links.append(optax.adamw(rate, weight_decay=self.weight_decay, mask=kernels))
        else:
            links.append(optax.add_decayed_weights(self.weight_decay, mask=kernels))
            sgd = optax.sgd(rate, self.momentum, self.nesterov)
            links.append(sgd if self.kind == "sgd" else optax.adam(rate))
        if masks is not None:
            links.append(hold(masks))
        return optax.chain(*links)
