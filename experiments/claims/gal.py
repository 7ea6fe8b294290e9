"""What P30 and P30b share: GAL's dense net, its adversarial part, and what it is compared with."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case
from experiments.claims.settings import CommonSettings
from jprune.base import Budget, Pruned, Task
from jprune.learners import Terms
from jprune.recipes import Train
from jprune.stages.adversarial import Adversarial, SettleSoftMasks, Soft


@dataclasses.dataclass(frozen=True)
class GalSettings(CommonSettings):
    """Those of P30 and P30b.

    Attributes:
        pruning_epochs: of the adversarial part.
        pruning_rate: of the adversarial part.
        mask_steps: steps of the masks.
        mask_rate: their size.
        mu: weight of the logits' difference; the authors have 1 for ResNets.
    """

    epochs: float = 4.0
    pruning_epochs: float = 3.0
    finetune_epochs: float = 5.0
    learning_rate: float = 0.02
    pruning_rate: float = 0.001
    mask_steps: int = 100
    mask_rate: float = 0.01
    train_images: int = 10_000
    batch_size: int = 64


def training(case: Case[Any], epochs: float, rate: float | None = None, **more: Any) -> Train:
    """So many epochs; at the settings' rate where none is named."""
    settings = case.settings
    return case.train(epochs, rate or settings.learning_rate, settings.batch_size, few=4, **more)


def dense_net(case: Case[Any]) -> Pruned:
    """The trained net, which GAL imitates."""
    dense = case.dense(training(case, case.settings.epochs))
    return dense._replace(saved={"dense": dense.variables})


def adversarial(
    case: Case[Any],
    dense: Pruned,
    budget: Budget | None,
    terms: Terms,
    kind: str = "channel",
    strength: float | None = None,
    task: Task | None = None,
) -> Pruned:
    """The net after the adversarial part, its masks of a kind settled."""
    settings, task = case.settings, task or case.task
    train = training(case, settings.pruning_epochs, settings.pruning_rate, schedule="constant")
    steps = 4 if case.smoke else settings.mask_steps
    soft = Soft(kind, strength=strength, steps=steps, rate=settings.mask_rate)
    done, _ = Adversarial(train, budget, soft, terms)(dense, task, case.fold(2))
    return SettleSoftMasks(budget)(done, task, case.key)[0]


def tuned(case: Case[Any], pruned: Pruned) -> float:
    """Test accuracy after fine-tuning."""
    return case.score(case.apply(pruned, 3, training(case, case.settings.finetune_epochs)))


def random_like(case: Case[Any], dense: Pruned, pruned: Pruned) -> Pruned:
    """As many channels of every layer, drawn."""
    masks = {
        name: np.asarray(jax.random.permutation(case.fold(100 + number), np.sort(mask)))
        for number, (name, mask) in enumerate((pruned.masks or {}).items())
    }
    return case.masked(dense, masks)


def permuted(task: Task) -> Task:
    """The task with the labels of every batch in another order."""

    def batches(*args: Any, **options: Any) -> Iterator[Any]:
        for batch in task.data.batches(*args, **options):
            yield {**batch, "label": batch["label"][::-1]}

    return task._replace(data=task.data._replace(batches=batches))


def equal(one: Pruned, other: Pruned) -> bool:
    """Whether weights and masks are the same, bit for bit."""
    same = jax.tree.map(
        lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)),
        (one.variables, one.masks), (other.variables, other.masks),
    )  # fmt: skip
    return all(jax.tree.leaves(same))
