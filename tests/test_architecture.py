"""Imports go one way, and importing jprune is light."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jprune

ROOT = Path(jprune.__file__).parent.parent
PACKAGE = ROOT / "jprune"
# A room reads what stands on a floor under its own, and itself.
FLOORS = """
errors collector interrupts
foreign kernels
jaxprs targets
base
forms
graph
units curvature zoo data schedules export
masks cost
measure
blocks execute
criteria reconstruct learners
allocate sparsify
search pruner
train
stages survey
recipes
runs
citation report
job
compare
cli
experiments
colab tests
""".strip().splitlines()
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor.split()}
# Rooms in which a method is one file: they read no other method's file, only what is shared.
OF_METHODS = ("criteria", "allocate", "sparsify", "reconstruct", "learners", "search", "recipes")
SHARED = (
    "activations",
    "bounds",
    "budgets",
    "folded",
    "group_decay",
    "hidden",
    "history",
    "input_gates",
    "moments",
    "policy",
    "space",
    "methods",
    "windows",
    "norm_gates",
    "own_steps",
    "unit_gates",
    "barrier",
    "sharpening",
    "soft_masks",
    "statistics",
    "surgery",
    "thresholds",
    "rules",
    "three_step",
)
# What a leaf brings: none of it is imported by `import jprune`.
HEAVY = (
    *("flax", "tensorflow_datasets", "orbax", "matplotlib", "ai_edge_litert", "sklearn", "grain"),
    *("numba", "llvmlite"),
)


def files() -> dict[str, Path]:
    """{module: its file}, of the package, experiments, tests and notebooks."""
    found = {}
    for folder in ("jprune", "experiments", "tests", "colab"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            name = node.module or ""
            found |= {
                inner if (inner := f"{name}.{alias.name}") in FILES else name
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in FILES}


IMPORTS = {module: imports(path) for module, path in FILES.items()}


def room_of(module: str) -> str:
    """The room of a module: `graph` of jprune.graph.trace; empty for the package itself."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "jprune" else top


def test_every_room_has_a_floor():
    rooms = {room_of(module) for module in FILES} - {""}
    assert rooms == {*FLOOR}


def test_a_room_reads_only_what_stands_under_it():
    wrong = []
    for module, others in IMPORTS.items():
        room = room_of(module)
        for other in {room_of(name) for name in others} - {room, ""}:
            if room and not FLOOR[other] < FLOOR[room]:
                wrong.append(f"{module} reads {other}")
    assert not wrong


def test_no_circle_of_files():
    """Files can be put in an order in which each reads only earlier ones."""
    waiting, done = {module: {*others} for module, others in IMPORTS.items()}, set()
    while ready := [module for module, others in waiting.items() if others <= done | {module}]:
        done.update(ready)
        for module in ready:
            del waiting[module]
    assert not waiting


def test_the_rooms_of_the_engine_stand_on_each_other():
    order = ("couple", "look", "shrink")
    wrong = []
    for module, others in IMPORTS.items():
        inner = module.split(".")[2:3] if room_of(module) == "graph" else []
        if inner and inner[0] in order:
            above = {f"jprune.graph.{room}" for room in order[order.index(inner[0]) + 1 :]}
            upwards = {name for name in others if ".".join(name.split(".")[:3]) in above}
            wrong += [f"{module} reads {name}" for name in upwards]
    assert not wrong


def test_nothing_under_the_job_reads_the_report():
    readers = {
        room_of(module)
        for module, others in IMPORTS.items()
        if any(room_of(name) == "report" for name in others)
    }
    assert all(FLOOR[room] >= FLOOR["job"] for room in readers - {"report"})


def test_the_page_lists_rooms_in_the_order_of_the_floors():
    page = (ROOT / "docs" / "architecture.md").read_text()
    cells = re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
    table = [re.findall(r"\w+(?=\.py|/)", cell) for cell in cells]
    order = [room for row in table for room in row]
    assert {*order} == {*FLOOR} - {"experiments", "colab", "tests"}
    floors = [FLOOR[room] for room in order]
    assert floors == sorted(floors)


