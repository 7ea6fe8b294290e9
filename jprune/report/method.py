"""What a method is, takes and needs: read off its docstrings, its signature, its recipe's code.

Nothing is said twice: the meaning of an option stands in the docstring of the factory, the idea in
that of its file, the papers in `survey.bib`. What the stages look at is read off their code.
"""

import ast
import contextlib
import functools
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jprune import errors, recipes, survey
from jprune.base import Budget, Stage
from jprune.recipes.options import options, written

_SECTION = re.compile(r"^(\w+):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): (.*?)(?=^    \S|\Z)", re.MULTILINE | re.DOTALL)
READING = {"batches", "stream", "data", "calibration"}
"""Names by which code of a stage asks for images."""
FRAME = (recipes.Evaluate, recipes.Save, recipes.Rewind, recipes.Recalibrate)
"""Stages that decide nothing."""
ROOMS = tuple(
    f"jprune.{room}." for room in "stages criteria curvature reconstruct learners search".split()
)
"""Where the code of methods is."""
TRAINED = ("train", "finetune", "between", "anneal")
"""Names of stages that are plain training."""


class Option(NamedTuple):
    """An option of a method.

    Attributes:
        name: as `--set NAME=VALUE` has it.
        usual: its default, as the command line has it.
        meaning: what its docstring says, in one line.
    """

    name: str
    usual: str
    meaning: str


class Description(NamedTuple):
    """What `jprune methods NAME` says.

    Attributes:
        name: on the command line.
        does: the first line of the factory's docstring.
        idea: paragraphs of the recipe file's docstring, without its references.
        place: in the survey's taxonomy, from the root.
        papers: in one line each.
        file: of the recipe.
        needs: {"data", "labels", "training": in words}, of what stands between the dense net and
            fine-tuning.
        options: in the order of the signature.
        command: one that runs it.
    """

    name: str
    does: str
    idea: list[str]
    place: list[str]
    papers: list[str]
    file: str
    needs: dict[str, str]
    options: list[Option]
    command: str


def describe(name: str) -> Description:
    """Describes a method.

    Raises:
        ArgumentError: there is no such method, or it is not implemented.

    Example:
        >>> taylor = describe("taylor")
        >>> taylor.place[-1], taylor.needs["labels"], taylor.options[0].usual
        ('static', 'of training images', 'global_topk')
    """
    factory = recipes.find(name)
    module = sys.modules[factory.__module__]
    row = next(row for row in survey.rows() if row["name"] == name)
    parts = sections(factory)
    idea = sections(module)[""].split("\n\n")
    recipe, budget = _recipe(factory)
    usual = inspect.signature(factory).parameters
    meanings = dict(_ENTRY.findall(parts.get("Args", "")))
    return Description(
        name,
        _line(parts[""].split("\n\n")[0]),
        [_line(paragraph) for paragraph in (*idea, *parts[""].split("\n\n")[1:])],
        row["taxonomy"],
        [paper.text for paper in survey.papers_of(name)],
        row["file"] or "",
        _needs(factory, recipe, budget),
        [
            Option(each, _word(usual[each].default), _line(meanings.get(each, "")))
            for each in options(name)
        ],
        f"jprune prune --model resnet8 --data digits --method {name} "
        f"--{budget.kind} {budget.value:g}",
    )


def sections(item: Any) -> dict[str, str]:
    """{section of a Google docstring: its text}; what stands before the first one is "".

    Example:
        >>> sorted(sections(describe))
        ['', 'Example', 'Raises']
    """
    parts = _SECTION.split(inspect.getdoc(item) or "")
    return {"": parts[0].strip(), **dict(zip(parts[1::2], parts[2::2]))}


def _line(text: str) -> str:
    return " ".join(text.split())


