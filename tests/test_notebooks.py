"""Notebooks are made from their sources, hold no outputs, and do what they claim."""

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

SOURCES = sorted((Path(__file__).parent.parent / "colab").glob("[0-9]*.py"))
EACH = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@EACH
def test_the_notebook_is_that_of_its_source(source):
    """If not: `make notebooks`."""
    made = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    wanted = jupytext.read(source)
    assert [(c.cell_type, c.source) for c in made.cells] == [
        (c.cell_type, c.source) for c in wanted.cells
    ]
    assert all(not cell.get("outputs") for cell in made.cells)
    assert all(cell.get("execution_count") is None for cell in made.cells)


def test_all_install_in_the_same_way():
    """From one constant, which a repository or an index can fill."""
    first = [jupytext.read(source).cells[1].source for source in SOURCES]
    assert len({cell.partition("# In smoke mode")[0] for cell in first}) == 1
    assert first[0].count("PACKAGE =") == 1


@EACH
def test_the_notebook_runs_and_its_claims_hold(source, monkeypatch, tmp_path):
    monkeypatch.setenv("JPRUNE_SMOKE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = jupytext.read(source)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=dict(os.environ))
    last = notebook.cells[-1].source
    assert last.count("assert") >= 3
