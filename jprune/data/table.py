"""The data sets: shape, splits, and how pixels become numbers.

Those of the user's own are read by `sources.py`, whose table says how they are written.
"""

from typing import NamedTuple

from jprune import errors


class Spec(NamedTuple):
    """A data set of images with fixed splits.

    A pixel `p` becomes `(p / top - mean) / std`, per channel.

    Attributes:
        name: what `load` takes.
        shape: (height, width, channels) of one image.
        classes: number of classes; 0 where labels are no classes.
        sizes: examples in "train", "validation" and "test".
        top: value of a white pixel.
        mean: per channel, or one for all.
        std: per channel, or one for all.
        shift: training images are shifted by up to this many pixels and mirrored; 0: neither.
        dtype: of the pixels: "uint8", or "float32" for images of the user's own.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    sizes: dict[str, int]
    top: float = 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    shift: int = 0
    dtype: str = "uint8"


# Pretrained CIFAR nets expect mean and std of ImageNet, not those of CIFAR itself.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SETS = {
    spec.name: spec
    for spec in (
        Spec("digits", (8, 8, 1), 10, {"train": 1197, "validation": 300, "test": 300}, top=16),
        Spec("mnist", (28, 28, 1), 10, {"train": 55_000, "validation": 5_000, "test": 10_000}),
        Spec(
            "fashion_mnist", (28, 28, 1), 10, {"train": 55_000, "validation": 5_000, "test": 10_000}
        ),
        Spec(
            "cifar10",
            (32, 32, 3),
            10,
            {"train": 45_000, "validation": 5_000, "test": 10_000},
            mean=_MEAN,
            std=_STD,
            shift=4,
        ),
        Spec(
            "cifar100",
            (32, 32, 3),
            100,
            {"train": 45_000, "validation": 5_000, "test": 10_000},
            mean=_MEAN,
            std=_STD,
            shift=4,
        ),
    )
}


def names() -> tuple[str, ...]:
    """Names that `load` takes, beside those of the user's own data sets.

    Example:
        >>> names()
        ('digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100')
    """
    return tuple(SETS)


def find(name: str) -> Spec:
    """The specification of a data set.

    Raises:
        ArgumentError: no data set has this name; the message suggests the nearest.

    Example:
        >>> find("digits").shape
        (8, 8, 1)
    """
    if name not in SETS:
        hint = errors.nearest(name, SETS)
        raise errors.ArgumentError(
            f"There is no data set {name!r}; {hint}jprune has {', '.join(SETS)}; your own are "
            "written npz:FILE, folder:DIR, tfds:NAME or module:callable."
        )
    return SETS[name]
