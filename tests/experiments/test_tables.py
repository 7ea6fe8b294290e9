"""Tables and figures are those of the rows: made again, they are the same."""

import re
import shutil

import pytest

from experiments import tables
from experiments.configs import smoke
from experiments.rows import RESULTS
from jprune import errors
from tests import compare_rows


def made(folder, results=RESULTS):
    """All tables of these results, made in another folder; the names are relative to it."""
    if results.exists():
        shutil.copytree(results, folder / "results")
    written = tables.main(folder / "results", folder / "pages")
    return {file.relative_to(folder): file.read_text() for file in written}


def matplotlib_of(svg):
    return re.search(r"Matplotlib v[\d.]+", svg)[0]


def test_tables_are_those_of_the_rows(tmp_path):
    """If not: `make tables`."""
    for file, text in made(tmp_path).items():
        place = RESULTS if file.parts[0] == "results" else tables.PAGES
        there = (place / file.relative_to(file.parts[0])).read_text()
        if file.suffix == ".svg" and matplotlib_of(there) != matplotlib_of(text):
            continue  # another version may draw the same otherwise
        assert there == text, file


def test_every_page_has_rows():
    # The picture of the order stands beside that of the curves.
    pages = {page.stem.removesuffix("-order") for page in tables.PAGES.glob("*.*")} - {"README"}
    assert pages <= {rows.stem for rows in RESULTS.rglob("*.jsonl")}


def test_the_same_rows_give_the_same_bytes(tmp_path):
    compare_rows.write(tmp_path / "rows/first/made_up.jsonl", compare_rows.rows())
    one = made(tmp_path / "a", tmp_path / "rows")
    assert one == made(tmp_path / "b", tmp_path / "rows")
    assert [str(file) for file in one] == [
        "pages/made_up.svg",
        "pages/made_up-order.svg",
        "pages/made_up.md",
        "pages/README.md",
    ]


def test_a_configuration_says_what_came_out(tmp_path, monkeypatch):
    compare_rows.write(tmp_path / "rows/smoke/smoke.jsonl", compare_rows.rows())
    monkeypatch.setattr(smoke, "REMARKS", "Nothing of note.", raising=False)
    files = made(tmp_path, tmp_path / "rows")
    (page,) = (text for file, text in files.items() if file.name == "smoke.md")
    assert page.index("Nothing of note.") < page.index("\n## ")


def test_a_page_has_numbers_labels_and_commands(tmp_path):
    rows = [compare_rows.row("l1", seed, 0.5, 0.9 + 0.01 * seed) for seed in (0, 1)]
    compare_rows.write(tmp_path / "rows/first/two_seeds.jsonl", rows)
    files = made(tmp_path, tmp_path / "rows")
    page, drawn, index = (
        next(text for file, text in files.items() if file.name == name)
        for name in ("two_seeds.md", "two_seeds.svg", "README.md")
    )
    # Mean of 90 and 91 %, standard deviation 1 / sqrt(2).
    assert "| 50 % of MACs | l1 | 90.50 ± 0.71 % | 60.5 % | 50.0 % |" in page
    assert "> - fewer than 3 seeds: l1 2\n" in page
    assert "> - baselines missing: random, scratch_e, scratch_b\n" in page
    assert "python -m experiments.run made_up --method l1 --seed 1\n" in page
    assert f"Commit: {compare_rows.COMMIT}." in page
    assert "fewer than 3 seeds: l1 2" in drawn
    assert "| [two_seeds](two_seeds.md) | lenet5 on mnist | dense, l1 | 2 | no |" in index


def test_two_comparisons_of_one_name_are_refused(tmp_path):
    for family in ("first", "second"):
        compare_rows.write(tmp_path / "results" / family / "same.jsonl", [compare_rows.row()])
    with pytest.raises(errors.ArgumentError, match="two comparisons have the name same; rename"):
        tables.main(tmp_path / "results", tmp_path / "pages")


def test_the_zoo_has_its_own_table(tmp_path):
    row = {
        "net": "LeNet",
        "passed": True,
        "equations": 7,
        "trace_s": {"ours": 0.25, "library": 0.5},
        "groups": 2,
        "units": 70,
        "law_max_rel_err": 2e-7,
        "control_max_rel_err": 0.3,
        "frozen": [{"places": 2, "reason": "tied to a network output"}],
    }
    compare_rows.write(tmp_path / "rows/engine/keras_zoo.jsonl", [row])
    (text,) = made(tmp_path, tmp_path / "rows").values()
    assert (
        "| LeNet | yes | 7 | 0.25 | 0.50 | 2 | 70 | 2e-07 | 3e-01 | 2 tied to a network o" in text
    )
