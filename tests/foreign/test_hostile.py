"""What strangers write: every case ends in one plain line, at once, and nothing is run or touched.

Cases run in this process, through the command line: a traceback would be an error of the test.
"""

import os
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jprune import cli, errors, foreign
from jprune.compare import rows
from jprune.forms.table import FORMS
from jprune.graph.shrink import plan_files
from jprune.report import schema
from jprune.runs import schemas
from tests import compare_rows, run_fixture
from tests.foreign import documents

SCHEMAS = {
    "result.json": schema.Result,
    "plan.json": plan_files.Plan,
    "config.json": schemas.Config,
    "records.jsonl": schemas.Record,
    "rows.jsonl": rows._Row,
}
CASES = [
    (name, case, changed)
    for name, document in documents.good().items()
    for case, changed in documents.wrong(document, SCHEMAS[name])
]
MEMORY = 2**30


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """Runs a command that must end in one plain line; returns the line."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert code in (1, 2)
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].isprintable()
    assert len(lines[0]) <= 300, lines[0]
    assert not said.out
    return lines[0]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A finished run at a short path, with nothing else beside it."""
    monkeypatch.chdir(tmp_path)
    documents.write(Path("run"))
    compare_rows.write(Path("rows.jsonl"), [compare_rows.row()])
    return Path("run")


def place(name: str, content: Any) -> tuple[str, Path]:
    """Writes a file of a run, or of rows, and says which command reads it."""
    lines = name.endswith(".jsonl")
    text = f"{documents.json.dumps(content)}\n" if lines and isinstance(content, dict) else content
    if lines and isinstance(text, str):
        text += "\n{}\n"  # the last line alone may be torn
    elif lines:
        text += b"\n{}\n"
    if name == "rows.jsonl":
        return "compare", documents.put(Path(name), text)
    documents.put(Path("run", name), text)
    return "report", Path("run")


@pytest.mark.parametrize(
    ("name", "changed"),
    [pytest.param(name, changed, id=f"{name}: {case}") for name, case, changed in CASES],
)
def test_every_key_of_every_schema(capsys, folder, name, changed):
    command, path = place(name, changed)
    assert name in refused(capsys, command, path)


def test_there_are_many_cases():
    assert len(CASES) + len(documents.TEXTS) * len(SCHEMAS) >= 200


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("case", documents.TEXTS)
def test_texts_that_are_nothing_of_ours(capsys, folder, name, case):
    tracemalloc.start()
    try:
        command, path = place(name, documents.TEXTS[case])
        assert name in refused(capsys, command, path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_only_regular_files_are_read(capsys, folder, name, kind):
    path = Path(name) if name == "rows.jsonl" else folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder" and name != "rows.jsonl":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/proc/self/mem")
    command = "compare" if name == "rows.jsonl" else "report"
    assert name in refused(capsys, command, path if command == "compare" else folder)


@pytest.mark.parametrize("keep", [[1_000_000_000], [-1], [3, 1], [0, 0], [0.5], "all"])
def test_units_that_a_plan_does_not_have(capsys, folder, keep):
    plan = documents.plan()
    next(iter(plan["groups"].values()))["keep"] = keep
    documents.put(folder / "plan.json", plan)
    assert "keep" in refused(capsys, "report", folder)
    assert "keep" in refused(capsys, "export", folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"form": "os.system"},
        {"form": ["csr"]},
        {"form": "csr", "columns": [0], "pointers": [0, 10**12]},
        {"form": "csr", "columns": "x", "pointers": []},
        {"form": "factored", "inputs": [1], "outputs": 2},
        {"form": "thin", "taps": [0], "outputs": [0], "axes": [0, 0, 0, 0]},
    ],
)
def test_forms_that_a_plan_cannot_have(capsys, folder, entry):
    documents.put(
        folder / "plan.json", {**documents.plan(), "leaf_types": {"params/conv1/kernel": entry}}
    )
    assert "plan.json" in refused(capsys, "report", folder)


def test_every_form_has_its_parts():
    assert plan_files._PARTS.keys() == FORMS.keys()


# Code


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A module that leaves a file behind when it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "imported"
    (tmp_path / "trap_of_a_stranger.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.delitem(sys.modules, "trap_of_a_stranger", raising=False)
    return mark


@pytest.mark.parametrize("key", ["model", "data", "method", "weights", "dtype"])
def test_no_code_that_a_run_names_is_imported(capsys, folder, trap, key):
    config = {**run_fixture.config(), key: "trap_of_a_stranger:build"}
    documents.put(folder / "config.json", config)
    refused(capsys, "export", folder)
    assert not trap.exists()


def test_a_page_of_a_run_imports_nothing(folder, trap):
    config = {**run_fixture.config(), "model": "trap_of_a_stranger:build"}
    documents.put(folder / "config.json", config)
    assert cli.main(["report", str(folder)]) == 0
    assert not trap.exists()


FEATURES = {
    "a_module_of_a_stranger": {"pythonClassName": "trap_of_a_stranger.Feature"},
    "as_older_versions_wrote": {"type": "trap_of_a_stranger.Feature", "content": {}},
    "as_protocol_buffers_read": {"python_class_name": "trap_of_a_stranger.Feature"},
    "within_another": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": {"pythonClassName": "trap_of_a_stranger.Feature"}}},
    },
    "within_a_text": {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "jsonFeature": {"json": '{"type": "trap_of_a_stranger.Feature"}'},
    },
}


