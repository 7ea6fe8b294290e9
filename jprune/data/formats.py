"""Decoders of the source files, from bytes to arrays."""

import io
import json
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

from jprune import errors
from jprune.data.batches import Split


def mnist(files: Mapping[str, bytes]) -> dict[str, Split]:
    """Decodes the four idx files of MNIST and of sets in the same format.

    Args:
        files: {name: content} of `{train,t10k}-{images-idx3,labels-idx1}-ubyte`.

    Returns:
        "train" and "test".

    Raises:
        DataError: a file is no idx file of bytes, or has another number of axes.
    """
    return {
        split: Split(
            idx(files[f"{prefix}-images-idx3-ubyte"], 3)[..., None],
            idx(files[f"{prefix}-labels-idx1-ubyte"], 1).astype(np.int32),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def idx(content: bytes, axes: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes.

    It holds two zeros, the type 8, the number of axes, their lengths (big-endian), then the bytes.

    Args:
        content: of the file.
        axes: how many it should have.

    Returns:
        uint8 array.

    Raises:
        DataError: it is no such file, or shorter or longer than its header says.

    Example:
        >>> idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), 1).tolist()
        [7, 9]
    """
    # Magic of 4 bytes, then a big-endian uint32 (">u4") for the length of every axis.
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes([0, 0, 8, axes]):
        raise errors.DataError(
            f"Expected an idx file of bytes with {axes} axes; it begins with {content[:4].hex()}."
        )
    shape = tuple(int(n) for n in np.frombuffer(content[4:header], ">u4"))
    if len(content) - header != math.prod(shape):
        raise errors.DataError(
            f"An idx file of shape {shape} needs {math.prod(shape)} bytes after its header; there "
            f"are {len(content) - header}. It is damaged."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def cifar10(files: Mapping[str, bytes]) -> dict[str, Split]:
    """Decodes six pictures in which every row is one 32 x 32 image, and two lists of labels.

    Args:
        files: {name: content} of `data_batch_{1..5}.png`, `test_batch.png`, `train_lables.json`,
            `test_lables.json` (spelt so).

    Returns:
        "train" and "test".

    Raises:
        DataError: a file cannot be read, or a row has not 32 x 32 pixels.
    """
    train = [f"data_batch_{number}.png" for number in range(1, 6)]
    return {
        "train": Split(
            np.concatenate([_rows(files[name], name) for name in train]),
            _list(files["train_lables.json"], "train_lables.json"),
        ),
        "test": Split(
            _rows(files["test_batch.png"], "test_batch.png"),
            _list(files["test_lables.json"], "test_lables.json"),
        ),
    }


def cifar100(files: Mapping[str, bytes]) -> dict[str, Split]:
    """Decodes the two binary files of CIFAR-100; labels are the 100 fine ones.

    An example is a byte of the coarse label, one of the fine label, and 32 x 32 pixels of each
    colour after the other.

    Args:
        files: {name: content} of `train.bin` and `test.bin`.

    Returns:
        "train" and "test".

    Raises:
        DataError: a file is no whole number of examples long.

    Example:
        >>> content = bytes([3, 41]) + bytes([7] * 1024 + [8] * 1024 + [9] * 1024)
        >>> split = cifar100({"train.bin": content, "test.bin": content})["test"]
        >>> split.labels.tolist(), split.images[0, 0, 0].tolist()
        ([41], [7, 8, 9])
    """
    splits = {}
    for split in ("train", "test"):
        content = files[f"{split}.bin"]
        if not content or len(content) % (2 + 3 * 1024):
            raise errors.DataError(
                f"{split}.bin has {len(content)} bytes; expected a multiple of 3074, one label of "
                "each kind and 32 x 32 x 3 pixels an example."
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, 2 + 3 * 1024)
        # [n, colour, h, w] -> [n, h, w, colour]
        images = rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = Split(np.ascontiguousarray(images), rows[:, 1].astype(np.int32))
    return splits


def _rows(content: bytes, name: str) -> np.ndarray:
    """uint8 [n, 32, 32, 3] from a picture of n rows."""
    try:
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise errors.DataError(f"{name} is no picture that Pillow reads: {error}.") from error
    if picture.shape[1] != 32 * 32:
        raise errors.DataError(
            f"{name} has rows of {picture.shape[1]} pixels; expected 1024, one 32 x 32 image each."
        )
    # A row's 1024 pixels are an image in row-major order.
    return picture.reshape(-1, 32, 32, 3)


def _list(content: bytes, name: str) -> np.ndarray:
    """int32 [n] from a JSON list."""
    try:
        return np.asarray(json.loads(content), np.int32)
    except (ValueError, TypeError, OverflowError) as error:
        raise errors.DataError(f"{name} is no list of labels: {error}.") from error