def _word(value: Any) -> str:
    value = written(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _recipe(factory: Callable[..., Any]) -> tuple[list[Stage], Budget]:
    """The stages with the usual options, and a budget that the method takes."""
    per = inspect.signature(factory).parameters.get("per")
    budgets = [Budget(macs=0.5), Budget(density=0.5), Budget(density=1.0)]
    if per is not None and per.default == "weight":
        del budgets[0]
    for budget in budgets[:-1]:
        with contextlib.suppress(errors.JpruneError):
            return _stages(factory, budget, "train"), budget
    return _stages(factory, budgets[-1], "train"), budgets[-1]


def _stages(factory: Callable[..., Any], budget: Budget, dense: str | None) -> list[Stage]:
    train = None if dense is None else recipes.Train(1, 0.1, 64, name=dense)
    finetune = recipes.Train(1, 0.1, 64, name="finetune")
    trainings = (train, finetune) if _finetunes(factory) else (train,)
    return list(recipes.unrolled(factory(budget, *trainings)))


def _finetunes(factory: Callable[..., Any]) -> bool:
    return "finetune" in inspect.signature(factory).parameters


def _needs(factory: Callable[..., Any], recipe: Sequence[Stage], budget: Budget) -> dict[str, str]:
    stages = [stage for stage in recipe if not isinstance(stage, FRAME)]
    names = [getattr(stage, "name", "") for stage in stages]
    looks = {each for s, name in zip(stages, names) if name not in TRAINED for each in _reads(s)}
    own = [name for s, name in zip(stages, names) if isinstance(s, recipes.LongStage)]
    own = [name for name in dict.fromkeys(own) if name not in TRAINED]
    begins = "a trained net"
    try:
        _stages(factory, budget, None)
    except errors.JpruneError:
        begins = "training from the first values on"
    if "train" in names[1:]:
        begins = "a net that is not trained yet, then training"
    training = begins + (f"; training of its own ({', '.join(own)})" if own else "")
    training += "; fine-tuning" if _finetunes(factory) else "; no fine-tuning"
    # A net that trains in the method's own way sees images, and labels through its loss.
    return {
        "data": "training images" if looks or own else "none: it looks at weights alone",
        "labels": "of training images" if "loss" in looks or own else "none",
        "training": training,
    }


def _reads(item: Any) -> set[str]:
    """Of "loss" and "data", what the code of a stage reads, and all code that it names."""
    # What carries out a criterion of its own reads batches only if that criterion does.
    criterion = getattr(item, "criterion", None)
    looks, waiting, done = set[str](), [item if criterion is None else criterion], set[Any]()
    while waiting:
        thing = waiting.pop()
        thing = getattr(thing, "func", thing)
        if not (inspect.isroutine(thing) or inspect.isclass(thing)):
            thing = type(thing)  # an object: what its class does
        module = sys.modules.get(getattr(thing, "__module__", None) or "")
        name = getattr(module, "__name__", "")
        if thing in done or not name.startswith(ROOMS):
            looks |= {"loss", "data"} if name == "jprune.train.evaluate" else set[str]()
            continue
        done.add(thing)
        if name.startswith("jprune.criteria."):
            if not _of_data(module):
                continue
            looks.add("data")
        # Of a closure, the function that makes it: what it names is named there.
        outer = getattr(module, thing.__qualname__.split(".")[0], thing)
        for code in _codes(outer):
            names = {*code.co_names, *code.co_varnames, *code.co_freevars}
            looks |= {"loss", "data"} if {"loss", "losses"} & names else set[str]()
            looks |= {"data"} if READING & names else set[str]()
            inner = (vars(module).get(name) for name in code.co_names)
            waiting += [each for each in inner if inspect.isfunction(each) or inspect.isclass(each)]
    return looks


def _codes(item: Any) -> Iterator[Any]:
    """The code of a function or of a class's methods, and of what is made in it."""
    functions = vars(item).values() if inspect.isclass(item) else [item]
    functions = [getattr(each, "func", getattr(each, "fget", each)) for each in functions]
    unwrapped = [inspect.unwrap(each) for each in functions if callable(each)]
    waiting = [each.__code__ for each in unwrapped if inspect.isfunction(each)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [const for const in code.co_consts if inspect.iscode(const)]


@functools.cache
def _tree(module: Any) -> ast.Module:
    return ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8"))


def _of_data(module: Any) -> bool:
    """Whether the criterion of a file is updated with batches: its fourth field is not False."""
    made = [
        node
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Criterion"
    ]
    weights = lambda call: len(call.args) > 3 and getattr(call.args[3], "value", True) is False
    return not (made and all(map(weights, made)))
