"""Every option of the command line with values that nobody means: one line, and no traceback."""

import dataclasses

import pytest

from jprune import cli
from jprune.cli.options import VERBS

ABSURD = (
    *("", "x", "-1", "0", "1e999", "nan", "-inf", "100000000000", "9" * 5000, "1" * 100_000),
    *("a\0b", "\x1b[31m", "\udcff", "x=", "=", "=1", ",", "../" * 2000, "n" * 300, "\u0661"),
)
NEEDED = {
    "prune": ["--model=resnet8", "--data=digits", "--method=l1", "--macs=0.5", "--out=out"],
    "compare": ["--model=resnet8", "--data=digits", "--methods=l1", "--macs=0.5", "--out=out"],
    "inspect": ["--model=resnet8"],
    "report": ["absent"],
    "export": ["absent"],
    "check": ["absent"],
    "bench": ["absent", "absent"],
    "methods": [],
    "data": ["prepare", "mnist"],
}
# What these take cannot be wrong by itself: it would be used, and the work done.
USED = {("prune", "out"), ("compare", "out"), ("prune", "macs"), ("compare", "macs")}
FLAGS = ("json", "quiet", "overwrite")
PLACED = ("rows", "directory", "action", "name", "first", "second")
OPTIONS = [
    (verb, field.name.replace("_", "-").replace("source", "from"))
    for verb, options in VERBS.items()
    for field in dataclasses.fields(options)
    if field.name not in FLAGS and field.name not in PLACED
]


class Reached(Exception):
    """The arguments were taken, and the work began."""


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """Verbs that do nothing: what an option says is read, and the work is not done."""

    def work(*_):
        raise Reached

    monkeypatch.chdir(tmp_path)
    for verb in cli.verbs.TABLE:
        monkeypatch.setitem(cli.verbs.TABLE, verb, work)


def ended(capsys, words: list[str]) -> None:
    """Runs a command: it is taken, or ends in one plain line and 1 or 2."""
    try:
        code = cli.main(words)
    except Reached:
        return
    lines = capsys.readouterr().err.splitlines()
    assert code in (1, 2)
    assert len(lines) == 1
    assert lines[0].isprintable()
    # Of a person's own words a message may have more than of a file's.
    assert len(lines[0]) <= cli.LONGEST + 10


@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_absurd_values(capsys, idle, verb, option):
    for value in ABSURD:
        ended(capsys, [verb, *NEEDED[verb], f"--{option}={value}"])
        ended(capsys, [verb, *NEEDED[verb], f"--{option}", value])


@pytest.mark.parametrize("verb", VERBS)
def test_absurd_arguments(capsys, idle, verb):
    for value in ABSURD:
        ended(capsys, [verb, value])
        ended(capsys, [verb, f"--{value}"])
        ended(capsys, [value, verb])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("multiple-of", "100000000000"),
        ("multiple-of", "0"),
        ("batch-size", "100000000"),
        ("epochs", "-1"),
        ("epochs", "1e9"),
        ("learning-rate", "1e30"),
        ("finetune-epochs", "nan"),
        ("seed", "4294967296"),
        ("distill", "1.5"),
        ("rounds", "9" * 5000),
        ("out", "a\0b"),
        ("out", ""),
        ("out", "n" * 300),
        ("data-dir", "a\0b"),
        ("model", "a\0b"),
        ("weights", "\0"),
    ],
)
def test_ranges(capsys, idle, option, value):
    assert cli.main(["prune", *NEEDED["prune"], f"--{option}={value}"]) == 2
    assert f"--{option}" in capsys.readouterr().err


@pytest.mark.parametrize("value", [*ABSURD])
@pytest.mark.parametrize(
    "option", ["model", "data", "method", "freeze", "set", "dtype", "allocator"]
)
def test_names_that_nobody_has(capsys, tmp_path, monkeypatch, option, value):
    """Beyond the parser: the work itself refuses names, before it does anything."""
    monkeypatch.chdir(tmp_path)
    words = ["prune", *NEEDED["prune"], "--steps=1", f"--{option}={value}"]
    if value not in ("", ","):  # no names at all are no mistake for options that take several
        ended(capsys, words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["report", "export", "check", "compare"])
@pytest.mark.parametrize("value", [*ABSURD])
def test_folders_that_nobody_has(capsys, tmp_path, monkeypatch, verb, value):
    monkeypatch.chdir(tmp_path)
    ended(capsys, [verb, value])
    assert not list(tmp_path.iterdir())
