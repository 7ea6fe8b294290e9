"""The nets and images of the claims: MNIST, or a part of CIFAR-10, and digits where it is a try."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from experiments.claims import Given
from jprune import data, train, zoo
from jprune.base import Data, Task, Variables


class OfPart(Given, Protocol):
    """Settings that say how many images."""

    @property
    def train_images(self) -> int:
        """Of the training split."""
        ...


def mnist(settings: Given, images: int | None = None) -> Data:
    """So many training images of MNIST; None: all."""
    return data.load("digits") if settings.smoke else data.load("mnist", subset=images)


def cifar10(settings: OfPart) -> Data:
    """A part of CIFAR-10."""
    if settings.smoke:
        return data.load("digits", subset=200)
    return data.load("cifar10", subset=settings.train_images)


def task_of(net: str, images: Data) -> Task:
    """A net of the zoo on its images."""
    height, width, channels = images.shape
    return train.task(zoo.build(net, shape=(height, width, channels)), images)


def thresholds(variables: Variables, kept: Mapping[str, float], budget: float) -> dict[str, float]:
    """The size of weight, layer by layer, above which so many are as a paper keeps of the layer.

    Args:
        variables: of the net.
        kept: {layer: fraction}; all are scaled by one factor, none beyond 1, to meet the budget.
        budget: the fraction of the weights of these layers.
    """
    sizes = {name: np.abs(variables["params"][name]["kernel"]).ravel() for name in kept}
    counts = np.array([size.size for size in sizes.values()])
    fractions = np.array(list(kept.values()))
    for _ in range(100):
        fractions = np.minimum(1, fractions * budget * counts.sum() / (fractions @ counts))
    return {
        name: float(np.quantile(size, 1 - fraction))
        for (name, size), fraction in zip(sizes.items(), fractions)
    }
