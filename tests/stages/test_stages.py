"""The room of the stages: what it exports is all there is, and a name stands for one thing."""

import ast
import subprocess
import sys
from pathlib import Path

from jprune import stages

FILES = [path for path in Path(stages.__file__).parent.glob("*.py") if path.stem != "__init__"]
DEFINITIONS = [
    node
    for path in FILES
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
]


def is_stage(definition: ast.AST) -> bool:
    """Whether it is a class that is called with (pruned, task, key)."""
    return isinstance(definition, ast.ClassDef) and any(
        isinstance(node, ast.FunctionDef)
        and node.name == "__call__"
        and [argument.arg for argument in node.args.args] == ["self", "pruned", "task", "key"]
        for node in definition.body
    )


def test_every_stage_is_exported():
    found = {node.name for node in DEFINITIONS if is_stage(node)}
    assert len(found) > 30
    assert found <= {*stages.__all__}


def test_a_name_is_defined_once():
    names = [node.name for node in DEFINITIONS]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_exports_exist():
    assert len({*stages.__all__}) == len(stages.__all__)
    assert all(hasattr(stages, name) for name in stages.__all__)


def test_importing_stages_and_recipes_loads_no_data_set_library():
    slow = ("orbax", "tensorflow_datasets", "grain", "matplotlib")
    code = (
        "import sys\nfrom jprune import recipes, stages\n"
        f"print([name for name in {slow!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
