"""PyTorch checkpoints as NumPy arrays, without torch.

Three formats, told apart by their first bytes: the zip archive of torch 1.6 and later, the stream
of pickles before it, and safetensors. Files may come from anywhere: `torch_pickle.py` runs nothing
of them, sizes are compared with the file before they are used, and the arrays are views into its
bytes, so that a file takes about as much memory as it is long.
"""

import io
import itertools
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune import errors, foreign
from jprune.zoo import torch_pickle
from jprune.zoo.torch_pickle import Storage, Tensor, show

# Where training scripts put the state dict.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")

ZIP = b"PK\x03\x04"
# The end of a zip archive and a row of its directory, in the layout of the module `struct`.
ZIP_END = struct.Struct("<4sHHHHIIH")
ZIP_ROW = struct.Struct("<4s4xHH4xIIIHHH8xI")

PROTOCOL = b"\x80"
STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_VERSION = 1001

MAX_HEADER = 2**22  # a parsed header takes about twenty times the memory
SAFE_TYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a PyTorch checkpoint.

    The state dict is the whole file or stands in it under "state_dict", "model_state_dict", "model"
    or "net". Other entries (epochs, the optimizer) are ignored.

    Args:
        path: a file of `torch.save` (any version since 0.1.10; usually .pth, .pt or .th) or of
            safetensors. The name does not matter.

    Returns:
        {name: array}, with torch's names, axes and types, in the order of the file. The arrays are
        views of the file's bytes and cannot be written to.

    Raises:
        CheckpointError: there is no such file; it is damaged; it wants something that a state dict
            does not need, such as running code; or there is no tensor in it.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise errors.CheckpointError("there is no file of this name.")
        content = foreign.content(path)
        # 512 bytes: the mark of a tar archive stands at byte 257, the marks of the others at the
        # beginning.
        return _reader(content[:512])(content)
    except (OSError, ValueError, LookupError, struct.error) as error:
        # What damaged bytes lead to.
        raise errors.CheckpointError(f"{path}: {foreign.line(error)}") from error