@pytest.mark.parametrize("case", FEATURES)
def test_classes_of_features_are_read_by_an_allow_list(capsys, folder, trap, case):
    made = Path("data/mnist/1.0.0")
    documents.put(made / "dataset_info.json", {"name": "mnist", "version": "1.0.0"})
    documents.put(made / "features.json", FEATURES[case])
    words = "prune --model lenet300 --data mnist --method l1 --macs 0.5 --data-dir data --out new"
    assert "features.json" in refused(capsys, *words.split())
    assert not trap.exists()


@pytest.mark.parametrize(
    "info",
    [
        {"name": "../../../etc/passwd"},
        {"splits": [{"name": "train", "filepathTemplate": "/etc/{SPLIT}"}]},
        {"splits": "x"},
        {"name": 5},
    ],
)
def test_prepared_sets_lead_nowhere_else(capsys, folder, info):
    made = Path("data/mnist/1.0.0")
    documents.put(made / "dataset_info.json", info)
    documents.put(made / "features.json", {})
    words = "prune --model lenet300 --data mnist --method l1 --macs 0.5 --data-dir data --out new"
    assert "dataset_info.json" in refused(capsys, *words.split())


# Weights and data


def stored(path: Path, names: int, size: int) -> None:
    """A zip archive whose directory names the same bytes many times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(size))
        (info,) = archive.infolist()
        for number in range(1, names):
            again = zipfile.ZipInfo(f"a/data/{number}")
            again.file_size = again.compress_size = size
            again.CRC, again.header_offset = info.CRC, info.header_offset
            archive.filelist.append(again)
        archive._didModify = True


def test_storages_that_share_their_bytes(capsys, folder):
    stored(Path("w.pth"), 20_000, 1_300_000)
    words = "prune --model lenet300 --data digits --method l1 --macs 0.5 --out new --weights"
    assert "overlap" in refused(capsys, *words.split(), "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\x80\x02.", b"PK\x03\x04", b"\x93NUMPY", b"{}"])
def test_weights_that_are_none(capsys, folder, name, content):
    if content is None:
        os.mkfifo(name)
    else:
        Path(name).write_bytes(content)
    words = "prune --model lenet300 --data digits --method l1 --macs 0.5 --out new --weights"
    assert name in refused(capsys, *words.split(), name)


@pytest.mark.parametrize("case", ["pipe", "bomb", "shape", "names"])
def test_arrays_that_are_none(capsys, folder, case):
    path = Path("x.npz")
    if case == "pipe":
        os.mkfifo(path)
    elif case == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", bytes(2**28))
    elif case == "shape":
        header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9"
        header = header + b"9" * 11 + b",), }"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", header.ljust(127) + b"\n")
    else:
        np.savez(path, **{"\x1b[31m": np.zeros(3)})
    words = "prune --model lenet300 --method l1 --macs 0.5 --out new --data npz:x.npz"
    assert "x.npz" in refused(capsys, *words.split())


# Terminals


def test_what_a_file_says_cannot_drive_a_terminal(capsys, folder):
    bad = "\x1b[2J\x07\x9b31m\u202e[red]x[/red]" + "n" * 5000
    result = {**run_fixture.result(), "method": bad, "model": bad}
    from jprune.cli import show

    show.result(result, "out")
    row = compare_rows.row(method="l1")
    compare_rows.write(Path("rows.jsonl"), [{**row, "method": bad, "model": bad, "commit": bad}])
    assert cli.main(["compare", "rows.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "[red]x[/red]" in said.replace("\n", "")
    assert all(line.isprintable() for line in said.splitlines())
    # Names are cut at 200 characters, sentences that hold several at 1,000.
    assert "n" * 1000 not in said.replace("\n", "")


def test_messages_are_escaped_and_cut():
    long = foreign.line("\x1b[31m" + "a" * 10**7)
    assert long.isprintable()
    assert len(long) <= 300
    with pytest.raises(errors.CheckpointError) as caught:
        foreign.check({"k" * 10**6: {"\x1b": "v" * 10**6}}, dict[str, dict[str, int]], "a.json")
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


# Pages


def replaced(tree: Any, number: float | None, text: str | None) -> Any:
    """A document with all of its numbers, or all of its texts, replaced."""
    if isinstance(tree, dict):
        return {key: replaced(value, number, text) for key, value in tree.items()}
    if isinstance(tree, list):
        return [replaced(value, number, text) for value in tree]
    if isinstance(tree, str):
        return tree if text is None else text
    if number is None or tree is None or isinstance(tree, bool):
        return tree
    return int(max(-1e30, min(1e30, number))) if isinstance(tree, int) else number


@pytest.mark.parametrize(
    ("number", "text"), [(0, None), (1e300, None), (-1e300, None), (None, ""), (None, "\x1b$_{^\\")]
)
def test_pages_of_what_fits_the_schemas(capsys, folder, number, text):
    result = {**replaced(run_fixture.result(), number, text), "schema": 1}
    records = [replaced(record, number, text) for record in run_fixture.records()]
    if number:
        records = [{**record, "step": abs(int(number)) % 2**53} for record in records]
    run_fixture.write(folder, result=result, records=records, plan=documents.plan())
    code = cli.main(["report", str(folder)])
    assert code == 0, capsys.readouterr().err


def test_a_page_with_large_names(folder):
    """Names of 60,000 characters, and 300 groups: seconds, though the file is large."""
    groups = {f"{number}" + "n" * 60_000: (4, 1, ()) for number in range(300)}
    documents.put(folder / "plan.json", run_fixture.plan(groups))
    begin = time.perf_counter()
    assert cli.main(["report", str(folder)]) == 0
    assert time.perf_counter() - begin < 60
