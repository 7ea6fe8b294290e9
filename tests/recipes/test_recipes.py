"""A recipe file holds a docstring, a signature and a tuple of stages: no class and no helper."""

import ast
from pathlib import Path

import pytest

from jprune import recipes
from jprune.recipes.methods import NO_RECIPES

ROOM = Path(recipes.__file__).parent
FILES = [path for path in ROOM.glob("*.py") if path.stem not in (*NO_RECIPES, "__init__")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_holds_no_class_and_no_helper(path):
    tree = ast.parse(path.read_text())
    definitions = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    (factory,) = definitions
    assert isinstance(factory, ast.FunctionDef)


def test_recipes_are_short():
    """Docstrings are most of it: 74 lines a method when there were 29, 78 when there were 66."""
    lines = sum(len(path.read_text().splitlines()) for path in FILES)
    assert lines < 84 * len(recipes.METHODS)
