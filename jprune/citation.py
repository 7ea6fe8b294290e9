"""`citation`: BibTeX of the papers behind whatever was used."""

import dataclasses
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jprune import errors, survey
from jprune.survey import Paper

_BLOCK = re.compile(r"^References:\n((?:[ \t]+.*(?:\n|\Z)|[ \t]*\n)+)", re.MULTILINE)
_ARXIV = re.compile(r"\barXiv[: ]\s*(\d{4}\.\d{4,5})", re.IGNORECASE)


def citation(*objects: Any) -> str:
    """BibTeX of the papers behind methods, functions, criteria, schedules, recipes.

    What an object cites stands in the References block of its docstring: its own, else that of the
    function that made it, else that of its module. Containers, stages and partial functions cite
    what their parts cite. Papers of `survey.bib` are printed whole; another one that a block gives
    an arXiv number for is printed as that number alone, and one without a number not at all.

    Args:
        *objects: anything; a string is the name of a method, such as "taylor".

    Returns:
        BibTeX entries, those of the survey in its order; empty where nothing is cited.

    Raises:
        ArgumentError: nothing was passed, or a name that is no method.

    Example:
        >>> from jprune import criteria, schedules
        >>> print(citation(criteria.random, schedules.cubic(0.1, 0, 10)))
        @inproceedings{mittal2018recovering,
        ...
        @misc{zhu2017prune,
        ...
    """
    if not objects:
        raise errors.ArgumentError(
            'citation got nothing; pass what was used, such as citation("taylor") or '
            "citation(criterion, schedule)."
        )
    named = {
        paper.key: paper for name in objects if isinstance(name, str) for paper in _of_method(name)
    }
    # Blocks are collected first, since papers are printed in the order of the survey.
    texts = [text for item in objects if not isinstance(item, str) for text in _texts(item)]
    cited = [p for p in survey.papers() if p.key in named or any(_cites(t, p) for t in texts)]
    numbers = {paper.fields.get("eprint") for paper in survey.papers()}
    # Each number once, in the order in which it was met.
    others = dict.fromkeys(n for text in texts for n in _ARXIV.findall(text) if n not in numbers)
    return "\n\n".join([*(paper.bibtex for paper in cited), *map(_unknown, others)])


def _of_method(name: str) -> tuple[Paper, ...]:
    papers = survey.papers_of(name)
    if not papers:
        raise errors.ArgumentError(
            f"there is no method {name!r} to cite; `jprune methods` lists their names. Pass an "
            "object itself, not its name."
        )
    return papers


def _cites(text: str, paper: Paper) -> bool:
    # By arXiv number, else by title; without the blanks a title could end within a word.
    return paper.fields.get("eprint", "-") in _ARXIV.findall(text) or (
        f" {_words(paper.fields['title'])} " in f" {_words(text)} "
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _unknown(number: str) -> str:
    return f"@misc{{arxiv{number},\n  eprint = {{{number}}},\n  archiveprefix = {{arXiv}},\n}}"


def _texts(item: Any, inside: tuple[int, ...] = ()) -> Iterator[str]:
    """References blocks of an object and its parts, lines joined."""
    # `inside` holds what is being looked at: an object that holds itself ends here. Strings are no
    # iterables of parts.
    if id(item) in inside or isinstance(item, (str, bytes, int, float, complex, type(None))):
        return
    for docstring in _docstrings(item):
        # The nearest docstring with a block: what a function cites counts more than what its module
        # does.
        if blocks := _BLOCK.findall(inspect.cleandoc(docstring)):
            yield " ".join(" ".join(blocks).split())
            break
    for part in _parts(item):
        yield from _texts(part, (*inside, id(item)))


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, functools.partial):
        return (item.func, *item.args, *item.keywords.values())
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [getattr(item, field.name) for field in dataclasses.fields(item)]
    if isinstance(item, Mapping):
        return item.values()
    return item if isinstance(item, (tuple, list)) else ()


def _docstrings(item: Any) -> Iterator[str]:
    """Docstrings of an object, of the function that made it, and of its module, in this order."""
    if isinstance(item, types.ModuleType):
        yield item.__doc__ or ""
        return
    named = item if hasattr(item, "__qualname__") else type(item)
    yield named.__doc__ or ""
    module = sys.modules.get(named.__module__)
    # A closure: `taylor.<locals>.score` cites what `taylor` does.
    if "<locals>" in named.__qualname__:
        made_in = getattr(module, named.__qualname__.split(".")[0], None)
        yield getattr(made_in, "__doc__", None) or ""
    if named is item:  # the module of a class is not about its instances
        yield getattr(module, "__doc__", None) or ""
