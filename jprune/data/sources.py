"""Data sets of the user's own by name: `npz:FILE`, `folder:DIR`, `tfds:NAME`, `module:callable`."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jprune import errors, foreign, targets
from jprune.base import Data
from jprune.data import store
from jprune.data.images import decoded, stacked
from jprune.data.own import Options, from_arrays, options_of

Arrays = Mapping[str, tuple[Any, Any]]
"""{split: (images, labels)}."""

UNPACKED = 100
"""How many times as long as its file an archive may become; images become ten times as long."""
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""{name in files and folders: name of the split}."""
IMAGES = ("x", "image", "images")
LABELS = ("y", "label", "labels")


class Source(NamedTuple):
    """A kind of data set of the user's own.

    Attributes:
        written: how it is written.
        read: `read(what stands behind the colon, options, data_dir) -> arrays`.
    """

    written: str
    read: Callable[[str, Options, str | Path | None], Arrays]


def npz(file: str, options: Options, data_dir: str | Path | None = None) -> Arrays:
    """The arrays of a `.npz` file.

    Names have the split and what it is, in any order: `x_train`, `y_train`, `x_test`, `y_test`, or
    `train_images`, `val_labels`; without a split, `images` and `labels`, they are "train".

    Args:
        file: path of the file.
        options: not looked at.
        data_dir: not looked at.

    Raises:
        DataError: no such file, no `.npz` of plain arrays, or other names.
    """
    del options, data_dir
    try:
        # Objects would be pickles, which run code when they are read.
        content = foreign.content(Path(file).expanduser())
        _require_bounded(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("it is one array, and not an archive of several")
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile and NumPy raise whatever they meet
        raise errors.DataError(
            f"{file} cannot be read as .npz: {foreign.shown(error, 100)}. Write it with "
            "np.savez(file, images=uint8 [n, h, w, c], labels=int [n])."
        ) from error
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        words = name.lower().split("_")
        split = [SPLITS[word] for word in words if word in SPLITS] or ["train"]
        kind = [kind for kind, names in (("x", IMAGES), ("y", LABELS)) if {*names} & {*words}]
        if len(kind) != 1 or len(split) != 1 or kind[0] in found.get(split[0], {}):
            raise errors.DataError(
                f"{file} has an array '{foreign.shown(name, 60)}', and nothing says which it is. "
                "Name them images and labels, or x_train, y_train, x_val, y_val, x_test, y_test."
            )
        found.setdefault(split[0], {})[kind[0]] = array
    for split, parts in found.items():
        if len(parts) < 2:
            missing = "labels" if "x" in parts else "images"
            raise errors.DataError(
                f"{file} has no {missing} for the split {split}; it has "
                f"{foreign.shown(', '.join(arrays), 80)}."
            )
    return {split: (parts["x"], parts["y"]) for split, parts in found.items()}


def _require_bounded(content: bytes) -> None:
    """Refuses an archive that would unpack to far more than it is long."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > UNPACKED * len(content) + 2**26:
            raise ValueError(f"it is {len(content)} bytes long, and would unpack to {size}")


def folder(directory: str, options: Options, data_dir: str | Path | None = None) -> Arrays:
    """Images in folders, one a class: `DIR/CLASS/*.png`, or `DIR/train/CLASS/*.png` and others.

    Classes are numbered in the order of their names. Hidden files, and files beside the folders of
    the classes, are left out.

    Args:
        directory: path of the folder.
        options: `size` and `channels` are used.
        data_dir: not looked at.

    Raises:
        DataError: no such folder, no images, other classes in another split, a file that is no
            image, or images of different sizes without a `size`.
    """
    del data_dir
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise errors.DataError(f"there is no folder {root}. Write folder:DIR of one that is there.")
    inside = _folders(root)
    by_split = {SPLITS[path.name]: path for path in inside if path.name in SPLITS}
    if by_split and len(by_split) != len(inside):
        strange = next(path for path in inside if path.name not in SPLITS)
        raise errors.DataError(
            f"{root} has folders of splits ({', '.join(path.name for path in by_split.values())}) "
            f"and {strange.name}. Keep splits alone in it, or classes alone."
        )
    roots = by_split or {"train": root}
    names = [path.name for path in _folders(roots.get("train", root))]
    arrays: dict[str, tuple[Any, Any]] = {}
    channels = options.channels
    for split, path in roots.items():
        classes = _folders(path)
        if [of.name for of in classes] != names or len(names) < 2:
            raise errors.DataError(
                f"{path} has the classes {', '.join(of.name for of in classes) or 'none'}; "
                f"expected {', '.join(names) if len(names) > 1 else 'two folders or more'}, one "
                "folder a class, the same in every split."
            )
        files = [(file, number) for number, of in enumerate(classes) for file in _files(of)]
        images = []
        for file, _ in files:
            image = decoded(file, str(file), channels)
            # Every image is like the first: some files of a grey set may be stored in colour.
            channels = channels or image.shape[2]
            images.append(image)
        arrays[split] = (
            stacked(images, [str(file) for file, _ in files], options.height_width),
            np.array([number for _, number in files], np.int32),
        )
    return arrays


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")


def _files(of_class: Path) -> list[Path]:
    """The images of a class.

    Raises:
        DataError: there is none, or something else is among them.
    """
    known = Image.registered_extensions()
    files = sorted(file for file in of_class.iterdir() if file.name[0] != ".")
    if not files:
        raise errors.DataError(f"{of_class} has no image. Take the folder out, or fill it.")
    for file in files:
        if file.is_dir() or file.suffix.lower() not in known:
            raise errors.DataError(
                f"{file} is no image file; a folder of a class has images alone, such as .png and "
                ".jpg."
            )
    return files


def tfds(name: str, options: Options, data_dir: str | Path | None = None) -> Arrays:
    """A data set that TFDS has prepared, `NAME`, `NAME/CONFIG` or `NAME:VERSION`.

    It is looked for in `data_dir`, in the folder of jprune's prepared sets, in `$TFDS_DATA_DIR` and
    in `~/tensorflow_datasets`. Files of array_record are read without TensorFlow; those of TFRecord
    need it.

    Args:
        name: as TFDS has it; nothing is downloaded.
        options: `size` and `channels` are used.
        data_dir: the first place to look; None: those that follow.

    Raises:
        DataError: it is not prepared, damaged, or has no images with labels.
        MissingExtraError: only TensorFlow can read it, and is not installed.
    """
    places = [store.folder(data_dir)]
    if data_dir is None:
        home = Path.home() / "tensorflow_datasets"
        places += [Path(os.environ.get("TFDS_DATA_DIR") or home).expanduser()]
    directory = store.foreign(name, places)
    columns = store.columns(directory, {*SPLITS})
    arrays: dict[str, tuple[Any, Any]] = {}
    channels = options.channels
    for split, (images, labels) in columns.items():
        names = [f"{name}/{split}, image {number}" for number in range(len(images))]
        pixels = []
        for where, image in zip(names, images):
            image = decoded(image, where, channels) if isinstance(image, bytes) else image
            channels = channels or image.shape[-1]
            pixels.append(image if image.ndim == 3 else image[..., None])
        arrays[SPLITS[split]] = (stacked(pixels, names, options.height_width), labels)
    return arrays


SOURCES = {
    "npz": Source("npz:FILE", npz),
    "folder": Source("folder:DIR", folder),
    "tfds": Source("tfds:NAME", tfds),
}
"""{word before the colon: source}; every other word is a module of the user's own."""
WRITTEN = (*(source.written for source in SOURCES.values()), "module:callable")


def load_own(name: str, data_dir: str | Path | None, given: Mapping[str, Any]) -> Data:
    """A data set of the user's own, checked.

    Args:
        name: with a colon in it.
        data_dir: for `tfds:NAME`.
        given: options, see `Options`; a function of the user's own gets them as keywords.

    Raises:
        ArgumentError: a function that is not there or fails, or an unknown option.
        DataError: what came is no data set.
    """
    kind, _, what = name.partition(":")
    if kind in SOURCES:
        options = options_of(given)
        arrays = SOURCES[kind].read(what, options, data_dir)
        # A size that the reader has used already changes nothing the second time.
        return from_arrays(arrays, name, **options._asdict())
    returns = "a jprune.base.Data, such as jprune.data.from_arrays(...)"
    help_ = f"Data sets are written {', '.join(WRITTEN)}."
    with targets.current_directory():
        function = targets.find(name, returns, help_)
        loaded = targets.attempt(f"{name}({_keywords(given)})", help_, function, **given)
    if not isinstance(loaded, Data):
        raise errors.DataError(f"{name} returned a {type(loaded).__name__}; expected {returns}.")
    return checked(loaded, name)


def _keywords(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def checked(loaded: Data, name: str) -> Data:
    """A data set of the user's own under a name, once a batch of each split fits what it says.

    Raises:
        DataError: a split is missing, or a batch has other keys, shapes or labels.
    """
    sizes = {split: loaded.sizes.get(split, 0) for split in ("train", "validation", "test")}
    if min(sizes.values()) < 1:
        raise errors.DataError(
            f"{name} has splits of {loaded.sizes}; expected train, validation and test, with one "
            "example or more each."
        )
    for split, size in sizes.items():
        count = min(size, 2)
        batch = targets.attempt(
            f"{name}, batches({split!r}, {count})", "help(jprune.base.Data) says what it takes.",
            lambda split=split, count=count: next(iter(loaded.batches(split, count))),
        )  # fmt: skip
        shapes = {key: np.shape(batch[key]) for key in ("image", "label", "weight") if key in batch}
        wanted = {"image": (count, *loaded.shape), "weight": (count,)}
        if len(shapes) < 3 or any(shapes[key] != shape for key, shape in wanted.items()):
            raise errors.DataError(
                f"{name} gave a batch of {split} with {shapes or [*batch]}; expected image "
                f"{wanted['image']}, label ({count}, ...) and weight ({count},)."
            )
        labels = np.asarray(batch["label"])
        outside = (
            labels.size
            and loaded.classes
            and not 0 <= labels.min() <= labels.max() < loaded.classes
        )
        if outside or not np.isfinite(np.asarray(batch["image"])).all():
            raise errors.DataError(
                f"{name} gave a batch of {split} with labels {labels.min()}..{labels.max()} for "
                f"{loaded.classes} classes, or pixels that are not finite."
            )
    return loaded._replace(name=name)
