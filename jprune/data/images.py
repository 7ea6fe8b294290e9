"""Images through Pillow: decoding, and one size and number of channels for all."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jprune import errors, foreign
from jprune.foreign import shown

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""Formats of Pillow that are read: for others it starts programs (EPS) or few have looked."""
MODES = {1: "L", 3: "RGB"}


def decoded(source: Path | bytes, where: str, channels: int | None = None) -> np.ndarray:
    """uint8 [h, w, c] of a file, or of what is in it; upright, if a camera says how it was held.

    Args:
        source: a path, or the content.
        where: what the messages call it.
        channels: 1 or 3; None: 1 for grey images, 3 for all others.

    Raises:
        DataError: it is no image that Pillow reads.
    """
    try:
        bytes_of = foreign.content(source) if isinstance(source, Path) else source
        opened = Image.open(io.BytesIO(bytes_of), formats=FORMATS)
        image = ImageOps.exif_transpose(opened)
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
        pixels = np.asarray(image.convert(MODES[channels or (1 if grey else 3)]))
    # Pillow raises these for what is damaged, huge or something else.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise errors.DataError(
            f"{shown(where)} is no image that Pillow reads: {shown(error, 100)}"
        ) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image cropped around its centre to the proportions of a size, and resized to it.

    Args:
        image: uint8 [h, w, c].
        size: (height, width).

    Example:
        >>> fitted(np.zeros((20, 24, 3), np.uint8), (8, 8)).shape
        (8, 8, 3)
    """
    if image.shape[:2] == size:
        return image
    # Pillow has no images of one channel with an axis for it.
    flat = image[..., 0] if image.shape[2] == 1 else image
    small = ImageOps.fit(Image.fromarray(flat), (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(small).reshape(*size, image.shape[2])


def converted(images: np.ndarray, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """Images of one shape in another size or number of channels.

    Args:
        images: uint8 [n, h, w, c].
        size: (height, width), or None.
        channels: 1, 3 or None.

    Raises:
        DataError: images of neither 1 nor 3 channels that should be converted.
    """
    if size in (None, images.shape[1:3]) and channels in (None, images.shape[3]):
        return images
    if images.shape[3] not in MODES:
        raise errors.DataError(
            f"images of {images.shape[3]} channels cannot be resized or recoloured; those of 1 and "
            "3 can. Leave size and channels out."
        )
    resized = [*images] if size is None else [fitted(image, size) for image in images]
    return np.stack([_coloured(image, channels) for image in resized])


def _coloured(image: np.ndarray, channels: int | None) -> np.ndarray:
    if channels in (None, image.shape[2]):
        return image
    flat = image[..., 0] if image.shape[2] == 1 else image
    pixels = np.asarray(Image.fromarray(flat).convert(MODES[channels]))
    return pixels.reshape(*image.shape[:2], channels)


def stacked(
    images: Sequence[np.ndarray], names: Sequence[str], size: tuple[int, int] | None
) -> np.ndarray:
    """uint8 [n, h, w, c] of images of one number of channels.

    Args:
        images: uint8 [h, w, c] each.
        names: of the images, for the message.
        size: (height, width) to which they are resized; None: they must have one.

    Raises:
        DataError: images of different sizes, and no size; or of different channels.
    """
    images = images if size is None else [fitted(image, size) for image in images]
    for name, image in zip(names, images):
        if image.shape != images[0].shape:
            raise errors.DataError(
                f"{names[0]} is {list(images[0].shape)} and {name} is {list(image.shape)} (height, "
                "width, channels). Write size=32:32 (height and width, on the command line in "
                "--data-options) for one size, and channels=3 for coloured images."
            )
    return np.stack(images)
