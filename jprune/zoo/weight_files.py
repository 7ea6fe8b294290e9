"""Files of trained weights: what they hold, read without running anything of theirs.

Told apart by their first bytes, whatever they are called: PyTorch checkpoints and safetensors
(`torch_files.py`), NumPy's .npz, Flax's .msgpack, Keras' .weights.h5 and .keras, and the
directories of Orbax. Files may come from anywhere. Shapes are known before an array is read, and
only arrays that fit a net are read: a file that announces more than that takes no memory.
"""

import importlib
import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import errors, foreign
from jprune.zoo import torch_files

Name = tuple[str, ...]
Arrays = dict[Name, np.ndarray]
MAX_DEPTH, MAX_ARRAYS = 32, 100_000


class WeightFile(NamedTuple):
    """The arrays of a file.

    Attributes:
        kind: "names": named as in the net that was saved; "torch": also in PyTorch's layout;
            "keras": (..., layer, number), in the order of the layer's variables.
        shapes: {name: shape and type}.
        read: `read(names) -> {name: array}`.
    """

    kind: str
    shapes: dict[Name, jax.ShapeDtypeStruct]
    read: Callable[[Iterable[Name]], Arrays]


def open_weights(path: str | Path, limit: int) -> WeightFile:
    """Looks into a file of weights.

    Args:
        path: a file, or a directory of Orbax.
        limit: bytes that what is read may take beyond the length of the file: some times what the
            net's variables take.

    Raises:
        CheckpointError: it is no such file, is damaged, or wants something that weights do not
            need.
        MissingExtraError: a file of Keras without h5py.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _orbax(path)
        head = foreign.content(path, head=16)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return _hdf(path)
        if head.startswith(torch_files.ZIP):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.endswith(".npy") for name in names):
                return _npz(path)
            if KERAS in names:
                return _keras(path, limit)
        # A map of MessagePack; a pickle begins with an empty one, which no file of weights is.
        if head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)) and head[8:9] != b"{":
            return _msgpack(path)
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{path}: {error}") from error
    except errors.MissingExtraError:
        raise
    except Exception as error:  # what damaged bytes lead to, in five libraries
        text = foreign.line(error, foreign.SHOWN)
        raise errors.CheckpointError(
            f"{path} cannot be read: it is damaged ({type(error).__name__}: {text})."
        ) from error
    tensors = torch_files.load(path)
    return _in_memory("torch", {tuple(name.split(".")): array for name, array in tensors.items()})


def _in_memory(kind: str, arrays: Mapping[Name, np.ndarray]) -> WeightFile:
    shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
    return WeightFile(kind, shapes, lambda names: {name: arrays[name] for name in names})


def _npz(path: Path) -> WeightFile:
    """Arrays of `np.savez`; the sizes of all headers are compared with those of the entries."""
    entries: dict[Name, zipfile.ZipInfo] = {}
    shapes: dict[Name, jax.ShapeDtypeStruct] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = tuple(info.filename.removesuffix(".npy").replace(".", "/").split("/"))
            with archive.open(info) as file:
                shape, _, dtype = _npy_header(info.filename, file)
                # Python's integers do not overflow, so a huge shape cannot look small.
                size = file.tell() + math.prod(shape) * dtype.itemsize
            if size != info.file_size:
                raise errors.CheckpointError(
                    f"the header of {info.filename!r:.80} announces {size} bytes, and it has "
                    f"{info.file_size}."
                )
            entries[name], shapes[name] = info, jax.ShapeDtypeStruct(shape, dtype)

    def read(names: Iterable[Name]) -> Arrays:
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            for name in names:
                with archive.open(entries[name]) as file:
                    shape, column_major, dtype = _npy_header(entries[name].filename, file)
                    content = file.read(math.prod(shape) * dtype.itemsize)
                order = "F" if column_major else "C"
                arrays[name] = np.frombuffer(content, dtype).reshape(shape, order=order)
        return arrays

    return WeightFile("names", shapes, read)


def _npy_header(name: str, file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of an entry."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise errors.CheckpointError(f"{name!r:.80} is of NumPy's format {version}; 1.0 is usual.")
    shape, column_major, dtype = readers[version](file)
    if dtype.kind not in "biufcV" or dtype.hasobject:
        raise errors.CheckpointError(
            f"{name!r:.80} holds {dtype}; numbers are read, and no pickled objects."
        )
    return shape, column_major, dtype


def _msgpack(path: Path) -> WeightFile:
    """What `flax.serialization.to_bytes` wrote; arrays are views into the file's bytes."""
    from flax import serialization

    tree = serialization.msgpack_restore(foreign.content(path))
    return _in_memory("names", {name: leaf for name, leaf in _leaves(tree) if _is_array(leaf)})


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)


def _leaves(tree: Any) -> list[tuple[Name, Any]]:
    part = lambda key: jax.tree_util.keystr((key,), simple=True)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # Names with dots and slashes in them are split there, as those of the net are.
    split = lambda path: tuple(word for key in path for word in split_name(part(key)))
    return [(split(path), leaf) for path, leaf in leaves]


def split_name(name: str) -> Name:
    """A name's parts between dots and slashes.

    Example:
        >>> split_name("layers.3/kernel")
        ('layers', '3', 'kernel')
    """
    return tuple(name.replace("%2E", ".").replace("%25", "%").replace(".", "/").split("/"))


KERAS = "model.weights.h5"


