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
    texts = [text for thing in objects if not isinstance(thing, str) for text in _texts(thing)]
    known = [p for p in survey.papers() if p.key in named or any(_cites(t, p) for t in texts)]
    numbers = {paper.fields.get("eprint") for paper in survey.papers()}
    others = dict.fromkeys(n for text in texts for n in _ARXIV.findall(text) if n not in numbers)
    return "\n\n".join([*(paper.bibtex for paper in known), *map(_unknown, others)])


def _of_method(name: str) -> tuple[Paper, ...]:
    found = survey.papers_of(name)
    if not found:
        raise errors.ArgumentError(
            f"there is no method {name!r} to cite; `jprune methods` lists their names. Pass an "
            "object itself, not its name."
        )
    return found


def _cites(text: str, paper: Paper) -> bool:
    return paper.fields.get("eprint", "-") in _ARXIV.findall(text) or (
        f" {_words(paper.fields['title'])} " in f" {_words(text)} "
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _unknown(number: str) -> str:
    return f"@misc{{arxiv{number},\n  eprint = {{{number}}},\n  archiveprefix = {{arXiv}},\n}}"


def _texts(thing: Any, inside: tuple[int, ...] = ()) -> Iterator[str]:
    """References blocks of an object and its parts, lines joined."""
    if id(thing) in inside or isinstance(thing, (str, bytes, int, float, complex, type(None))):
        return
    for docstring in _docstrings(thing):
        if blocks := _BLOCK.findall(inspect.cleandoc(docstring)):
            yield " ".join(" ".join(blocks).split())
            break
    for part in _parts(thing):
        yield from _texts(part, (*inside, id(thing)))


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    if isinstance(thing, Mapping):
        return thing.values()
    return thing if isinstance(thing, (tuple, list)) else ()


def _docstrings(thing: Any) -> Iterator[str]:
    """An object's docstring, that of the function it was made in, that of its module."""
    if isinstance(thing, types.ModuleType):
        yield thing.__doc__ or ""
        return
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    yield named.__doc__ or ""
    module = sys.modules.get(named.__module__)
    if "<locals>" in named.__qualname__:
        made_in = getattr(module, named.__qualname__.split(".")[0], None)
        yield getattr(made_in, "__doc__", None) or ""
    if named is thing:  # the module of a class is not about its instances
        yield getattr(module, "__doc__", None) or ""
