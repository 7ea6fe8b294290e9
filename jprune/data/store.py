"""Prepared data sets on disk: TFDS directories that can be read without TensorFlow.

`<data_dir>/<name>/1.0.0/` has array_record files with plain Tensor features. Directories of the
official TFDS builders (TFRecord) can be read too if TensorFlow is installed.
"""

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import tensorflow_datasets as tfds

from jprune import errors
from jprune.data.batches import Split
from jprune.data.table import Spec
from jprune.foreign import BYTES, check, content, parse, shown

VERSION = "1.0.0"
_PACKAGE = "tensorflow_datasets.core.features"
FEATURES = frozenset(
    f"{_PACKAGE}.{name}"
    for name in (
        *("features_dict.FeaturesDict", "class_label_feature.ClassLabel", "scalar.Scalar"),
        *("tensor_feature.Tensor", "image_feature.Image", "text_feature.Text"),
    )
)
"""Classes that `features.json` of a prepared set may name: any other would be imported."""


class _Split(TypedDict, total=False):
    name: str
    filepathTemplate: str


class _Info(TypedDict, total=False):
    name: str
    version: str
    splits: list[_Split]


_Described = TypedDict("_Described", {"dataset_info.json": _Info, "features.json": dict[str, Any]})


def folder(data_dir: str | Path | None = None) -> Path:
    """The folder of all prepared sets.

    Args:
        data_dir: the folder; None is `$JPRUNE_DATA`, else `jprune/data` in the user's cache folder
            (`$XDG_CACHE_HOME`, else `~/.cache`).
    """
    chosen = data_dir or os.environ.get("JPRUNE_DATA")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jprune" / "data"


def prepared(spec: Spec, data_dir: Path) -> Path | None:
    """The directory of a prepared set: ours, else the newest official one, else None."""
    ours = data_dir / spec.name / VERSION
    if (ours / "dataset_info.json").is_file():
        return ours
    official = [info.parent for info in (data_dir / spec.name).glob("[0-9]*/dataset_info.json")]
    return max(official, key=lambda path: tfds.core.Version(path.name), default=None)


