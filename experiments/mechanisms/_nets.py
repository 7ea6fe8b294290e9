"""The nets and images of the claims: MNIST, or a part of CIFAR-10, and digits where it is a try."""

from typing import Protocol

from experiments.claims import Given
from jprune import data, train, zoo
from jprune.base import Data, Task


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
