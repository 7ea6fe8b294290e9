"""Evaluation on deformed images, for nets that choose their channels by the input.

The survey's complaint about dynamic pruning: channels chosen by an image may be wrong ones where
the image is a mosaic or partly hidden. Both deformations keep the shape of the images.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Batch, Data, Pruned, Records, Task
from jprune.stages.frame import Evaluate

Deform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""`(images [batch, h, w, c], source of draws) -> images`."""


def mosaic(images: np.ndarray, rng: np.random.Generator, parts: int = 8) -> np.ndarray:
    """Every image as `parts` x `parts` tiles, each of its mean colour.

    A side has at most half as many tiles as pixels.

    Example:
        >>> mosaic(np.arange(4.0).reshape(1, 2, 2, 1), np.random.default_rng(0), 1)[0, :, 0, 0]
        array([1.5, 1.5])
    """
    del rng
    # [batch, height, width, channels]
    result = np.asarray(images)
    # One axis after the other: the mean over a tile is the mean of its rows' means.
    for axis in (1, 2):
        side = result.shape[axis]
        tiles = np.arange(side) * min(parts, max(1, side // 2)) // side
        sums = np.add.reduceat(result, np.flatnonzero(np.diff(tiles, prepend=-1)), axis=axis)
        counts = np.bincount(tiles).reshape([-1 if a == axis else 1 for a in range(result.ndim)])
        result = np.take(sums / counts, tiles, axis=axis)
    return result.astype(images.dtype)


def occlusion(images: np.ndarray, rng: np.random.Generator, part: float = 0.5) -> np.ndarray:
    """Images with a square at a random place painted in the image's mean colour.

    `part` is the square's side as a fraction of the image's.

    Example:
        >>> hidden = occlusion(np.arange(16.0).reshape(1, 4, 4, 1), np.random.default_rng(0))
        >>> int((hidden == 7.5).sum())
        4
    """
    result = np.array(images)
    height, width = images.shape[1:3]
    tall, wide = max(1, round(part * height)), max(1, round(part * width))
    tops = rng.integers(0, height - tall + 1, len(images))
    columns_from = rng.integers(0, width - wide + 1, len(images))
    for image, top, start in zip(result, tops, columns_from):
        image[top : top + tall, start : start + wide] = image.mean(axis=(0, 1))
    return result


DEFORMATIONS: dict[str, Deform] = {"mosaic": mosaic, "occlusion": occlusion}


def deformed(data: Data, deform: Deform, seed: int = 0) -> Data:
    """The data set with deformed images; the same ones at every reading of a split in order.

    Args:
        data: any.
        deform: one of `DEFORMATIONS`, or a function like them.
        seed: of the draws.
    """

    def batches(split: str, batch_size: int, *args: Any, **options: Any) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        for batch in data.batches(split, batch_size, *args, **options):
            yield {**batch, "image": deform(np.asarray(batch["image"]), rng)}

    return data._replace(batches=batches)


@dataclasses.dataclass(frozen=True)
class EvaluateDeformed:
    """Measures what `Evaluate` does, on deformed images.

    Attributes:
        name: of the deformation, and of the record.
        split: whose images.
    """

    name: str
    split: str = "test"

    def __post_init__(self):
        if self.name not in DEFORMATIONS:
            raise errors.ArgumentError(
                f"EvaluateDeformed({self.name!r}); write one of {', '.join(DEFORMATIONS)}."
            )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        data = deformed(task.data, DEFORMATIONS[self.name])
        return Evaluate(self.split, name=self.name)(pruned, task._replace(data=data), key)
