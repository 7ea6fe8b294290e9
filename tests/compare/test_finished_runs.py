"""Finished runs as rows: what was run stands in them, and `compare` takes their directories."""

import json
import shutil

import pytest

from jprune import cli, compare, errors
from jprune.base import Budget
from jprune.job.main import Job, prune
from jprune.runs.files import DIGEST
from tests import compare_rows

LENET = {"model": "lenet300", "data": "digits", "method": "taylor", "budget": Budget(density=0.5)}
EPOCH = 1197 // 64
"""Steps in a pass over digits."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with finished runs: five rounds of one step, and three rounds of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    prune(Job(**LENET, max_steps=1), folder / "short")
    rounds = Job(**LENET, seed=1, epochs=2, finetune_epochs=2, options={"rounds": 3})
    prune(rounds, folder / "rounds", measure_seconds=0.0)
    return folder


def changed(run, tmp_path, file, change):
    """A copy of a run, one of whose files was changed."""
    shutil.copytree(run, tmp_path / run.name)
    path = tmp_path / run.name / file
    path.write_text(change(path.read_text()))
    return tmp_path / run.name


def test_epochs_are_those_that_were_run(finished):
    short = compare.row_of(finished / "short")["finetune"]
    assert (short["steps"], short["epochs"]) == (5, pytest.approx(5 / EPOCH, abs=1e-4))
    rounds = compare.row_of(finished / "rounds")["finetune"]
    assert (rounds["steps"], rounds["epochs"]) == (2 * EPOCH, 2.0)


def without_sizes(text):
    """A result of older versions, which had no digest either."""
    absent = ("splits", "splits_from", DIGEST)
    return json.dumps({k: v for k, v in json.loads(text).items() if k not in absent})


def test_epochs_of_results_without_sizes(finished, tmp_path):
    row = compare.row_of(changed(finished / "rounds", tmp_path, "result.json", without_sizes))
    assert row["finetune"]["epochs"] == 2.0
    # Validated once: that may be the end of an epoch, or of `max_steps`.
    (row,), _ = compare.read([changed(finished / "short", tmp_path, "result.json", without_sizes)])
    assert row["finetune"] == {**row["finetune"], "epochs": None, "steps": 5}
    unequal = [row, {**row, "seed": 1, "finetune": {**row["finetune"], "steps": 1}}]
    said = [breach.says for breach in compare.summarize(unequal)[0].breaches]
    assert "unequal fine-tuning: taylor 5 steps at 0.025; taylor 1 step at 0.025" in said


def test_tasks_without_an_accuracy_have_steps(finished, tmp_path):
    rename = lambda text: text.replace("accuracy", "overlap")
    row = compare.row_of(changed(finished / "rounds", tmp_path, "records.jsonl", rename))
    assert row["finetune"]["steps"] == 2 * EPOCH
    assert row["validation"] == {"dense": None, "pruned": None}


# On the command line, and in `read`.


def test_the_directory_of_a_finished_run_is_a_row(finished, capsys):
    row = compare.row_of(finished / "rounds")
    assert compare.read([finished / "rounds"]) == ([row], [])
    assert cli.main(["compare", str(finished / "rounds"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(compare.plain(compare.summarize([row]))))


def test_folders_with_runs_and_rows(finished, tmp_path):
    """Runs at any depth, in the order of their names, beside rows; unfinished ones are noted."""
    short, rounds = compare.row_of(finished / "short"), compare.row_of(finished / "rounds")
    assert compare.read([finished]).rows == [rounds, short]
    shutil.copytree(finished / "short", tmp_path / "deep/er/short")
    torn = shutil.copytree(finished / "short", tmp_path / "torn")
    (torn / "result.json").unlink()
    made = compare_rows.write(tmp_path / "zoo/made_up.jsonl", [compare_rows.row()])
    rows, notes = compare.read([tmp_path])
    assert [row["id"] for row in rows] == ["short", "l1-0.5-0"]
    assert notes == [f"The run in {torn} is not finished and was left out."]
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(compare.read([tmp_path]).rows) == 2
    # Runs of a sweep are in its rows, once.
    made.rename(tmp_path / "rows.jsonl")
    assert [row["id"] for row in compare.read([tmp_path]).rows] == ["l1-0.5-0"]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("result.json", None, "there are no rows in {}. Rows are .* is not finished"),
        ("result.json", "{}", "{}/result.json has no `schema`"),
        ("result.json", "{", "{}/result.json cannot be read"),
        ("records.jsonl", "", "records.jsonl, line 1, is no row: .* write the directory"),
    ],
)
def test_runs_that_are_no_rows(finished, tmp_path, file, text, says):
    run = changed(finished / "short", tmp_path, file, lambda content: text or content)
    if text is None:
        (run / file).unlink()
    place = run / file if file == "records.jsonl" else run
    with pytest.raises(errors.JpruneError, match=says.format(run)):
        compare.read([place])
