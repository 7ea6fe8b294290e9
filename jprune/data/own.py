"""Arrays of the user's own become a data set: types, ranges, splits and classes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jprune import errors
from jprune.base import Data
from jprune.data.batches import Split, feed
from jprune.data.images import converted
from jprune.data.splits import divide, scattered
from jprune.data.table import Spec

FAR = 100.0
"""The largest float that a pixel may be after division by `top`: beyond, `top` is mostly wrong."""


class Options(NamedTuple):
    """How a data set of the user's own is read.

    Attributes:
        size: images are cropped to this shape's proportions and resized to it: (height, width), or
            one number for both. None: all have one size already.
        channels: 1 makes images grey, 3 coloured; None: as the first image is.
        top: value of a white pixel: pixels are divided by it. None: 255 for uint8, 1 for floats.
        mean: subtracted after the division: one number, or one a channel.
        std: what is left is divided by it: one number, or one a channel.
        shift: training images are shifted by up to this many pixels and mirrored; 0: neither.
        validation: fraction of the training examples for the validation split, if there is none.
        test: fraction of all training examples for the test split, if there is none.
        classes: number of classes; None counts them. 0: labels are no classes, but numbers, or
            arrays of them, for a loss of the user's own.
    """

    size: int | Sequence[int] | None = None
    channels: int | None = None
    top: float | None = None
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    shift: int = 0
    validation: float = 0.1
    test: float = 0.1
    classes: int | None = None

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as two whole numbers."""
        if self.size is None:
            return None
        height, width = self.size if isinstance(self.size, Sequence) else (self.size, self.size)
        return int(height), int(width)


def options_of(given: Mapping[str, Any]) -> Options:
    """Options from keyword arguments.

    Raises:
        ArgumentError: an unknown name, or a value out of range.

    Example:
        >>> options_of({"size": 32, "mean": (0.5, 0.5, 0.5)}).size
        (32, 32)
    """
    for name in given:
        if name not in Options._fields:
            raise errors.ArgumentError(
                f"a data set has no option {name!r}; {errors.nearest(name, Options._fields)}Write "
                f"some of {', '.join(Options._fields)}."
            )
    chosen = Options(**given)
    if chosen.size is not None:
        size = (chosen.size,) * 2 if isinstance(chosen.size, int | float) else tuple(chosen.size)
        if len(size) != 2 or any(length != int(length) or length < 1 for length in size):
            raise errors.ArgumentError(
                f"size={chosen.size!r}; write (height, width) in pixels, or one number for both."
            )
        chosen = chosen._replace(size=(int(size[0]), int(size[1])))
    tests = {
        "channels": (chosen.channels in (None, 1, 3), "1 or 3"),
        "top": (chosen.top is None or chosen.top > 0, "a number above 0"),
        "mean": (np.isfinite(chosen.mean).all(), "finite numbers"),
        "std": (np.greater(chosen.std, 0).all(), "numbers above 0"),
        "shift": (chosen.shift == int(chosen.shift) >= 0, "a whole number, 0 or more"),
        "validation": (0 < chosen.validation < 1, "a fraction in (0, 1), such as 0.1"),
        "test": (0 < chosen.test < 1, "a fraction in (0, 1), such as 0.1"),
        "classes": (chosen.classes in (None, 0) or chosen.classes > 1, "2 or more, or 0"),
    }
    for name, (fits, wanted) in tests.items():
        if not fits:
            raise errors.ArgumentError(f"{name}={getattr(chosen, name)!r}; write {wanted}.")
    return chosen


def from_arrays(
    splits: Mapping[str, tuple[Any, Any]], name: str = "arrays", **options: Any
) -> Data:
    """A data set of arrays in memory, checked.

    Args:
        splits: {"train": (images, labels)}, and "validation" and "test" likewise; those that are
            missing are drawn from the training examples, every class in proportion. Images are
            uint8 or float32, [n, h, w, c], or [n, h, w] of one channel; labels are integers [n]
            (or [n, 1]) from 0 on. With `classes=0` labels are any numbers, [n, ...].
        name: of the data set.
        options: see `Options`.

    Returns:
        The data set; its `about` says where each split is from.

    Raises:
        ArgumentError: an unknown option.
        DataError: arrays of another shape, type or range, or too few examples to split.

    Example:
        >>> pixels, labels = np.zeros((40, 5, 4, 3), np.uint8), np.arange(40) % 2
        >>> data = from_arrays({"train": (pixels, labels)}, test=0.25)
        >>> data.sizes, data.classes
        ({'train': 27, 'validation': 3, 'test': 10}, 2)
        >>> data.about
        'test: 25 % of the training examples; validation: 10 % of the others'
    """
    chosen = options_of(options)
    unknown = {*splits} - {"train", "validation", "test"}
    if unknown or "train" not in splits:
        raise errors.DataError(
            f"{name} has the splits {', '.join(splits) or 'none'}; write train, and validation and "
            "test where there are some."
        )
    parts = {
        split: _split(f"{name}/{split}", images, labels, chosen)
        for split, (images, labels) in splits.items()
    }
    spec = _spec(name, parts, chosen)
    parts, about = _completed(name, parts, chosen, spec.classes > 0)
    return feed(spec, parts)._replace(about=about)


