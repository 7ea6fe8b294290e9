"""Sweeps with what stands beside their methods: planned from rows, run once, resumable."""

import dataclasses

import pytest

from experiments import rows, run, sweep
from experiments.configs import filters
from experiments.work import Kept
from jprune import compare, errors


def test_the_filter_table_is_planned_whole():
    """Every arm once a seed, each with an id of its own; equal totals of 624 steps of 128."""
    planned = sweep.runs(filters.CONFIG)
    methods = [each for each in planned if each.kind == "method"]
    assert len(methods) == 3 * (len(filters.CONFIG.methods) - 1)
    assert len({each.id for each in planned}) == len(planned)
    (net,) = filters.CONFIG.nets
    # A tenth of the published training images is for validation.
    assert net.finetune_epochs * (net.train_images // net.batch_size) == 624
    arms = {each.changes.allocation for each in methods if each.job.method == "fpgm"}
    assert arms == {None, *filters.ARMS}


def test_an_allocation_is_part_of_a_run():
    assert sweep.read_method("l1@uniform:rounds=2") == ("l1", {"rounds": 2}, "uniform")
    with pytest.raises(errors.ArgumentError, match="did you mean uniform"):
        sweep.read_method("l1@unifrom")


@pytest.fixture(scope="module")
def smoked(tmp_path_factory):
    """The rows of `filters_smoke`, and the places where they are."""
    folder = tmp_path_factory.mktemp("smoke")
    given = run.Given(
        run.find("filters_smoke"), runs=folder / "runs", results=folder / "rows", quiet=True
    )
    assert run.run(given, "filters_smoke", "python -m experiments.run filters_smoke") == 0
    return given, rows.read(folder / "rows" / "filters_smoke" / "filters_smoke.jsonl")


def test_all_that_stands_beside_has_its_rows(smoked):
    _, made = smoked
    told = [
        (row["method"], *(set(row["settings"]) & {"allocation", "beside", "choice"}))
        for row in made
    ]
    assert sorted(told) == [
        ("l1",),
        ("l1", "beside"),
        ("random",),
        ("random", "beside"),
        ("random", "choice"),
        ("ssl",),
    ]
    by_name = {name: row for name, row in zip(told, made)}
    ssl = by_name["ssl",]
    assert ssl["steps"]["under"] > 0
    assert by_name["l1",]["steps"]["after"] == ssl["steps"]["under"] + ssl["steps"]["after"]
    for name in (("l1", "beside"), ("random", "beside"), ("random", "choice")):
        assert by_name[name]["steps"]["after"] == ssl["steps"]["after"]
    assert by_name["random", "choice"]["widths"] == ssl["widths"]
    (comparison,) = compare.summarize(made)
    cells = {cell.method: cell for cell in comparison.cells}
    assert cells["ssl"].ahead.keys() == {"l1", "random", "choice"}
    assert "own_steps" not in {breach.rule for breach in comparison.breaches}


def test_rows_that_are_there_are_not_run_again(smoked):
    """Nor is what stands beside them, even where the run directories are gone."""
    given, made = smoked
    elsewhere = dataclasses.replace(given, runs=given.runs / "gone")
    assert run.run(elsewhere, "filters_smoke", "again") == 0
    assert [*Kept(given.results).rows().values()] == made
    assert not list((given.runs / "gone").glob("lenet300*"))