def _reader(head: bytes) -> Any:
    """The function that reads a file with these first bytes."""
    if head[8:9] == b"{":  # before it stands a length, which may begin like anything
        return _read_safetensors
    if head.startswith(ZIP):
        return _read_zip
    if head.startswith(PROTOCOL):
        return _read_stream
    if head[257:262] == b"ustar":
        raise errors.CheckpointError(
            "this is a tar archive of torch 0.1.9 or older. Load and save it with a newer torch."
        )
    raise errors.CheckpointError(
        f"this is no PyTorch checkpoint: it begins with {head[:8].hex() or 'nothing'}. Expected a "
        "file of torch.save (.pth, .pt, .th) or of safetensors."
    )


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    """Reads an archive of `NAME/data.pkl` and one file `NAME/data/KEY` for each storage."""
    entries = _zip_entries(content)
    # The root is the name that the file had when it was saved, so it is read off and not assumed.
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise errors.CheckpointError(
            f"the zip archive has {len(pickles)} files data.pkl; torch.save writes one."
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and bytes(_zip_data(entries, f"{root}byteorder")) != b"little":
        raise errors.CheckpointError("it was saved on a big-endian machine. Save it on another.")
    value, _ = torch_pickle.read(io.BytesIO(_zip_data(entries, pickles[0])))
    tensors = _state_dict(value)
    # Only storages of the state dict: those of an optimizer beside it are not even checksummed.
    keys = {tensor.storage.key for tensor in tensors.values()}
    buffers = {key: _zip_data(entries, f"{root}data/{key}") for key in keys}
    return {name: _array(tensor, buffers[tensor.storage.key]) for name, tensor in tensors.items()}


def _zip_entries(content: bytes) -> dict[str, tuple[memoryview, int]]:
    """{name: (bytes, CRC)} of a zip archive whose entries are stored as they are.

    Torch compresses nothing, and compressed entries are refused: no entry is longer in memory
    than in the file, so that a small file cannot fill the memory.
    """
    # The directory's end record is the last thing in the file; a comment behind it is allowed.
    end = content.rfind(b"PK\x05\x06")
    if end < 0:
        raise errors.CheckpointError("the zip archive has no directory. It is truncated.")
    _, disk, _, _, rows, _, position, _ = ZIP_END.unpack_from(content, end)
    # All ones in the 32-bit offset mean that the true one stands in a zip64 record.
    if disk or position == 0xFFFFFFFF:
        raise errors.CheckpointError("the zip archive is split, or larger than 4 GB.")
    entries = {}
    ends: list[tuple[int, int]] = []
    for _ in range(rows):
        mark, flags, method, crc, packed, size, name_size, extra, comment, local = (
            ZIP_ROW.unpack_from(content, position)
        )
        position += ZIP_ROW.size
        name = content[position : position + name_size].decode()
        position += name_size + extra + comment
        if mark != b"PK\x01\x02" or content[local : local + 4] != ZIP or name in entries:
            raise errors.CheckpointError(
                f"the directory of the zip archive is damaged at {show(name)}."
            )
        # method 0: stored; bit 0 of the flags: encrypted
        if method or flags & 1 or packed != size:
            raise errors.CheckpointError(
                f"{show(name)} of the zip archive is compressed or encrypted; torch.save stores "
                "plain bytes."
            )
        # The extra field of the entry itself has another length than that of the directory: torch
        # pads it, so that arrays are aligned. Hence the two lengths at bytes 26 and 28 of the local
        # header.
        local_name, local_extra = struct.unpack_from("<HH", content, local + 26)
        start = local + 30 + local_name + local_extra
        data = memoryview(content)[start : start + size]
        if len(data) < size:
            raise errors.CheckpointError(f"{show(name)} of the zip archive is cut off.")
        entries[name] = data, crc
        ends.append((start, start + size))
    # Entries that share bytes would be checked once for each name: hours for a few megabytes.
    ends.sort()
    if any(start < before for (_, before), (start, _) in itertools.pairwise(ends)):
        raise errors.CheckpointError("entries of the zip archive overlap; torch.save writes none.")
    return entries


def _zip_data(entries: Mapping[str, tuple[memoryview, int]], name: str) -> memoryview:
    """The bytes of an entry, if their checksum is right."""
    if name not in entries:
        raise errors.CheckpointError(
            f"the zip archive has no {show(name)}, which its pickle needs."
        )
    data, crc = entries[name]
    if zlib.crc32(data) != crc:
        raise errors.CheckpointError(f"{show(name)} of the zip archive has a wrong checksum.")
    return data


def _read_stream(content: bytes) -> dict[str, np.ndarray]:
    """Reads five pickles (magic, version, system, value, keys of storages), then the storages."""
    stream = io.BytesIO(content)
    magic, version, system = (torch_pickle.read(stream)[0] for _ in range(3))
    if magic != STREAM_MAGIC or version != STREAM_VERSION or not isinstance(system, dict):
        raise errors.CheckpointError("this is a pickle, but not of torch.save.")
    if system.get("little_endian") is not True:
        raise errors.CheckpointError("it was saved on a big-endian machine. Save it on another.")
    # Here the pickles do not refer to bytes but to keys; the bytes follow in the order of the
    # fifth.
    value, storages = torch_pickle.read(stream)
    keys, _ = torch_pickle.read(stream)
    tensors = _state_dict(value)
    buffers = _stream_buffers(content, stream.tell(), keys, storages)
    missing = [
        tensor.storage.key for tensor in tensors.values() if tensor.storage.key not in buffers
    ]
    if missing:
        raise errors.CheckpointError(f"storage {show(missing[0])} is not in the file.")
    return {name: _array(tensor, buffers[tensor.storage.key]) for name, tensor in tensors.items()}


def _stream_buffers(
    content: bytes, position: int, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, memoryview]:
    """The bytes of the storages: each is a count of 8 bytes and the numbers."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise errors.CheckpointError("the keys of the storages are no list of strings.")
    buffers = {}
    for key in keys:
        if key not in storages:
            raise errors.CheckpointError(f"nothing says of what type storage {show(key)} is.")
        storage = storages[key]
        (size,) = struct.unpack_from("<q", content, position)
        if size != storage.size:
            raise errors.CheckpointError(
                f"storage {show(key)} has {size} numbers; {show(storage.size)} were announced."
            )
        # [count: 8 bytes][numbers: count * itemsize], one storage behind the other
        position += 8
        buffers[key] = memoryview(content)[position : position + size * storage.dtype.itemsize]
        position += size * storage.dtype.itemsize
    # Views do not copy: a storage that is cut off would only show when it is used.
    if position != len(content):
        raise errors.CheckpointError(
            f"the storages end at byte {show(position)}, the file at {len(content)}. It is damaged."
        )
    return buffers


def _state_dict(value: Any) -> dict[str, Tensor]:
    """{name: tensor}, also where the state dict is nested in a dict of the training script."""
    for _ in CONTAINERS:  # a dict could hold itself
        inner = (
            [value[key] for key in CONTAINERS if key in value] if isinstance(value, dict) else []
        )
        value = next((item for item in inner if isinstance(item, dict)), value)
    items = value.items() if isinstance(value, dict) else ()
    tensors = {
        name: item for name, item in items if isinstance(name, str) and isinstance(item, Tensor)
    }
    if not tensors:
        raise errors.CheckpointError(
            f"there is no state dict in it, but {show(value)}"
            + (f" with the keys {', '.join(map(show, list(value)[:8]))}" if items else "")
            + f". Save model.state_dict(), alone or under {show(CONTAINERS[0])}."
        )
    return tensors


def _array(tensor: Tensor, buffer: memoryview) -> np.ndarray:
    """A view of a storage."""
    storage, offset, shape, strides = tensor
    expected = storage.size * storage.dtype.itemsize
    if len(buffer) != expected:
        raise errors.CheckpointError(
            f"storage {show(storage.key)} has {len(buffer)} bytes; {show(expected)} were announced."
        )
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    size = storage.dtype.itemsize
    # A view, not a copy. `torch_pickle` has checked that offset, shape and strides stay inside.
    return np.ndarray(
        shape, storage.dtype, buffer, offset * size, tuple(stride * size for stride in strides)
    )


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """Reads the length of the header (8 bytes), the header (JSON), and the numbers (no gaps).

    The format keeps no order, so the names are sorted: "layer10" comes after "layer2".
    """
    (size,) = struct.unpack_from("<Q", content)
    # Compared before anything of that size is made: the number comes from the file.
    if size > len(content) - 8:
        raise errors.CheckpointError(
            f"its header announces {size} bytes, the file has {len(content)}. It is truncated."
        )
    if size > MAX_HEADER:
        raise errors.CheckpointError(f"its header has {size} bytes; expected {MAX_HEADER} at most.")
    header = foreign.parse(content[8 : 8 + size])
    foreign.check(header, dict[str, Any], "its header")
    header.pop("__metadata__", None)
    ranges = {name: _safe_range(name, row) for name, row in header.items()}
    position = 0
    # Sorted ranges that begin where the one before ends can neither overlap nor leave a gap: no
    # byte is read twice, and none is hidden.
    for start, stop in sorted(ranges.values()):
        if start != position:
            raise errors.CheckpointError(
                f"its tensors overlap or leave a gap at byte {show(position)} of the data."
            )
        position = stop
    data = memoryview(content)[8 + size :]
    if position != len(data) or not ranges:
        raise errors.CheckpointError(
            f"its header describes {show(position)} bytes of data, the file has {len(data)}."
        )
    return {
        name: np.ndarray(
            header[name]["shape"], SAFE_TYPES[header[name]["dtype"]], data, ranges[name][0]
        )
        for name in sorted(ranges, key=natural)
    }


def _safe_range(name: str, row: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= set(row):
        raise errors.CheckpointError(f"the header says nothing of use about {show(name)}.")
    if not isinstance(row["dtype"], str) or row["dtype"] not in SAFE_TYPES:
        raise errors.CheckpointError(
            f"{show(name)} is of the type {show(row['dtype'])}; expected one of "
            f"{', '.join(SAFE_TYPES)}."
        )
    torch_pickle.require_sizes(f"the shape of {show(name)}", row["shape"])
    torch_pickle.require_sizes(f"the data_offsets of {show(name)}", row["data_offsets"])
    # Python's integers do not overflow, so a huge shape cannot look small.
    size = math.prod(row["shape"]) * SAFE_TYPES[row["dtype"]].itemsize
    ends = row["data_offsets"]
    if len(ends) != 2 or ends[1] - ends[0] != size:
        raise errors.CheckpointError(
            f"{show(name)} of shape {show(row['shape'])} has {show(size)} bytes; its data_offsets "
            f"are {show(ends)}."
        )
    return ends[0], ends[1]


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, with the numbers in them as numbers.

    Example:
        >>> sorted(["layer10", "layer2.1", "layer2"], key=natural)
        ['layer2', 'layer2.1', 'layer10']
    """
    parts = re.split(r"(\d+)", name)  # text and digits in turn
    return [(len(part), part) if part.isdecimal() else (0, part) for part in parts]
