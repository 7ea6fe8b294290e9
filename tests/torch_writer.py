"""Checkpoints as PyTorch writes them, instruction by instruction, so that any pickle can be had."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np

from jprune.zoo import torch_files

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
SAFE = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class Code(bytes):
    """Instructions that leave one value on the stack."""


def code(value):
    """Instructions for a value; `Code` goes in as it is."""
    match value:
        case Code():
            return value
        case None | True | False:
            return Code({None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value])
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return Code(pickle.LONG1 + bytes([len(raw)]) + raw)
        case str():
            raw = value.encode()
            return Code(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)
        case tuple():
            return Code(pickle.MARK + b"".join(map(code, value)) + pickle.TUPLE)
        case list():
            items = b"".join(map(code, value))
            return Code(pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS)
        case dict():
            items = b"".join(code(key) + code(item) for key, item in value.items())
            return Code(pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS)
    raise TypeError(value)


def global_(module, name):
    return Code(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def call(function, *arguments):
    return Code(function + code(arguments) + pickle.REDUCE)


def storage(key, size, kind="FloatStorage"):
    return Code(code(("storage", global_("torch", kind), key, "cpu", size)) + pickle.BINPERSID)


def tensor(source, offset, shape, strides):
    hooks = call(global_("collections", "OrderedDict"))
    rebuild = global_("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, source, offset, shape, strides, False, hooks)


def program(value):
    return pickle.PROTO + b"\x02" + code(value) + pickle.STOP


def strides_of(array):
    return tuple(stride // array.itemsize for stride in array.strides)


def coded(arrays):
    """A state dict, every array contiguous in a storage of its own."""
    return {
        name: tensor(
            storage(str(key), array.size, STORAGES[array.dtype.name]),
            0,
            array.shape,
            strides_of(array),
        )
        for key, (name, array) in enumerate(arrays.items())
    }


def zip_file(value, buffers, root="archive", compression=zipfile.ZIP_STORED):
    """The bytes of a zip checkpoint."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", program(value))
        archive.writestr(f"{root}/byteorder", "little")
        for key, buffer in enumerate(buffers):
            archive.writestr(f"{root}/data/{key}", bytes(buffer))
        archive.writestr(f"{root}/version", "3\n")
    return file.getvalue()


def stream_file(value, storages, magic=torch_files.STREAM_MAGIC, little=True):
    """The bytes of a checkpoint of torch before 1.6; `storages` are (size, buffer)."""
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    keys = [str(key) for key in range(len(storages))]
    head = b"".join(map(program, (magic, 1001, system, value, keys)))
    return head + b"".join(struct.pack("<q", size) + bytes(buffer) for size, buffer in storages)


def safe_file(header, data=b""):
    """The bytes of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safe_of(arrays):
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        ends = [position, position + array.nbytes]
        header[name] = {
            "dtype": SAFE[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": ends,
        }
        position = ends[1]
    return safe_file(header, b"".join(array.tobytes() for array in arrays.values()))


def zip_of(arrays):
    return zip_file(coded(arrays), [array.tobytes() for array in arrays.values()])


def stream_of(arrays):
    return stream_file(coded(arrays), [(a.size, a.tobytes()) for a in arrays.values()])


FORMATS = {"zip": zip_of, "stream": stream_of, "safetensors": safe_of}


def read(path, content):
    """What `torch_files` finds in a file of these bytes."""
    path.write_bytes(content)
    return torch_files.load(path)


def small():
    """A state dict of every type."""
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "norm.running_mean": random.normal(size=4),
        "norm.num_batches_tracked": np.array(7, np.int64),
        "half": random.normal(size=(2, 2)).astype(np.float16),
        "int": np.arange(3, dtype=np.int32),
        "short": np.arange(3, dtype=np.int16),
        "byte": np.arange(3, dtype=np.int8),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.uint8),
    }


def ones(*shape):
    """A float32 array of ones."""
    return np.ones(shape, np.float32)
