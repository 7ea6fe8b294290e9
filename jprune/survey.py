"""The survey as a table: its 52 references, the papers of the baselines, and the methods in them.

The papers stand in `survey.bib`, each with its number and the names of its methods; their places
in the survey's taxonomy stand here. Which methods are implemented is read off the code.

References:
    Wang, Ou, Song, A Comprehensive Survey of Pruning-Based Techniques for Convolutional Neural
    Networks Compression, 2022.
"""

import functools
import importlib
import re
from importlib import resources
from typing import NamedTuple, TypedDict

_STATIC = ("structured", "filter level", "three-step", "static")
_DYNAMIC = ("structured", "filter level", "three-step", "dynamic")
TAXONOMY: dict[tuple[str, ...], tuple[int, ...]] = {
    ("unstructured",): (1, 2, 4, 5, 6, 7, 8, 9, 10),
    ("structured", "granularities side by side"): (3,),
    ("structured", "vector level"): (11,),
    ("structured", "kernel level"): (12,),
    ("structured", "group level"): (13, 14, 15),
    _STATIC: (*range(16, 32), 33, 34, 36, 37),
    _DYNAMIC: (32, 35, 38),
    ("structured", "filter level", "other"): tuple(range(39, 49)),
    ("structured", "filter level", "from scratch"): (49, 50, 51),
    ("structured", "filter level", "three dimensions"): (52,),
}
"""{place in the survey: numbers of references}. [6] also occurs among the static criteria."""
BASELINE = ("baseline",)
"""The place of methods that the survey does not list."""


class Paper(NamedTuple):
    """A paper as `survey.bib` has it.

    Attributes:
        kind: of the BibTeX entry.
        number: of the survey's reference; None for a paper that it does not list.
        methods: names on the command line.
        fields: BibTeX fields: author, title, year, booktitle or journal, eprint (of arXiv).
    """

    kind: str
    key: str
    number: int | None
    methods: tuple[str, ...]
    fields: dict[str, str]

    @property
    def text(self) -> str:
        """Authors, title, venue and year in one line."""
        surnames = [name.split()[-1] for name in self.fields["author"].split(" and ")]
        # Three or more authors are cited by the first; BibTeX's own "and others" means the same.
        authors = " and ".join(surnames) if len(surnames) < 3 else f"{surnames[0]} et al."
        authors = authors.replace(" and others", " et al.")
        venue = self.fields.get("booktitle") or self.fields.get("journal")
        where = f"{venue} {self.fields['year']}" if venue else self.fields["year"]
        eprint = f", arXiv {self.fields['eprint']}" if "eprint" in self.fields else ""
        return f"{authors}, {self.fields['title']}, {where}{eprint}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry."""
        fields = "".join(f"  {name} = {{{value}}},\n" for name, value in self.fields.items())
        return f"@{self.kind}{{{self.key},\n{fields}}}"


class Row(TypedDict):
    """What `jprune methods --json` says of a method.

    Attributes:
        refs: references of the survey; none for a baseline.
        taxonomy: its place in the survey, from the root.
        file: where its recipe is, from the root of the repository.
    """

    name: str
    refs: list[int]
    taxonomy: list[str]
    paper: str
    file: str | None
    implemented: bool


_ENTRY = re.compile(r"^@(\w+)\{(\w+),\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)


@functools.cache
def papers() -> tuple[Paper, ...]:
    """All papers: the survey's references in their order, then the others.

    Example:
        >>> papers()[17].text
        'Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv
        1906.10771'
    """
    # From inside the package, so that it is found in a wheel as well.
    text = resources.files("jprune").joinpath("survey.bib").read_text(encoding="utf-8")
    entries = []
    for kind, key, body in _ENTRY.findall(text):
        # The file is ours, one field a line, so that two expressions read it and no BibTeX library
        # is needed.
        fields = dict(_FIELD.findall(body))
        # Two fields of our own; the others are BibTeX and are printed as they are.
        number = fields.pop("survey", None)
        methods = tuple(fields.pop("methods").split(", "))
        entries.append(Paper(kind, key, None if number is None else int(number), methods, fields))
    return tuple(entries)


def papers_of(method: str) -> tuple[Paper, ...]:
    """The papers of a method, the survey's reference first; none for an unknown name."""
    return tuple(paper for paper in papers() if method in paper.methods)


def implementations() -> dict[str, str]:
    """{method: file of its recipe}, from what the modules of `jprune.recipes` define.

    Example:
        >>> implementations()["l1"]
        'jprune/recipes/three_step.py'
    """
    # Late, as recipes import nearly everything; the survey alone is read by `--help`.
    methods = importlib.import_module("jprune.recipes.methods")
    return {
        name: module.__name__.replace(".", "/") + ".py"
        for name, module in methods.modules().items()
    }


def rows() -> list[Row]:
    """One row per method: those of the survey by reference, then the baselines.

    Example:
        >>> [(row["name"], row["refs"]) for row in rows()][:3]
        [('obd', [1]), ('obs', [2]), ('granularity', [3])]
    """
    files = implementations()
    names = dict.fromkeys(name for paper in papers() for name in paper.methods)
    return [_row(name, files.get(name)) for name in names]


def _row(name: str, file: str | None) -> Row:
    sources = papers_of(name)
    refs = [paper.number for paper in sources if paper.number is not None]
    return {
        "name": name,
        "refs": refs,
        "taxonomy": list(_place(refs[0]) if refs else BASELINE),
        "paper": "; ".join(paper.text for paper in sources),
        "file": file,
        "implemented": file is not None,
    }


def _place(number: int) -> tuple[str, ...]:
    # The first place: [6] has two, of which the table says the main one.
    return next(place for place, numbers in TAXONOMY.items() if number in numbers)
