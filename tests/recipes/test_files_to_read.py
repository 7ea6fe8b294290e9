"""How many files a reader must open to follow one method from its recipe to the last line.

A recipe is read with what it uses of the package, and what that uses, and so on. A file counts if
a name that is used on the way is defined there: a room's `__init__` that only passes names on does
not, and neither do the other names of a file. Apart are what every reader of the package knows: the
engine, the types, errors, masks, units and costs.
"""

import ast
import functools
import statistics
from pathlib import Path

import jprune
from jprune.recipes import METHODS
from jprune.recipes.methods import modules

ROOT = Path(jprune.__file__).parent
APART = ("graph", "jaxprs", "forms", "base", "errors", "targets", "masks", "units", "cost")
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
    found: set[Name] = set()
    for node in ast.walk(part):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            room = home_of(module, node.value.id)
            if room and not room[1]:  # `allocate.uniform`
                found |= {home_of(room[0], node.attr) or room}
        elif isinstance(node, ast.Name) and (home := home_of(module, node.id)) and home[1]:
            found.add(home)
    return found


def start_of(method: str) -> set[Name]:
    """What the entry of a method in `METHODS` of its file uses."""
    module = modules()[method].__name__
    entries = defined(module)["METHODS"]
    node: ast.AST = entries
    for each in ast.walk(entries):
        if isinstance(each, ast.Dict):
            values = {key.value: v for key, v in zip(each.keys, each.values) if is_text(key)}
            node = values.get(method, entries)
    return {(module, "METHODS")} | used_in(module, node)


def is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@functools.cache
def files_of(method: str) -> tuple[str, ...]:
    """The files that a method is read in, those apart left out."""
    waiting, seen = [*start_of(method)], set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen or module.split(".")[1] in APART:
            continue
        seen.add((module, name))
        waiting += uses(module, name) if name and name != "METHODS" else ()
    return tuple(sorted({module.removeprefix("jprune.") for module, _ in seen}))


def shared() -> set[str]:
    """Files that every method is read with: how nets are trained, and the frame of recipes."""
    return set.intersection(*({*files_of(method)} for method in METHODS))


def table() -> str:
    """Markdown: method, number of files, of which own, and their names."""
    common = shared()
    lines = [f"Read with every method: {', '.join(sorted(common))}.", ""]
    lines += ["| method | files | of these its own | |", "|---|---|---|---|"]
    for method in METHODS:
        own = [file for file in files_of(method) if file not in common]
        lines.append(f"| {method} | {len(files_of(method))} | {len(own)} | {', '.join(own)} |")
    return "\n".join(lines)


def test_a_method_is_read_in_few_files():
    """What is reached; the aim is eight for every method. Run this file for the table.

    Of the first 29 methods the middle one has 16 files. Those that came later have one more or two:
    masks that move, or penalties, are a rule or a transformation beside the stage.
    """
    counts = [len(files_of(method)) for method in METHODS]
    own = [len({*files_of(method)} - shared()) for method in METHODS]
    for numbers, most, middle in ((counts, 23, 18), (own, 16, 11)):
        assert max(numbers) <= most, table()
        assert statistics.median(numbers) <= middle, table()
    assert len(shared()) <= 7, table()


def test_a_file_counts_by_the_names_that_are_used_of_it():
    """`l1` uses a criterion of the room, and not the others; rooms that pass names on count not."""
    files = files_of("l1")
    assert {"recipes.three_step", "stages.prune", "criteria.magnitude"} <= {*files}
    assert not {"criteria", "criteria.taylor", "criteria.random", "stages", "base"} & {*files}
    assert "criteria.taylor" in files_of("taylor")
    assert "criteria.magnitude" not in files_of("taylor")


if __name__ == "__main__":
    print(table())