def _keras(path: Path, limit: int) -> WeightFile:
    """The weights within a .keras archive; its configuration, which can hold code, is not read."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(KERAS)
        most = path.stat().st_size + limit
        if info.file_size > most:
            raise errors.CheckpointError(
                f"its {KERAS} would take {info.file_size} bytes; the file and the net make at most "
                f"{most} likely."
            )
        content = archive.read(info)
    return _hdf(io.BytesIO(content))


def _hdf(source: Any) -> WeightFile:
    """The variables of Keras layers, each under the layer's name and its number there."""
    try:
        # It says nothing about its types.
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise errors.MissingExtraError(
            "a file of Keras needs h5py, which cannot be imported. Run: pip install 'jprune[keras]'"
        ) from error

    places: dict[Name, str] = {}
    shapes: dict[Name, jax.ShapeDtypeStruct] = {}
    seen: set[Any] = set()

    def walk(group: Any, above: Name) -> None:
        if len(above) > MAX_DEPTH or len(places) > MAX_ARRAYS:
            raise errors.CheckpointError("it is nested too deeply, or has too many arrays.")
        for key in sorted(group, key=torch_files.natural):
            if not above and key == "optimizer":
                continue  # its averages have the shapes of layers
            # Other links lead to other files, or round in circles.
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise errors.CheckpointError(f"{key!r:.80} is a link to something else.")
            node = group[key]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:
                raise errors.CheckpointError(f"{key!r:.80} stands in it twice.")
            seen.add(address)
            if isinstance(node, h5py.Group):
                label = node.attrs.get("name") if key == "vars" else None
                walk(node, (*above[:-1], str(label)) if label else (*above, key))
            elif _check_dataset(key, node):
                name = (*above, key)
                name = name if name not in places else (*above, f"@{len(places)}", key)
                places[name] = node.name
                shapes[name] = jax.ShapeDtypeStruct(node.shape, node.dtype)

    with h5py.File(source, "r") as file:
        walk(file, ())

    def read(names: Iterable[Name]) -> Arrays:
        with h5py.File(source, "r") as file:
            return {name: np.asarray(file[places[name]]) for name in names}

    return WeightFile("keras", shapes, read)


def _check_dataset(key: str, node: Any) -> bool:
    """Whether a dataset is an array of numbers; refuses one whose bytes are not in the file."""
    if node.shape is None or node.dtype.kind not in "biuf":
        return False
    if node.external or node.is_virtual or node.compression not in (None, "gzip", "lzf"):
        raise errors.CheckpointError(
            f"{key!r:.80} does not stand in the file as it is (external, virtual, or compressed by "
            "a plug-in)."
        )
    stored, size = node.id.get_storage_size(), math.prod(node.shape) * node.dtype.itemsize
    if node.chunks is None and stored != size:
        raise errors.CheckpointError(
            f"{key!r:.80} announces {size} bytes, and the file has {stored} of them."
        )
    return True


def _orbax(path: Path) -> WeightFile:
    """The newest checkpoint of a directory of Orbax."""
    import orbax.checkpoint as ocp

    folder = _checkpoint_in(path)
    with ocp.PyTreeCheckpointer() as reader:
        metadata: Any = reader.metadata(folder.absolute())
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths, shapes = {}, {}
    for (name, leaf), (keys, _) in zip(_leaves(tree), leaves):
        dtype = getattr(leaf, "dtype", None)
        if getattr(leaf, "shape", None) is not None and dtype is not None:
            paths[name], shapes[name] = keys, jax.ShapeDtypeStruct(tuple(leaf.shape), dtype)

    def read(names: Iterable[Name]) -> Arrays:
        wanted = {jax.tree_util.keystr(paths[name]): name for name in names}
        # None in the place of everything else: only what fits the net is read.
        keep = lambda keys, _: wanted.get(jax.tree_util.keystr(keys))
        picked = jax.tree_util.tree_map_with_path(keep, tree)
        is_name = lambda node: isinstance(node, tuple) and node in paths
        item = jax.tree.map(lambda name: shapes[name], _pruned(picked, is_name), is_leaf=is_name)
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        arguments = ocp.args.PyTreeRestore(item=item, restore_args=plain, partial_restore=True)
        with ocp.PyTreeCheckpointer() as reader:
            restored = reader.restore(folder.absolute(), args=arguments)
        return dict(_leaves(restored))

    return WeightFile("names", shapes, read)


def _pruned(tree: Any, is_name: Callable[[Any], bool]) -> Any:
    """A tree without what holds no name."""
    if is_name(tree) or not isinstance(tree, dict | list | tuple):
        return tree
    if isinstance(tree, dict):
        nodes = {key: _pruned(node, is_name) for key, node in tree.items()}
        return {key: node for key, node in nodes.items() if node not in (None, {}, [])}
    return [_pruned(node, is_name) for node in tree]


MARK = "_METADATA"
"""File in a folder that Orbax has written a tree to."""


def _checkpoint_in(path: Path) -> Path:
    """The folder of a tree: this one, or that of the newest step under it."""
    if (path / MARK).is_file():
        return path
    steps = [folder for folder in path.iterdir() if folder.is_dir() and folder.name.isdecimal()]
    inside = max(steps, key=lambda folder: int(folder.name)) if steps else path
    if steps and (inside / MARK).is_file():
        return inside
    trees = [folder for folder in sorted(inside.iterdir()) if (folder / MARK).is_file()]
    if len(trees) == 1:
        return trees[0]
    names = ", ".join(str(folder) for folder in trees)
    raise errors.CheckpointError(
        f"it holds several trees: write one of {names}."
        if trees
        else f"this is no checkpoint of Orbax: there is no {MARK} in it."
    )