def test_methods_of_one_room_do_not_read_each_other():
    wrong = []
    for module, others in IMPORTS.items():
        room, name = room_of(module), module.rpartition(".")[2]
        if room not in OF_METHODS or FILES[module].name == "__init__.py" or name == "methods":
            continue
        for other in others:
            file = other.rpartition(".")[2]
            is_file = room_of(other) == room and FILES[other].name != "__init__.py"
            if is_file and other != module and not (file.startswith("_") or file in SHARED):
                wrong.append(f"{module} reads {other}")
    assert not wrong


def test_only_one_module_touches_jax_internals():
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text() for word in ("jax.extend", "jax._src"))
        and "import" in path.read_text()
    }
    assert users <= {"jaxprs.py"}


def test_importing_jprune_loads_no_leaf_library():
    code = (
        "import json, sys, jprune\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []


# Files that compare a rank with a number or take a path apart, and why that is no guess at a layer.
NO_GUESSES = {
    "allocate/budgets.py": "scores of units are {group: [units]}, with one axis",
    "data/fetch.py": "paths are those of files in an archive",
    "data/images.py": "grey images may come without an axis for their channel",
    "data/own.py": "labels are [n], one-hot labels are refused",
    "data/sources.py": "grey images may come without an axis for their channel",
    "export/litert.py": "a signature has the batch on its first axis",
    "learners/detector.py": "features are [images, features]",
    "reconstruct/least_squares.py": "what is kept is [units] or [units, outputs]",
    "report/figures.py": "a title is shortened",
    "search/polynomial.py": "points are [n, dimensions]",
    "stages/channel_menu.py": "outputs of a classifier are [examples, classes]",
    "stages/dropout.py": "Flax keeps the rates of a layer beside it, under the layer's path",
    "units.py": "a map of units is a matrix",
}
# Files that still guess; whoever mends one takes it off.
GUESSES = {
    "blocks/grains.py",
    "blocks/members.py",
    "recipes/han.py",
    "sparsify/l1.py",
    "stages/dead_units.py",
    "stages/sensitivity.py",
    "stages/std_rule.py",
    "stages/subset_sums.py",
}


def guesses(text: str) -> list[str]:
    """What a file does to tell layers and kernels by rank, by their parent or by a name's "@"."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                ranks = [side for side in sides if is_rank(side)]
                numbers = [getattr(side, "value", None) for side in sides]
                guess = bool(ranks) and any(number in numbers for number in (1, 2, 3))
            case ast.Call(
                func=ast.Attribute(attr="split" | "rsplit" | "partition" | "rpartition"),
                args=[ast.Constant(value="/" | "@"), *_],
            ):
                guess = True
            case ast.Subscript(value=ast.Name(id="path"), slice=ast.Slice(lower=None)):
                guess = ast.unparse(node.slice) == ":-1"
            case _:
                guess = False
        found += [ast.unparse(node)] if guess else []
    return found


def is_rank(node: ast.expr) -> bool:
    """Whether an expression is `x.ndim`, `jnp.ndim(x)`, `len(shape)` or `len(x.shape)`."""
    match node:
        case ast.Attribute(attr="ndim") | ast.Call(func=ast.Attribute(attr="ndim")):
            return True
        case ast.Call(func=ast.Name(id="len"), args=[inner]):
            return getattr(inner, "attr", getattr(inner, "id", "")) == "shape"
    return False


def test_guesses_are_seen():
    for text in (
        "leaf.ndim > 1",
        "jnp.ndim(leaf) == 1",
        "len(shape) >= 2",
        "len(leaf.shape) < 3",
        "path.rpartition('/')[0]",
        "site.layer.partition('@')[0]",
        "path[:-1]",
    ):
        assert guesses(text) == [text.removesuffix("[0]")]
    assert not guesses("axis = value.ndim - 1")


def test_layers_are_read_and_not_guessed():
    """What a layer, a kernel, a bias or an owner is says `groups.layers`; see NO_GUESSES."""
    free = ("graph", "forms", "zoo")  # who make layers, hold kernels, build nets
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    wrong = {
        name: seen
        for name, path in files.items()
        if not name.startswith(free) and (seen := guesses(path.read_text()))
    }
    assert {*wrong} - {*NO_GUESSES} - GUESSES == set(), f"groups.layers says it: {wrong}"
    assert {*NO_GUESSES} <= {*wrong}, "these files guess no more: take them off"
