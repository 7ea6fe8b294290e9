"""How many files a reader must open to follow one method from its recipe to the last line.

A recipe is read with what it uses of the package, and what that uses, and so on. A file counts if
a name that is used on the way is defined there: a room's `__init__` that only passes names on does
not, and neither do the other names of a file. Apart are what every reader of the package knows: the
engine, the types, errors, masks, units and costs.
"""

import ast
import functools
from pathlib import Path

import jprune
from jprune import recipes
from jprune.recipes.methods import modules

ROOT = Path(jprune.__file__).parent
APART = ("graph", "jaxprs", "forms", "base", "errors", "masks", "units", "cost")
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
    found: set[Name] = set()
    for node in ast.walk(defined(module)[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            room = home_of(module, node.value.id)
            if room and not room[1]:  # `allocate.uniform`
                found |= {home_of(room[0], node.attr) or room}
        elif isinstance(node, ast.Name) and (home := home_of(module, node.id)) and home[1]:
            found.add(home)
    return frozenset(found)


def files_of(method: str) -> list[str]:
    """The files that a method is read in, those apart left out."""
    recipe = modules()[method].__name__
    waiting = [(recipe, name) for name in defined(recipe)]
    seen: set[Name] = set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen or module.split(".")[1] in APART:
            continue
        seen.add((module, name))
        waiting += uses(module, name) if name else ()
    return sorted({module for module, _ in seen})


if __name__ == "__main__":
    import sys

    for m in sys.argv[1:] or recipes.METHODS:
        fs = files_of(m)
        print(m, len(fs), " ".join(f.removeprefix("jprune.") for f in fs))
