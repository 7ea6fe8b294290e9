"""The methods by name, discovered: every other file of this room defines some in `METHODS`."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from jprune import errors, survey
from jprune.base import Budget, Recipe

Factory = Callable[..., Recipe]
"""`factory(budget, train, finetune, **options) -> recipe`."""

NO_RECIPES = ("methods", "options")
"""Files of this room that hold no method."""


def modules() -> dict[str, ModuleType]:
    """{method: the module of its recipe}, in the order of file names.

    Raises:
        ImportError: two files claim one name.
    """
    package = importlib.import_module(__name__.rpartition(".")[0])
    by_name: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if info.name.rpartition(".")[2] in NO_RECIPES:
            continue
        # Importing all recipes costs no tracing: a recipe file holds functions only.
        module = importlib.import_module(info.name)
        for name in module.METHODS:
            if name in by_name:
                raise ImportError(
                    f"{module.__name__} and {by_name[name].__name__} both define the method "
                    f"{name!r}. Rename one of them in its METHODS."
                )
            by_name[name] = module
    return by_name


def _checked(name: str, factory: Factory) -> Factory:
    """The factory of a method, which says what it takes where something else comes.

    Whoever goes through all methods calls them alike; Python would count arguments.
    """
    finetunes = "finetune" in inspect.signature(factory).parameters
    takes = "budget, train, finetune" if finetunes else "budget, train"

    # A partial says nothing of itself; names and words are those of the function within.
    @functools.wraps(getattr(factory, "func", factory))
    def make(*stages: Any, **options: Any) -> Recipe:
        if not finetunes and (len(stages) > 2 or "finetune" in options):
            raise errors.ArgumentError(
                f"{no_finetuning(name)} Leave it out: find({name!r})({takes})."
            )
        first = stages[0] if stages else options.get("budget")
        if not isinstance(first, Budget):
            raise errors.ArgumentError(
                f"the method {name} got {_named(first)} as its budget. Write "
                f"find({name!r})({takes}), the budget being jprune.Budget(macs=0.5) or another."
            )
        return factory(*stages, **options)

    # Options and their defaults are the partial's.
    vars(make)["__wrapped__"] = factory
    return make


def _named(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.60}"


def no_finetuning(name: str) -> str:
    """Says that a method has no fine-tuning."""
    return f"the method {name} has no fine-tuning: it trains as the dense net is trained."


METHODS: dict[str, Factory] = {
    name: _checked(name, module.METHODS[name]) for name, module in modules().items()
}
"""{name on the command line: factory}."""


def find(name: str) -> Factory:
    """The factory of a method.

    Args:
        name: as on the command line.

    Raises:
        ArgumentError: there is no such method, or the survey's is not implemented; the message
            suggests the nearest.

    Example:
        >>> find("tailor")
        Traceback (most recent call last):
        jprune.errors.ArgumentError: There is no method 'tailor'; did you mean taylor? ...
    """
    if name not in METHODS and (papers := survey.papers_of(name)):
        raise errors.ArgumentError(
            f"the method {name!r} ({papers[0].fields['title']}) is known and not implemented yet. "
            f"The methods are {', '.join(METHODS)}."
        )
    if name not in METHODS:
        hint = errors.nearest(name, METHODS)
        raise errors.ArgumentError(
            f"There is no method {name!r}; {hint}The methods are {', '.join(METHODS)}; see "
            "`jprune methods`."
        )
    return METHODS[name]
