"""Recipes: a survey method whole, as stages with the paper's defaults. One file each.

A recipe is a tuple of stages that turns a trained net into a pruned one. Every file here defines
`METHODS`: {name on the command line: factory}, where a factory takes `Settings` (what is common
to all methods) and returns the stages. `jprune methods` and `--method` know a method because its
file is here.

Read `settings.py` first, then `stages.py` (what a recipe is made of), then `three_step.py`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

from jprune import errors
from jprune.base import Recipe
from jprune.recipes.settings import Settings

Factory = Callable[[Settings], Recipe]


class Method(NamedTuple):
    """A method that the code has."""

    name: str
    factory: Factory
    module: str
    """Dotted name of its file."""


def methods() -> dict[str, Method]:
    """All methods that are implemented, by name; found by looking at the files of this folder."""
    found: dict[str, Method] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, factory in getattr(module, "METHODS", {}).items():
            found[name] = Method(name, factory, module.__name__)
    return found


def find(name: str) -> Method:
    """The method of a name.

    Raises:
        ArgumentError: no method has it; the nearest names are suggested.
    """
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise errors.ArgumentError(
            f"unknown method {name!r}.{hint} `jprune methods` lists those that are implemented."
        )
    return known[name]


__all__ = ["Factory", "Method", "Settings", "find", "methods"]
