"""Imports go one way, and importing jprune is light."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jprune

PACKAGE = Path(jprune.__file__).parent
# Every room may import what stands in an earlier row, and nothing of its own row but itself.
ROWS = (
    {"errors", "base", "collector"},
    {"graph"},
    {"cost", "curvature", "masks", "topk", "units"},
    {
        "criteria",
        "allocate",
        "schedules",
        "granularity",
        "sparsify",
        "reconstruct",
        "learners",
        "search",
    },
    {"survey", "citation", "recipes"},
    {"zoo", "data", "train", "measure", "export", "report", "compare"},
    {"cli", "__main__"},
)
# What a leaf brings: none of it is imported by `import jprune`.
HEAVY = ("flax", "tensorflow_datasets", "orbax", "matplotlib", "ai_edge_litert", "sklearn", "grain")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jprune":
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {name[1] for name in names if name[0] == "jprune" and len(name) > 1}
    return rooms


def row_of(room: str) -> int:
    return next(number for number, row in enumerate(ROWS) if room in row)


def test_imports_go_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        for other in imported_rooms(path):
            known = any(other in row for row in ROWS)
            if not known or other == room:
                continue
            leaf_to_leaf = row_of(room) == row_of(other) == row_of("train")
            first_rows = row_of(other) < row_of(room) or {room, other} <= {"errors", "base"}
            survey = room in ("survey", "citation") and row_of(other) <= row_of("survey")
            if not (first_rows or leaf_to_leaf or survey):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong


def test_the_page_lists_rooms_in_the_order_of_imports():
    """A room imports only rooms that stand above it in the table of docs/architecture.md."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    assert "A room imports only rooms that stand above it in this table" in page
    cells = re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
    table = [re.findall(r"\w+(?=\.py|/)", cell) for cell in cells]
    order = [room for row in table for room in row]
    leaves = next(row for row in table if "train" in row)
    wrong = []
    for room, path in ((room_of(path), path) for path in PACKAGE.rglob("*.py")):
        later = order[order.index(room) + 1 :] if room in order else ()
        others = imported_rooms(path) & {*later} - ({*leaves} if room in leaves else set())
        wrong += [f"{path.relative_to(PACKAGE)} imports {other}" for other in others]
    assert not wrong


def test_methods_of_one_folder_do_not_import_each_other():
    wrong = []
    for room in (
        "criteria",
        "allocate",
        "sparsify",
        "reconstruct",
        "learners",
        "search",
        "recipes",
    ):
        for path in (PACKAGE / room).glob("*.py"):
            if path.name.startswith("_"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    f"jprune.{room}."
                ):
                    target = (node.module or "").rsplit(".", 1)[1]
                    shared = target.startswith("_") or target in ("stages", "hold")
                    if not shared:
                        wrong.append(f"{room}/{path.name} imports {node.module}")
    assert not wrong


def test_only_one_module_touches_jax_internals():
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text() for word in ("jax.extend", "jax._src"))
        and "import" in path.read_text()
    }
    assert users <= {"graph/jaxprs.py"}


def test_importing_jprune_loads_no_leaf_library():
    code = (
        "import json, sys, jprune\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []
