"""The page on adding a method: its code runs, from top to bottom, and does what the page says."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import data, recipes, survey, train, zoo
from jprune.base import Pruned
from jprune.recipes import Train, three_step

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "add_a_method.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the names of the page stand for, once all of it has run."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names, methods = {}, dict(recipes.METHODS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    recipes.METHODS.clear()
    recipes.METHODS.update(methods)
    return names


def test_the_page_ends_in_rows_of_both_methods(page):
    found = {cell.method for cell in page["comparison"].cells}
    assert found == {"dense", "distance", "l1"}
    assert any("fewer than 3 seeds" in breach.says for breach in page["comparison"].breaches)
    assert 0.4 < page["result"]["achieved"]["macs"] <= 0.5
    assert page["result"]["law_max_rel_err"] < 1e-5


def test_a_method_is_found_by_its_file(monkeypatch):
    """The one place that the page names knows nothing of a method until it is told."""
    assert "`jprune/survey.bib`" in PAGE.read_text()
    monkeypatch.setattr(three_step, "METHODS", {**three_step.METHODS, "distance": None})
    assert survey.implementations()["distance"] == "jprune/recipes/three_step.py"
    assert "distance" not in {row["name"] for row in survey.rows()}


def test_the_unit_in_the_middle_has_the_least_distance(page):
    fn = lambda v, x: jax.nn.relu(x @ v["first"]) @ v["second"]
    first = jnp.array([[0.0, 4.0, 1.0], [0.0, 3.0, 0.0]])  # columns are units
    variables = {"first": first, "second": jnp.ones((3, 2))}
    groups = page["jprune"].trace(fn, variables, jnp.ones((1, 2)))
    scores = page["distance"](groups).score((), variables)["first"]
    near, far = np.sqrt(9 + 9), 5.0
    np.testing.assert_allclose(scores, [far + 1, far + near, near + 1], rtol=1e-6)


def test_scales_shrink_to_exactly_nothing(page):
    """A strength that takes more than any scale has: all are 0 after a few steps."""
    task = train.task(zoo.build("resnet8", shape=(8, 8, 1)), data.load("digits"))
    start = Pruned(task.init(jax.random.key(0)), None)
    stage = Train(1, 0.1, 32, schedule="constant", max_steps=3)
    wrap = page["ShrinkScales"](100.0)
    sparse = Train(1, 0.1, 32, schedule="constant", max_steps=3, wrap=wrap)
    scales = lambda pruned: [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(pruned.variables["params"])
        if "scale" in str(path)
    ]
    plain, shrunk = (each(start, task, jax.random.key(1))[0] for each in (stage, sparse))
    assert all(np.all(leaf) for leaf in scales(plain))
    assert not any(np.any(leaf) for leaf in scales(shrunk))
