"""The arrays of a file matched with the variables of a net, by names; and what did not fit."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import jax

from jprune import errors
from jprune.zoo.weight_files import Name, WeightFile, split_name

COLLECTIONS = ("params", "stats", "batch_stats", "variables", "state", "state_dict", "model")
"""Words before the names of a net, which two files of one net need not share."""
ORDER = (
    ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings", "w", "weight"),
    ("gamma", "scale"),
    ("bias", "beta", "b", "offset"),
    ("moving_mean", "mean"),
    ("moving_variance", "var"),
)
"""Names of a layer's variables, in the order in which Keras numbers them."""
SHOWN = 4


def net_names(variables: Any) -> dict[Name, Any]:
    """{name in parts: leaf} of a net's variables."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    part = lambda key: split_name(jax.tree_util.keystr((key,), simple=True))
    return {tuple(word for key in path for word in part(key)): leaf for path, leaf in leaves}


def bare(name: Name) -> Name:
    """A name without the collections before it.

    Example:
        >>> bare(("params", "params", "conv", "kernel")), bare(("model",))
        (('conv', 'kernel'), ('model',))
    """
    while len(name) > 1 and name[0] in COLLECTIONS:
        name = name[1:]
    return name


def by_name(wanted: Mapping[Name, Any], file: WeightFile) -> dict[Name, Name]:
    """{name in the net: name in the file} of all variables.

    Raises:
        StructureError: a name is missing, stands twice in the file, or has another shape; the
            message lists what did not fit on either side.
    """
    there: dict[Name, list[Name]] = defaultdict(list)
    for name in file.shapes:
        there[bare(name)].append(name)
    # What the net itself calls the same but for its collections must be whole in the file.
    counts = Counter(map(bare, wanted))
    pairs: dict[Name, Name] = {}
    missing: list[str] = []
    for name, leaf in wanted.items():
        same = there.get(bare(name), []) if counts[bare(name)] == 1 else []
        same = [name] if name in file.shapes else same
        if len(same) > 1:
            raise errors.StructureError(
                f"the file has {' and '.join(map('/'.join, same))} for the net's "
                f"{'/'.join(name)}. Save one of them alone."
            )
        shape = tuple(file.shapes[same[0]].shape) if same else None
        if shape != tuple(leaf.shape):
            has = f", and {list(shape)} in the file" if shape is not None else ""
            missing.append(f"{'/'.join(name)} {list(leaf.shape)}{has}")
        else:
            pairs[name] = same[0]
    if missing:
        raise errors.StructureError(_report(missing, len(wanted), file, {*pairs.values()}))
    return pairs


def _report(missing: list[str], count: int, file: WeightFile, used: set[Name]) -> str:
    rest = [f"{'/'.join(n)} {list(s.shape)}" for n, s in file.shapes.items() if n not in used]
    listed = lambda texts: (
        "; ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
    )
    none = f": {listed(missing)}" if missing else ""
    return (
        f"{len(missing)} of the net's {count} arrays have no partner{none}. Of the "
        f"file's, {len(rest)} were not used{': ' + listed(rest) if rest else ''}. Build the net "
        "with the image shape, the classes and the options that the file was trained with."
    )


def by_layer(wanted: Mapping[Name, Any], file: WeightFile) -> dict[Name, Name]:
    """{name in the net: name in the file} for files in which layers number their variables.

    Layers are matched by their names where all of the net's are there, else the n-th with certain
    shapes is the n-th with these shapes.

    Raises:
        StructureError: a layer has no partner.
    """
    ours: dict[Name, list[Name]] = defaultdict(list)
    for name in wanted:
        ours[bare(name)[:-1]].append(name)
    ours = {layer: sorted(names, key=_position) for layer, names in ours.items()}
    theirs: dict[Name, list[Name]] = defaultdict(list)
    for name in file.shapes:
        theirs[name[:-1]].append(name)
    theirs = {layer: sorted(names, key=lambda n: int(n[-1])) for layer, names in theirs.items()}
    shapes = lambda names, of: tuple(tuple(of[name].shape) for name in names)
    named = {layer[-1]: layer for layer in theirs if layer}
    labels = [layer[-1] for layer in ours if layer]
    alike = len({*labels}) == len(ours) and len(named) == len(theirs) and {*labels} == {*named}
    waiting = defaultdict(list)
    for layer, names in theirs.items():
        waiting[shapes(names, file.shapes)].append(layer)
    pairs: dict[Name, Name] = {}
    missing: list[str] = []
    for layer, names in ours.items():
        same = [named[layer[-1]]] if alike else waiting[shapes(names, wanted)]
        partner = theirs[same.pop(0)] if same else []
        if shapes(names, wanted) == shapes(partner, file.shapes):
            pairs |= dict(zip(names, partner))
        else:
            missing.append(f"{'/'.join(layer)} {[list(wanted[name].shape) for name in names]}")
    # Layers that the net could have and has not: the file is of a larger one.
    sizes = {shapes(names, wanted) for names in ours.values()}
    more = [layer for size in sizes for layer in waiting[size]] if not alike else []
    if missing or more:
        raise errors.StructureError(_report(missing, len(wanted), file, {*pairs.values()}))
    return pairs


def _position(name: Name) -> int:
    places = [number for number, words in enumerate(ORDER) if name[-1] in words]
    return places[0] if places else len(ORDER)