def _split(where: str, images: Any, labels: Any, options: Options) -> Split:
    """The arrays of a split in the types and shapes that `feed` takes."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise errors.DataError(
            f"{where} has images {images.dtype}{list(images.shape)}; expected uint8 (0..255) or "
            "floats, [n, h, w, c] or [n, h, w]. Write images.astype(np.uint8) for pixels of "
            "another integer type."
        )
    if not len(images) or len(images) != len(np.atleast_1d(labels)):
        raise errors.DataError(
            f"{where} has {len(images)} images and {len(np.atleast_1d(labels))} labels; expected "
            "as many labels as images, at least one."
        )
    if images.dtype == np.uint8:
        images = converted(images, options.height_width, options.channels)
    elif options.height_width not in (None, images.shape[1:3]) or options.channels not in (
        None,
        images.shape[3],
    ):
        raise errors.DataError(
            f"{where} has images {images.dtype}{list(images.shape)}; size and channels convert "
            "8-bit pixels alone. Leave them out, and convert floats before they are handed over."
        )
    if options.classes == 0:
        # float64 and int64 are what NumPy makes; JAX computes in 32 bits.
        kind = np.float32 if labels.dtype.kind == "f" else np.int32
        return Split(images.astype(images.dtype if images.dtype == np.uint8 else np.float32),
                     labels.astype(kind))  # fmt: skip
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        hint = "labels.argmax(-1) for one-hot labels, or " if labels.ndim == 2 else ""
        raise errors.DataError(
            f"{where} has labels {labels.dtype}{list(labels.shape)}; expected whole numbers [n]. "
            f"Write {hint}classes=0 for labels that are no classes, with a loss of your own "
            "(train.task(..., loss=...))."
        )
    floats = images.dtype != np.uint8
    return Split(images.astype(np.float32) if floats else images, labels.astype(np.int32))


def _spec(name: str, parts: Mapping[str, Split], options: Options) -> Spec:
    """What the arrays are.

    Raises:
        DataError: splits that differ, labels without images, floats that look like pixels.
    """
    train = parts["train"].images
    for split, part in parts.items():
        if part.images.shape[1:] != train.shape[1:] or part.images.dtype != train.dtype:
            raise errors.DataError(
                f"{name}/{split} has images {part.images.dtype}{list(part.images.shape)}, and "
                f"{name}/train has {train.dtype}{list(train.shape)}; all splits are of one type "
                "and size. Write size=32 to resize 8-bit pixels."
            )
    top = (255.0 if train.dtype == np.uint8 else 1.0) if options.top is None else options.top
    largest = float(max(np.abs(part.images, dtype=np.float32).max() for part in parts.values()))
    if train.dtype != np.uint8 and not largest / top <= FAR:
        raise errors.DataError(
            f"{name} has floats of up to {largest:g} as pixels; floats are taken as they are. "
            f"Write top={max(largest, 255):.0f}, so that a white pixel is 1, or take out what is "
            "not finite."
        )
    channels = train.shape[3]
    per_channel = {}
    for option in ("mean", "std"):
        numbers = np.atleast_1d(np.asarray(getattr(options, option), float))
        if numbers.shape not in ((1,), (channels,)):
            raise errors.DataError(
                f"{option} has {numbers.size} numbers, and the images of {name} have {channels} "
                "channels; write one number, or one a channel."
            )
        per_channel[option] = tuple(numbers.tolist())
    return Spec(
        name, train.shape[1:], _classes(name, parts, options), {}, top=top,
        shift=int(options.shift), dtype=str(train.dtype), **per_channel,
    )  # fmt: skip


def _classes(name: str, parts: Mapping[str, Split], options: Options) -> int:
    """Number of classes; 0 where labels are none.

    Raises:
        DataError: a class of which the training split has no example.
    """
    if options.classes == 0:
        return 0
    low = min(int(part.labels.min()) for part in parts.values())
    high = max(int(part.labels.max()) for part in parts.values())
    classes = high + 1 if options.classes is None else options.classes
    if low < 0 or high >= classes:
        raise errors.DataError(
            f"{name} has labels {low}..{high}; expected 0..{classes - 1}, without a mark for "
            "unlabelled images: leave those out."
        )
    # Labels from 1 on, or far apart, would make a net with outputs that nothing trains.
    missing = sorted({*range(classes)} - {*np.unique(parts["train"].labels).tolist()})
    if options.classes is None and (missing or classes < 2):
        raise errors.DataError(
            f"{name} has labels {low}..{high}, and no training image of class "
            f"{missing[0] if missing else 1}. Labels count from 0 without gaps: write "
            "np.unique(labels, return_inverse=True)[1], or classes=N if some have no example."
        )
    return classes


def _completed(
    name: str, parts: dict[str, Split], options: Options, by_class: bool
) -> tuple[dict[str, Split], str]:
    """All three splits, and where those that were missing are from."""
    said = []
    for split in ("test", "validation"):
        if split in parts:
            continue
        fraction, train = getattr(options, split), parts["train"]
        count = round(fraction * len(train.labels))
        if not 1 <= count < len(train.labels):
            raise errors.DataError(
                f"{name}/train has {len(train.labels)} examples, of which {split}={fraction:g} "
                f"takes {count} for the split {split}. Write a larger fraction, or give more "
                "examples."
            )
        taken = divide if by_class else scattered
        parts = dict(zip(("train", split), taken(train, count))) | {
            other: part for other, part in parts.items() if other != "train"
        }
        source = "the others" if said else "the training examples"
        said.append(f"{split}: {100 * fraction:.3g} % of {source}")
    return {each: parts[each] for each in ("train", "validation", "test")}, "; ".join(said)
