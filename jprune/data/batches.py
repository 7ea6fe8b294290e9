"""From arrays in memory to batches, through Grain.

A whole set is held as 8-bit pixels (CIFAR-10: 184 MB). Grain shuffles and batches only the indices;
a batch is one gather, which for 128 CIFAR images with augmentation takes about 3 ms.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from jprune import errors
from jprune.base import Batch, Data
from jprune.data.table import Spec

AT_ONCE = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
"""No reader threads: the data are in memory already."""
WHOLE = slice(None)


class Split(NamedTuple):
    """The examples of one split, in the order of their files.

    Attributes:
        images: uint8 [n, h, w, c]; float32 where the user's own are.
        labels: int32 [n]; where they are no classes, int32 or float32 [n, ...].
    """

    images: np.ndarray
    labels: np.ndarray


def feed(spec: Spec, splits: Mapping[str, Split]) -> Data:
    """Arrays as a data set, once they are checked against its specification.

    Args:
        spec: of the data set; its `sizes` are ignored, as the arrays have their own.
        splits: "train", "validation" and "test".

    Returns:
        The data set; see `base.Data` for its `batches`. Only "train" is augmented, and only with a
        seed.

    Raises:
        DataError: arrays of another shape, type or range.

    Example:
        >>> spec = Spec("toy", (2, 2, 1), 2, {})
        >>> split = Split(np.full((3, 2, 2, 1), 255, np.uint8), np.zeros(3, np.int32))
        >>> data = feed(spec, {"train": split, "validation": split, "test": split})
        >>> [batch["weight"].tolist() for batch in data.batches("test", 2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    for name, split in splits.items():
        _check(spec, name, split)
    sizes = {name: len(split.labels) for name, split in splits.items()}
    return Data(spec.name, spec.shape, spec.classes, sizes, partial(_batches, spec, dict(splits)))


def _batches(
    spec: Spec,
    splits: dict[str, Split],
    split: str,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
    rows: slice = WHOLE,
) -> Iterator[Batch]:
    """The batches of one epoch, or the same rows of each; see `base.Data`."""
    if split not in splits:
        raise errors.ArgumentError(f"There is no split {split!r}; write {' or '.join(splits)}.")
    if batch_size < 1 or start < 0 or epoch < 0 or (seed is not None and seed < 0):
        raise errors.ArgumentError(
            f"batches got batch_size={batch_size}, seed={seed}, epoch={epoch}, start={start}; "
            "batch_size is at least 1, the others at least 0."
        )
    size = len(splits[split].labels)
    if seed is not None and batch_size > size:
        raise errors.ArgumentError(
            f"batches got batch_size={batch_size} for the {size} examples of {spec.name}/{split}: "
            "with a seed the last, partial batch is dropped, and none would be left. Write "
            f"{size} at most."
        )
    indices = grain.MapDataset.range(size)
    if seed is None:
        ordered = indices.batch(batch_size)
        dataset = ordered.map(partial(_in_order, spec, splits[split], batch_size, rows))
    else:
        # Two independent streams, each a function of (seed, epoch) alone.
        order, draw = (int(s) for s in np.random.SeedSequence([seed, epoch]).generate_state(2))
        ordered = indices.shuffle(seed=order).batch(batch_size, drop_remainder=True)
        shift = spec.shift if split == "train" else 0
        dataset = ordered.random_map(partial(_drawn, spec, splits[split], shift, rows), seed=draw)
    return iter(dataset.slice(slice(start, None)).to_iter_dataset(AT_ONCE))


def _in_order(spec: Spec, split: Split, batch_size: int, rows: slice, indices: np.ndarray) -> Batch:
    """A batch in file order, padded to full size with copies of its last example of weight 0."""
    # All batches have one shape, so that a step is compiled once; weight 0 takes copies out again.
    missing = batch_size - len(indices)
    padded = np.pad(indices, (0, missing), mode="edge")[rows]
    weight = np.ones(batch_size, np.float32)
    weight[len(indices) :] = 0
    return _batch(spec, split.images[padded], split.labels[padded], weight[rows])


def _drawn(
    spec: Spec,
    split: Split,
    shift: int,
    rows: slice,
    indices: np.ndarray,
    rng: np.random.Generator,
) -> Batch:
    """A batch of the shuffled order, augmented where `shift` is positive."""
    images = split.images[indices[rows]]
    if shift:
        # Drawn for the whole batch: an image's window must not depend on which rows are asked for.
        windows = draw_windows(len(indices), shift, rng)
        images = crop(images, shift, *(drawn[rows] for drawn in windows))
    return _batch(spec, images, split.labels[indices[rows]], np.ones(len(images), np.float32))


def _batch(spec: Spec, images: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Batch:
    """A batch of normalised images."""
    # (p / top - mean) / std as one product and one sum: p * (1 / (top std)) - mean / std.
    std = np.asarray(spec.std, np.float32)
    offset = np.asarray(spec.mean, np.float32) / std
    return {
        "image": images * (1 / (spec.top * std)) - offset,
        "label": labels if labels.dtype == np.float32 else labels.astype(np.int32),
        "weight": weight,
    }


def augment(images: np.ndarray, shift: int, rng: np.random.Generator) -> np.ndarray:
    """The usual augmentation of CIFAR: pad with black, crop a random window, mirror half of them.

    Args:
        images: uint8 [batch, h, w, c].
        shift: width of the border, in pixels.
        rng: source of the draws.

    Returns:
        uint8 [batch, h, w, c].
    """
    return crop(images, shift, *draw_windows(len(images), shift, rng))


def draw_windows(
    batch: int, shift: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top and left of a window in 0..2 shift, and whether it is mirrored: each [batch, 1]."""
    top, left = rng.integers(0, 2 * shift + 1, (2, batch, 1))
    return top, left, rng.random((batch, 1)) < 0.5


def crop(
    images: np.ndarray, shift: int, top: np.ndarray, left: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """Windows of images with black borders; see `augment` and `draw_windows`."""
    batch, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    # Every pixel's source: [batch, height] rows and [batch, width] columns, in one gather.
    rows = top + np.arange(height)
    columns = left + np.arange(width)
    columns = np.where(mirrored, columns[:, ::-1], columns)
    return padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _check(spec: Spec, name: str, split: Split) -> None:
    """Refuses arrays that do not agree with the specification."""
    where = f"{spec.name}/{name}"
    images, labels = split
    if images.dtype != spec.dtype or images.shape[1:] != spec.shape:
        raise errors.DataError(
            f"{where} has images {images.dtype}{list(images.shape)}; expected {spec.dtype} of "
            f"shape [n, {', '.join(map(str, spec.shape))}]."
        )
    if spec.classes == 0 and len(labels) == len(images) > 0:
        if not (np.isfinite(labels).all() and np.isfinite(images).all()):
            raise errors.DataError(f"{where} has labels or pixels that are not finite.")
        return
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise errors.DataError(
            f"{where} has labels {labels.dtype}{list(labels.shape)}; expected {len(images)} "
            "integers, one for every image."
        )
    if not len(images):
        raise errors.DataError(f"{where} is empty.")
    if spec.dtype != "uint8" and not np.isfinite(images).all():
        raise errors.DataError(f"{where} has pixels that are not finite. Take those images out.")
    if spec.dtype == "uint8" and images.max() > spec.top:
        raise errors.DataError(f"{where} has pixels up to {images.max()}; expected 0..{spec.top}.")
    if labels.min() < 0 or labels.max() >= spec.classes:
        raise errors.DataError(
            f"{where} has labels {labels.min()}..{labels.max()}; expected 0..{spec.classes - 1}."
        )
