"""How many files a reader must open to follow one method from its recipe to the last line.

`experiments.reading` says which files count.
"""

import statistics
from pathlib import Path

import pytest

from experiments import reading
from experiments.reading import files_of, shared
from jprune.recipes import METHODS


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


# ---- the source of a row ------------------------------------------------------------------------


@pytest.fixture
def edited(monkeypatch):
    """`edited(file, change)`: what a method's source would be with another text in a file."""

    def code(file, change, method):
        reading.code_of.cache_clear()
        meaning = reading._meaning
        path = reading.ROOT / file
        with monkeypatch.context() as patch:
            read = Path.read_text
            other = lambda self, *args: (
                change(read(self, *args)) if self == path else read(self, *args)
            )
            patch.setattr(Path, "read_text", other)
            patch.setattr(reading, "_meaning", meaning.__wrapped__)
            found = reading.code_of(method)
        reading.code_of.cache_clear()
        return found

    return code


def test_a_row_is_of_the_files_that_its_method_is_read_in(edited):
    """A change there makes it stale, and so does one of the engine; one elsewhere does not."""
    before = reading.code_of("l1")
    more = lambda text: f"{text}\nMORE = 1\n"
    for file in ("criteria/magnitude.py", "stages/prune.py", "graph/trace.py", "train/step.py"):
        assert edited(file, more, "l1") != before, file
    for file in ("criteria/taylor.py", "stages/admm.py", "report/page.py", "compare/page.py"):
        assert edited(file, more, "l1") == before, file
    assert edited("criteria/taylor.py", more, "taylor") != reading.code_of("taylor")
    # The dense net is of no method.
    assert edited("criteria/magnitude.py", more, None) == reading.code_of(None)


def test_prose_and_layout_are_no_mathematics(edited):
    prose = lambda text: text.replace('"""', '"""Other words. ', 1) + "\n# a comment\n\n"
    assert edited("criteria/magnitude.py", prose, "l1") == reading.code_of("l1")


if __name__ == "__main__":
    print(table())
