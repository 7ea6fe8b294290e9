"""Which part of a leaf is kept, in any tree that repeats the paths of the variables.

Gradients, one collection, an optimizer's state: a leaf stands for the variable whose path, with or
without its collection, ends its own. It may have axes in front (states of seven seeds, the memory
of L-BFGS), or some of the variable's axes only (the rows and columns of Adafactor, and of SM3,
which has a list of them under the variable's path).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jprune import errors
from jprune.base import Groups
from jprune.graph.shrink.rules import Keep

Parts = tuple[str, ...]


class Leaves:
    """The variables of a net under masks, found by the paths of other trees."""

    def __init__(self, groups: Groups, keeps: Mapping[str, Sequence[Any]], dead: set[str]):
        self.shapes = {path: leaf.shape for path, leaf in groups.leaves.items()}
        self.keeps = {path: tuple(axes) for path, axes in keeps.items()}
        self.dead = dead
        self.whole = {tuple(path.split("/")): path for path in groups.leaves}
        self.endings: dict[Parts, list[str]] = {}
        for parts, path in self.whole.items():
            # "params/conv1/kernel" is also known as "conv1/kernel": gradients and optimizer states
            # repeat a collection's paths without its name.
            self.endings.setdefault(parts[1:], []).append(path)

    def keep(self, parts: Parts, shape: tuple[int, ...]) -> Keep | None:
        """What is kept of a leaf, per axis; None if it is wholly inside a removed branch.

        Raises:
            KeyError: the leaf stands for no variable.
            StructureError: it may stand for several, of which different parts are kept, or its
                shape is no variable's.
        """
        paths, axis = self.variables(parts), None
        if not paths and parts[-1].isdigit():
            paths, axis = self.variables(parts[:-1]), int(parts[-1])
        if not paths:
            raise KeyError(parts)
        if self.dead.issuperset(paths):
            return None
        # Scalars and placeholders: optimizers keep one number where a leaf has no state.
        if np.prod(shape) == 1 and shape not in [self.shapes[path] for path in paths]:
            return (None,) * len(shape)
        fitting = {path: self.kept_axes(path, shape, axis) for path in paths}
        several = {_key(keep): keep for keeps in fitting.values() for keep in keeps}
        if not several:
            raise self.other_shape(parts, f"of shape {shape}", paths[0])
        if len(several) > 1 or self.dead.intersection(paths):
            raise _which(parts, shape, paths)
        return next(iter(several.values()))

    def held(self, parts: Parts, leaf: Any) -> Keep | None:
        """As `keep`, of a kernel that is held as a leaf type: it stays whole, or goes.

        Raises:
            KeyError: it stands for no variable.
            StructureError: the masks cut it.
        """
        paths = self.variables(parts)
        if not paths:
            raise KeyError(parts)
        if self.dead.issuperset(paths):
            return None
        if any(keep is not None for path in paths for keep in self.keeps[path]):
            raise self.other_shape(parts, repr(leaf), paths[0])
        return ()

    def variables(self, parts: Parts) -> list[str]:
        """The variables whose paths, with or without their collections, end a path."""
        for start in range(len(parts)):
            if parts[start:] in self.whole:
                return [self.whole[parts[start:]]]
        for start in range(len(parts)):
            paths = self.endings.get(parts[start:], [])
            # {"online": state} says which of two collections is meant.
            named = [path for path in paths if path.split("/")[0] in parts[:start]]
            if paths:
                return named if len(named) == 1 else paths
        return []

    def kept_axes(self, path: str, shape: tuple[int, ...], axis: int | None) -> list[Keep]:
        """What may be kept of an array that stands for a variable, or for one axis of it."""
        full, keeps = self.shapes[path], self.keeps[path]
        if axis is not None:
            return [(keeps[axis],)] if shape == full[axis : axis + 1] else []
        more = len(shape) - len(full)
        if more >= 0:
            return [(None,) * more + keeps] if shape[more:] == full else []
        # Sums over some axes: the others are in order.
        chosen = itertools.combinations(range(len(full)), len(shape))
        return [
            tuple(keeps[axis] for axis in axes)
            for axes in chosen
            if tuple(full[axis] for axis in axes) == shape
        ]

    def is_like(self, parts: Parts, shape: tuple[int, ...]) -> bool:
        """Whether a variable that the masks cut has this shape, and a path that ends alike."""
        return any(
            parts[-1] in ("", path.split("/")[-1])  # a bare array has no path
            and self.shapes[path] == shape
            and any(keep is not None for keep in keeps)
            for path, keeps in self.keeps.items()
        )

    def other_shape(self, parts: Parts, what: str, path: str) -> errors.StructureError:
        """The error for a leaf that has a variable's path and not its shape."""
        return errors.StructureError(
            f"the leaf {'/'.join(parts)} is {what}; it stands for {path}, whose shape is "
            f"{self.shapes[path]}. slim_params takes trees of dense arrays, with axes in front of "
            "the variable's where several are stacked, and neither slim nor factored ones."
        )


def _which(parts: Parts, shape: tuple[int, ...], paths: Sequence[str]) -> errors.StructureError:
    """The error for a leaf of which several things may be kept."""
    if len(paths) == 1:
        return errors.StructureError(
            f"the leaf {'/'.join(parts)} has shape {shape}: it is not known which axes of "
            f"{paths[0]} these are. Make the state anew: optimizer.init(slim_params(...))."
        )
    name = paths[0].split("/")[0]
    return errors.StructureError(
        f"the leaf {'/'.join(parts)} may stand for {' or '.join(paths)}, of which the masks keep "
        f"different parts. Say which collection is meant: "
        f'slim_params(groups, masks, {{"{name}": tree}})["{name}"].'
    )


def _key(keep: Keep) -> tuple[bytes | None, ...]:
    """What two parts that are the same have in common."""
    return tuple(None if axis is None else axis.tobytes() for axis in keep)
