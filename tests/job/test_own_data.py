"""The main job on data, optimizers and metrics of the user's own, and what it says of budgets."""

import contextlib
import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jprune import cli, errors, report
from jprune.base import Budget
from jprune.job import main as job
from jprune.runs.checkpoint import load_tree
from tests.contracts import own

PRUNE = "prune --model tests.toys:tiny --method l1 --macs 0.5 --multiple-of 4 --batch-size 32"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with digits.npz: 400 of the digits, 8-bit."""
    folder = tmp_path_factory.mktemp("place")
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels[:400].reshape(-1, 8, 8) * 15).astype(np.uint8)
    np.savez(folder / "digits.npz", images=images, labels=labels[:400])
    return folder


def called(folder, command):
    with contextlib.chdir(folder):
        return cli.main(command.split())


def test_a_run_on_data_of_ones_own_with_adam(place, capsys):
    command = (
        f"{PRUNE} --data npz:digits.npz --data-options mean=0.5,std=0.25,shift=1 --optimizer adam "
        "--optimizer-options b1=0.8,weight_decay=0.01 --rate-schedule cosine --warmup 0.2 "
        "--clip 1 --ema 0.9 --accumulate 2 --epochs 2 --finetune-epochs 1 --steps 6 --out run"
    )
    assert called(place, command) == 0
    said = capsys.readouterr().out
    assert "data: 324 train, 36 validation, 40 test (test: 10 % of the training" in said
    result = json.loads((place / "run" / "result.json").read_text())
    report.check(result)
    assert result["splits"] == {"train": 324, "validation": 36, "test": 40}
    assert "324 train, 36 validation, 40 test" in (place / "run" / "report.html").read_text()
    config = json.loads((place / "run" / "config.json").read_text())
    assert config["images"] == {"shape": [8, 8, 1], "classes": 10}
    assert config["train"]["settings"] == {"b1": 0.8}
    assert config["train"]["ema"] == 0.9
    # The data are not needed any more.
    (place / "digits.npz").rename(place / "elsewhere.npz")
    try:
        assert called(place, "export run --to again.stablehlo") == 0
    finally:
        (place / "elsewhere.npz").rename(place / "digits.npz")
    assert (place / "again.stablehlo").stat().st_size > 1000
    assert called(place, command.replace("0.9 --acc", "0.8 --acc")) == 1
    assert "train.ema is 0.9 there and 0.8 here" in capsys.readouterr().err


def test_masked_weights_of_an_average_are_zero_in_the_files(place):
    small = load_tree(place / "run" / "params")
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(small["params"]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--data npz:none.npz", "none.npz cannot be read as .npz"),
        ("--data npz:digits.npz --data-options size", "write NAME=VALUE"),
        ("--data npz:digits.npz --data-options syze=3", "did you mean size?"),
        ("--data digits --data-options size=16", "digits has fixed sizes"),
        ("--data digits --optimizer adamm", "did you mean adam"),
        ("--data digits --optimizer adam --optimizer-options b3=1", "no setting 'b3'"),
        ("--data digits --optimizer optax:rmsprop", "no usual learning rates for optax:rmsprop"),
        ("--data digits --warmup 0.1", "one_cycle warms up by itself"),
        ("--data digits --accumulate 5", "divides batch_size=32"),
        ("--data tfds:none --data-dir .", "tfds:none is not prepared in"),
        ("--data tests.data_of_nobody:load", "No module named"),
    ],
)
def test_what_does_not_fit_is_said_before_training(place, capsys, more, says):
    assert called(place, f"{PRUNE} {more} --quiet --out never") != 0
    out, err = capsys.readouterr()
    assert says in err
    assert not (place / "never").exists()
    assert err.count("\n") == 1, out


def test_labels_that_are_no_classes_are_for_python(place, capsys):
    pixels = np.zeros((40, 8, 8, 1), np.uint8)
    np.savez(place / "levels.npz", images=pixels, labels=np.linspace(0, 1, 40))
    given = "--data npz:levels.npz --data-options classes=0 --out never"
    assert called(place, f"{PRUNE} {given}") == 2
    assert "train.task(net, data, loss=...)" in capsys.readouterr().err


def test_a_budget_that_is_missed_is_said_thrice(place, capsys):
    command = PRUNE.replace("0.5 --multiple-of 4", "0.9 --multiple-of 8")
    assert called(place, f"{command} --data digits --steps 1 --out missed") == 0
    out, err = capsys.readouterr()
    kept = json.loads((place / "missed" / "result.json").read_text())["achieved"]["macs"]
    assert kept < 0.88
    said = f"{100 * kept:.1f} % of the MACs are kept, and 90 % were asked for"
    page = (place / "missed" / "report.html").read_text()
    assert said in " ".join(out.split())
    assert said in err
    assert "--multiple-of 1" in err
    assert said in page


def test_a_run_that_was_refused_leaves_its_directory_free(place, capsys):
    for file in ("first.pth", "second.pth"):
        more = f"--data digits --weights {file} --out refused"
        assert called(place, f"{PRUNE} {more}") == 1
        said = capsys.readouterr().err
        assert file in said
        assert "other settings" not in said
    assert not (place / "refused" / "config.json").exists()


def test_other_metrics_stand_in_the_result_and_the_report(tmp_path):
    task = own.per_pixel()
    given = job.Job("made", "digits", "l1", Budget(macs=0.6), batch_size=16, max_steps=1)
    result = job.prune(given, tmp_path / "run", task=task)
    report.check(result)
    assert {*result["pruned"]["metrics"]} == {"error"}
    assert result["pruned"]["accuracy"] is None
    assert "error" in (tmp_path / "run" / "report.html").read_text()


def test_results_from_before_have_neither_splits_nor_metrics(place):
    result = json.loads((place / "missed" / "result.json").read_text())
    for key in ("splits", "splits_from"):
        del result[key]
    for net in ("dense", "before_finetune", "pruned"):
        del result[net]["metrics"]
    report.check(result)
    with pytest.raises(errors.CheckpointError, match=r"`splits\.train`"):
        report.check({**result, "splits": {"train": "many"}})
