"""A run stays in its folder: no link is followed, and only what it made is removed."""

import os
import shutil
from pathlib import Path

import pytest

from jprune import errors, report
from jprune.compare.rows import row_of
from jprune.job.export import export_again
from jprune.runs import directory as run
from jprune.runs import files, inside
from jprune.runs.checkpoint import save_tree
from jprune.runs.whole import verdicts
from tests import run_fixture

STAGE = "stages/01-train"
FILES = (
    *inside.FILES,
    ".lock",
    ".result.json.a1.tmp",
    f"{STAGE}/DONE",
    f"{STAGE}/.DONE.a1.tmp",
    f"{STAGE}/state/0/DIGESTS",
    f"{STAGE}/state/0/state/d/a1",
    f"{STAGE}/steps/4/_CHECKPOINT_METADATA",
    "params/_METADATA",
    "params/d/a1",
)
FOLDERS = (
    "stages",
    STAGE,
    f"{STAGE}/state",
    f"{STAGE}/state/0",
    f"{STAGE}/state/0/state",
    f"{STAGE}/steps",
    f"{STAGE}/steps/4",
    f"{STAGE}/steps/4.orbax-checkpoint-tmp-7",
    "params",
    "params/d",
    "params.orbax-checkpoint-tmp-7",
)


def opened(path, **options):
    return run.open_directory(path, {"seed": 0}, {}, {}, **options)


def held(path):
    with run.held(path, {"seed": 0}, {}, {}):
        pass


GATES = {
    "resume": opened,
    "overwrite": lambda path: opened(path, overwrite=True),
    "hold": held,
    "report": report.html,
    "export": export_again,
    "compare": row_of,
    "check": verdicts,
}


def made(path):
    """A folder with every name that a run uses."""
    run_fixture.write(path)
    for name in FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if not (path / name).exists():
            (path / name).write_text("")
    (path / "config.json").unlink()
    files.write_json(path / "config.json", {"schema": 1, "seed": 0}, digest=True)
    return path


def content(folder):
    """{path: kind and content} of everything below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else path.is_dir()
        for path in Path(folder).rglob("*")
    }


def displaced(path, name, outside, how):
    """Puts something else where a run has a name."""
    place = path / name
    if how == "link":
        shutil.move(place, outside / "target")
        place.symlink_to(outside / "target")
    elif how == "link inside":
        place.rename(path / "target")
        place.symlink_to(path / "target")
    elif how == "dangling":
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        place.symlink_to(outside / "nothing")
    elif how == "pipe":
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        os.mkfifo(place)
    elif place.is_dir():
        shutil.rmtree(place)
        place.write_text("somebody's")
    else:
        place.unlink()
        place.mkdir()
        (place / "notes.txt").write_text("somebody's")


def is_of_orbax(name):
    """Whether Orbax says what is a file there and what a folder."""
    depth = len(name.split("/"))
    return depth > 3 or (depth > 1 and name.startswith("params"))


CASES = [
    (name, how)
    for name in (*FILES, *FOLDERS)
    for how in ("link", "link inside", "dangling", "pipe", "other kind")
    if how != "other kind" or not is_of_orbax(name)
]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_what_is_not_of_a_runs_kind_is_neither_followed_nor_removed(tmp_path, name, how):
    path, outside = made(tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    (outside / "notes.txt").write_text("precious")
    displaced(path, name, outside, how)
    before = [content(outside), {name: path.joinpath(name).lstat() for name in content(path)}]
    for gate, call in GATES.items():
        with pytest.raises(errors.CheckpointError, match=" is a ") as caught:
            call(path)
        assert str(path / name) in str(caught.value), gate
        after = {name: path.joinpath(name).lstat() for name in content(path)}
        assert content(outside) == before[0], gate
        assert {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in after.items()} == {
            name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in before[1].items()
        }, gate


def test_a_link_where_the_stages_are_deletes_nothing(tmp_path):
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    (tmp_path / "home" / "thesis" / "a.tex").write_text("precious")
    opened(tmp_path / "run")
    (tmp_path / "run" / "stages").symlink_to("../home")
    with pytest.raises(errors.CheckpointError, match=r"run/stages is a link, and jprune has a fo"):
        opened(tmp_path / "run")
    assert (tmp_path / "home" / "thesis" / "a.tex").read_text() == "precious"


@pytest.mark.parametrize("how", ["link", "hard link", "file", "pipe"])
def test_a_lock_that_is_somebodys_file_is_not_written_over(tmp_path, how):
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    if how == "link":
        lock.symlink_to("../notes.txt")
    elif how == "hard link":
        lock.hardlink_to(tmp_path / "notes.txt")
    elif how == "pipe":
        os.mkfifo(lock)
    else:
        lock.write_text("precious")
    message = r"\.lock is (a link|a pipe|no lock of jprune's)"
    with pytest.raises(errors.CheckpointError, match=message), files.locked(tmp_path / "run"):
        pass
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert how == "pipe" or lock.read_text() == "precious"


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    held(tmp_path / "run")
    assert [f.name for f in (tmp_path / "disk").iterdir()] == ["config.json"]


PRECIOUS = (
    "notes.txt",
    "stages/notes.txt",
    "stages/home/DONE",
    f"{STAGE}/notes.txt",
    f"{STAGE}/state/notes.txt",
    f"{STAGE}/steps/old/DONE",
    ".notes.tmp",
    "params.backup/d",
)


def test_overwriting_leaves_what_a_run_did_not_make(tmp_path):
    path = made(tmp_path / "run")
    for name in PRECIOUS:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("precious")
    opened(path, overwrite=True)
    left = {name for name, what in content(path).items() if what is not True}
    assert left == {*PRECIOUS, "config.json", ".lock"}


def test_a_checkpoint_with_somebodys_file_is_not_replaced(tmp_path):
    save_tree(tmp_path / "params", {"w": [1.0]})
    (tmp_path / "params" / "notes.txt").write_text("precious")
    with pytest.raises(errors.CheckpointError, match=r"params holds notes\.txt, which jprune did"):
        save_tree(tmp_path / "params", {"w": [1.0]})
    assert (tmp_path / "params" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("text", ["{}", "[1]", '{"name": "my-project"}', "module.exports = 3"])
def test_somebodys_config_is_not_overwritten(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    for overwrite in (False, True):
        with pytest.raises(errors.CheckpointError, match=r"config\.json .*Choose another --out"):
            opened(tmp_path, overwrite=overwrite)
    assert (tmp_path / "config.json").read_text() == text
