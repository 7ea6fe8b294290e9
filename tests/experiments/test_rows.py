"""Rows: appended whole by whoever comes, never taken out, and torn lines kept apart."""

import json
import threading

import pytest

from experiments import rows
from jprune import errors


@pytest.fixture
def file(tmp_path):
    return tmp_path / "family" / "made_up.jsonl"


def test_rows_come_back_in_order(file):
    assert rows.read(file) == []
    rows.append(file, {"net": "a", "ms": 1.5})
    rows.append(file, {"net": "b", "ms": float("nan")}, {"net": "a", "ms": None})
    assert rows.read(file) == [
        {"net": "a", "ms": 1.5},
        {"net": "b", "ms": None},
        {"net": "a", "ms": None},
    ]


def test_many_writers_tear_no_line(file):
    def write(writer):
        for number in range(20):
            rows.append(file, {"writer": writer, "number": number, "filling": "x" * 3000})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = rows.read(file)
    assert len(found) == 80
    for writer in range(4):  # and each writer's rows are in its order
        assert [r["number"] for r in found if r["writer"] == writer] == list(range(20))


def test_a_torn_line_is_kept_apart(file, caplog):
    rows.append(file, {"net": "a"})
    with file.open("a") as end:
        end.write('{"net": "b", "ms": 1')
    assert rows.read(file) == [{"net": "a"}]
    assert "The last line of" in caplog.text
    assert "is torn and was left out" in caplog.text
    rows.append(file, {"net": "c"})
    assert rows.read(file) == [{"net": "a"}, {"net": "c"}]
    assert (file.parent / "made_up.jsonl.torn").read_text() == '{"net": "b", "ms": 1\n'
    assert "was put into made_up.jsonl.torn" in caplog.text
    # Nobody takes it for rows.
    assert [found.name for found in file.parent.glob("*.jsonl")] == ["made_up.jsonl"]


def test_a_line_that_only_lacks_its_end_is_a_row(file):
    rows.append(file, {"net": "a"})
    with file.open("a") as end:
        end.write('{"net": "b"}')
    rows.append(file, {"net": "c"})
    assert [row["net"] for row in rows.read(file)] == ["a", "b", "c"]
    assert not (file.parent / "made_up.jsonl.torn").exists()


def test_keeping_takes_no_row_out(file):
    first = rows.keep(file, [{"net": "a", "ms": 2}, {"net": "b", "ms": 3}], "net")
    newest = rows.keep(file, [{"net": "a", "ms": 1}], "net")
    assert first == [{"net": "a", "ms": 2}, {"net": "b", "ms": 3}]
    assert newest == [{"net": "a", "ms": 1}, {"net": "b", "ms": 3}]
    assert len(rows.read(file)) == 3


def test_a_newer_schema_is_refused(file):
    rows.append(file, {"schema": 1, "id": "a"}, {"schema": rows.SCHEMA + 1, "id": "b"})
    with pytest.raises(errors.CheckpointError, match=r"line 2, has schema 2; .*reads up to 1"):
        rows.read(file)


@pytest.mark.parametrize("line", ["{", "[1]", '{"schema": "new"}'])
def test_a_damaged_line_is_refused(file, line):
    rows.append(file, {"net": "a"})
    with file.open("a") as end:
        end.write(f"{line}\n")
    rows.append(file, {"net": "b"})
    with pytest.raises(errors.CheckpointError, match=r"line 2, (is no record|has schema 'new')"):
        rows.read(file)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointError, match="cannot be written"):
        rows.append(tmp_path / "file" / "a.jsonl", {"net": "a"})


def test_provenance_names_no_folder_of_the_machine():
    made = rows.provenance("numpy")
    assert {"jax", "jprune", "numpy"} <= set(made["versions"])
    assert "/" not in made["command"].split()[0]
    assert json.loads(json.dumps(made)) == made