def write(spec: Spec, splits: Mapping[str, Split], data_dir: Path) -> Path:
    """Writes a TFDS directory, completely or not at all.

    Args:
        spec: what the set is.
        splits: "train" and "test" as published.
        data_dir: folder of all prepared sets; created if it does not exist.

    Returns:
        The directory written.

    Raises:
        DataError: the folder cannot be written to.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{spec.name}-", dir=data_dir) as temporary:
            with _quiet():
                _builder(spec, splits, temporary).download_and_prepare()
            target = data_dir / spec.name / VERSION
            target.parent.mkdir(exist_ok=True)
            # A rename within one file system is atomic: an interrupted run leaves no half a set.
            os.rename(Path(temporary) / spec.name / VERSION, target)
    except OSError as error:
        raise errors.DataError(
            f"Cannot write {spec.name} to {data_dir}: {error}. Pass another folder, or set "
            "JPRUNE_DATA."
        ) from error
    return target


def read(spec: Spec, directory: Path) -> dict[str, Split]:
    """Reads a TFDS directory.

    Args:
        spec: what the set is.
        directory: of one version.

    Returns:
        "train" and "test".

    Raises:
        DataError: it cannot be read, or lacks a split or a feature.
        MissingExtraError: only TensorFlow can read it, and is not installed.
    """
    extra = (
        f"{directory} was made by an official TFDS builder, and only TensorFlow reads it. Install "
        f"the extra `tf` (pip install 'jprune[tf]'), or run `jprune data prepare {spec.name}`, "
        "which needs no TensorFlow."
    )
    with _opened(
        directory, extra, f"Delete it and run `jprune data prepare {spec.name}`."
    ) as builder:
        return {split: _split(builder, split) for split in ("train", "test")}


def foreign(name: str, places: Sequence[Path]) -> Path:
    """The directory of a set that TFDS has prepared.

    Args:
        name: `NAME`, `NAME/CONFIG`, or either with `:VERSION`; without one, the newest.
        places: folders to look in, in this order.

    Raises:
        DataError: it is in none of them.
    """
    path, _, version = name.partition(":")
    for place in places:
        infos = (place / path).glob(f"{version or '[0-9]*'}/dataset_info.json")
        if found := [info.parent for info in infos]:
            return max(found, key=lambda directory: tfds.core.Version(directory.name))
    raise errors.DataError(
        f"tfds:{name} is not prepared in {' or '.join(map(str, places))}. Prepare it there with "
        "tfds.builder(NAME, file_format='array_record').download_and_prepare(), or write "
        "--data-dir DIR (a set with configurations is written tfds:NAME/CONFIG)."
    )


def columns(
    directory: Path, splits: Collection[str]
) -> dict[str, tuple[Sequence[Any], np.ndarray]]:
    """The images and labels of a set that TFDS has prepared.

    Args:
        directory: of one version.
        splits: names of splits to read, of those that it has.

    Returns:
        {split: (images, labels)}; an image is an array, or the content of its file.

    Raises:
        DataError: it cannot be read, or has no images with labels.
        MissingExtraError: only TensorFlow can read it, and is not installed.
    """
    extra = (
        f"{directory} holds TFRecord files, which TensorFlow alone reads. Install the extra `tf` "
        "(pip install 'jprune[tf]'), or prepare it with file_format='array_record'."
    )
    with _opened(directory, extra, "Prepare it again.") as builder:
        features = builder.info.features
        keys = [str(key) for key in builder.info.supervised_keys or ("image", "label")]
        named = {*splits} & {*builder.info.splits}
        if not {*keys} <= {*features} or len(keys) != 2 or not named:
            raise errors.DataError(
                f"{directory} has the features {', '.join(features)} and the splits "
                f"{', '.join(builder.info.splits)}; expected image and label (or as_supervised "
                f"keys), and some of {', '.join(sorted(splits))}."
            )
        return {split: _columns(builder, split, *keys) for split in sorted(named)}


def _columns(builder: Any, split: str, image: str, label: str) -> tuple[Sequence[Any], np.ndarray]:
    if not _random_access(builder):
        rows = [*tfds.as_numpy(builder.as_dataset(split=split))]
    else:
        # Encoded images are decoded by Pillow later on: TFDS would want OpenCV or TensorFlow.
        encoded = isinstance(builder.info.features[image], tfds.features.Image)
        decoders = {image: tfds.decode.SkipDecoding()} if encoded else None
        source = builder.as_data_source(split=split, decoders=decoders)
        rows = source.__getitems__(range(len(source)))
    return [row[image] for row in rows], np.array([row[label] for row in rows])


@contextlib.contextmanager
def _opened(directory: Path, extra: str, instead: str) -> Iterator[Any]:
    """The builder of a directory; whatever goes wrong inside is said in our words.

    Args:
        directory: of one version.
        extra: says that TensorFlow is missing.
        instead: what to do where the directory is damaged.
    """
    try:
        _require_known(directory)
        builder = tfds.builder_from_directory(directory)
        if not _random_access(builder) and not importlib.util.find_spec("tensorflow"):
            raise errors.MissingExtraError(extra)
        yield builder
    except errors.JpruneError:
        raise
    except ImportError as error:  # to decode an image
        raise errors.MissingExtraError(extra) from error
    except Exception as error:  # TFDS and array_record raise anything on damaged files
        raise errors.DataError(f"{directory} cannot be read: {shown(error)}. {instead}") from error


def _require_known(directory: Path) -> None:
    """Refuses features of other classes than those that images and labels are made of.

    TFDS imports the module of whatever class `features.json` names, and opens whatever files
    `dataset_info.json` names.

    Raises:
        DataError: another class, or a file of another folder.
        ValueError: a file is missing, damaged or too large.
    """
    try:
        described: dict[str, Any] = {}
        for name in ("dataset_info.json", "features.json"):
            described[name] = parse(content(directory / name, BYTES))
        check(described, _Described, str(directory))
        classes = sorted({*_classes(described["features.json"])} - FEATURES)
        if classes:
            raise errors.DataError(
                f"{directory}/features.json names the class {shown(classes[0], 80)}, which "
                "is not imported by a file's word; images, labels, tensors and texts are read."
            )
        info = described["dataset_info.json"]
        for part in (info, *info.get("splits", [])):
            # TFDS makes names of files of them.
            for key in ("name", "version", "filepathTemplate"):
                if "/" in part.get(key, ""):
                    raise errors.DataError(
                        f"{directory}/dataset_info.json has {shown(part[key], 80)!r} at "
                        f"`{key}`, which leads out of the folder."
                    )
    except errors.CheckpointError as error:
        raise ValueError(str(error)) from error


def _classes(described: Any) -> Iterator[str]:
    """Names of all classes in a description of features, which may hold JSON as text."""
    waiting = [described]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                # As protocol buffers write it, as they may read it, and as TFDS wrote it until 4.5.
                if key in ("pythonClassName", "python_class_name", "type") and isinstance(
                    inner, str
                ):
                    yield inner
                if key == "json" and isinstance(inner, str):
                    waiting.append(parse(inner))
                waiting.append(inner)
        elif isinstance(value, list):
            waiting += value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the progress bars and download messages of TFDS."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def _random_access(builder: Any) -> bool:
    """Whether the files are array_record, which TFDS reads as data sources, without `tf.data`."""
    return builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD


def _split(builder: Any, split: str) -> Split:
    """One split in memory, in the order of its files."""
    if _random_access(builder):
        source = builder.as_data_source(split=split)
        rows = source.__getitems__(range(len(source)))
        images = np.stack([row["image"] for row in rows])
        return Split(images, np.array([row["label"] for row in rows]))
    columns = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    return Split(np.asarray(columns["image"]), np.asarray(columns["label"]))


def _builder(spec: Spec, splits: Mapping[str, Split], data_dir: str) -> Any:
    """A TFDS builder that writes arrays."""

    class Arrays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Images and labels as plain tensors, in the order of the source."""

        name = spec.name
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Tensor(shape=spec.shape, dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=spec.classes),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(split) for name, split in splits.items()}

        def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(zip(*split)):
                yield index, {"image": image, "label": int(label)}

    return Arrays(data_dir=data_dir, file_format="array_record")
