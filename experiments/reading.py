"""Which files a method is read in, and what is in them: rows are those of these files.

A method is read with what its entry in `METHODS` uses of the package, and what that uses, and so
on. A file counts if a name that is used on the way is defined there: a room's `__init__` that only
passes names on does not, and neither do the other names of a file.

`code_of` is the content of these files, of those that the job around the method is read in, and of
the rooms of the engine as a whole, where rules are found in tables and not by their names. Two rows
with one code were made by the same mathematics; a change of a method's file makes the rows of the
methods that are read in it stale, and those of no other.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import jprune
from jprune.recipes import METHODS
from jprune.recipes.methods import modules

ROOT = Path(jprune.__file__).parent
APART = (
    *("graph", "jaxprs", "forms", "base", "errors", "targets", "masks", "units", "cost"),
    "kernels",
)
"""What every reader of the package knows, or need not: it does not count as a file of a method."""
WHOLE = ("graph", "jaxprs", "forms", "base", "masks", "units", "cost")
"""Of these, what numbers depend on: all of it belongs to the code of every row."""
NO_NUMBERS = ("errors", "report", "cli", "citation", "survey")
"""What no number depends on: messages and pages."""
AROUND = (
    ("jprune.job.main", "prune"),
    ("jprune.compare.rows", "row_of"),
    ("jprune.compare.sweep", "copy_training"),
    ("jprune.zoo.pretrained", "load"),
)
"""Where the job around a method begins."""
DRIVERS = ("perform.py", "seeds.py")
"""Files of this folder that do a run."""
Name = tuple[str, str]
"""(module, name that it defines at its top)."""


@functools.cache
def path_of(module: str) -> Path | None:
    """The file of a module of the package; None for other packages."""
    stem = ROOT.parent.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if module.split(".")[0] == "jprune" and path.exists():
            return path
    return None


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module of the package."""
    path = path_of(module)
    assert path is not None
    return ast.parse(path.read_text())


@functools.cache
def imported(module: str) -> dict[str, Name]:
    """{name in a module: (module that it comes from, its name there, "" for a module itself)}."""
    names: dict[str, Name] = {}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                whole = path_of(inner) is not None and alias.name not in defined(node.module)
                source = (inner, "") if whole else (node.module, alias.name)
                names[alias.asname or alias.name] = source
    return {name: source for name, source in names.items() if path_of(source[0])}


@functools.cache
def defined(module: str) -> dict[str, ast.AST]:
    """{name: the statement at a module's top that defines it}."""
    names: dict[str, ast.AST] = {}
    for node in tree_of(module).body if path_of(module) else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
    return names


def home_of(module: str, name: str) -> Name | None:
    """Where a name of a module is defined; None for one of another package."""
    if name in defined(module):
        return module, name
    if name in imported(module):
        source, inner = imported(module)[name]
        return (source, "") if not inner else home_of(source, inner)
    return None


@functools.cache
def uses(module: str, name: str) -> frozenset[Name]:
    """What the definition of a name uses, where it is defined."""
    return frozenset(used_in(module, defined(module)[name]))


def used_in(module: str, part: ast.AST) -> set[Name]:
    """Names of the package that a part of a module uses, where they are defined."""
    names: set[Name] = set()
    for node in ast.walk(part):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            room = home_of(module, node.value.id)
            if room and not room[1]:  # `allocate.uniform`
                names |= {home_of(room[0], node.attr) or room}
        elif isinstance(node, ast.Name) and (home := home_of(module, node.id)) and home[1]:
            names.add(home)
    return names


def start_of(method: str) -> set[Name]:
    """What the entry of a method in `METHODS` of its file uses."""
    module = modules()[method].__name__
    entries = defined(module)["METHODS"]
    node: ast.AST = entries
    for each in ast.walk(entries):
        if isinstance(each, ast.Dict):
            pairs = zip(each.keys, each.values)
            values = {key.value: v for key, v in pairs if isinstance(key, ast.Constant)}
            node = values.get(method, entries)
    return {(module, "METHODS")} | used_in(module, node)


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _reached(start: Iterable[Name], apart: Iterable[str] = ()) -> set[Name]:
    """All names that are used on the way from some, those of the rooms apart left out."""
    waiting, seen = [*start], set[Name]()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen or module.split(".")[1] in apart:
            continue
        seen.add((module, name))
        # `METHODS` names all methods of a file; the start has said which one is read.
        waiting += uses(module, name) if name and name != "METHODS" else ()
    return seen


@functools.cache
def files_of(method: str) -> tuple[str, ...]:
    """The files that a method is read in, those apart left out.

    Example:
        >>> "criteria.magnitude" in files_of("l1"), "criteria.magnitude" in files_of("taylor")
        (True, False)
    """
    names = _reached(start_of(method), APART)
    return tuple(sorted({module.removeprefix("jprune.") for module, _ in names}))


def shared() -> set[str]:
    """Files that every method is read with: how nets are trained, and the frame of recipes."""
    return set.intersection(*({*files_of(method)} for method in METHODS))


@functools.cache
def code_of(method: str | None) -> str:
    """A digest of the source that the numbers of a method's run depend on.

    Comments, docstrings and layout do not count. What the source is when this process first asks.

    Args:
        method: a name of `METHODS`; None: of the job alone, which the dense net depends on.

    Example:
        >>> code_of("l1") == code_of("l1"), code_of("l1") == code_of("taylor")
        (True, False)
    """
    start = {*AROUND} if method is None else {*AROUND, *start_of(method)}
    paths = {path for module, _ in _reached(start, NO_NUMBERS) if (path := path_of(module))}
    for room in WHOLE:
        paths |= {*(ROOT / room).rglob("*.py"), *ROOT.glob(f"{room}.py")}
    paths |= {Path(__file__).with_name(name) for name in DRIVERS}
    digest = hashlib.sha256()
    for path in sorted(paths):
        name = str(path.relative_to(ROOT.parent))
        digest.update(f"{name}\0{_meaning(path)}\0".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _meaning(path: Path) -> str:
    """A file without comments, docstrings and layout."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_prose(each)]  # pyright: ignore
    return ast.dump(tree)


def _is_prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and _is_text(node.value)
