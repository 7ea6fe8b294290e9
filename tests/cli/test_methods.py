"""`jprune methods NAME`: what a method says of itself, in 80 columns."""

import json

import pytest

from jprune import cli, recipes
from jprune.cli import show
from jprune.compare.measured import measured
from jprune.recipes.options import options
from jprune.report.method import describe
from tests.compare_rows import row


@pytest.fixture(scope="module")
def described():
    return {name: describe(name) for name in recipes.METHODS}


def test_every_method_says_what_it_takes_in_80_columns(described, capsys):
    for name, method in described.items():
        show.method(method, [f"word {name} " * 12])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80, name
        assert text.startswith(f"{name}: ")
        for option in options(name):
            assert f"\n  {option}=" in text
        assert all(option.meaning for option in method.options), name
        assert "Args:" not in text
        assert method.papers


@pytest.mark.parametrize(
    ("name", "data", "labels", "training"),
    [
        ("l1", False, False, "a trained net; fine-tuning"),
        ("fpgm", False, False, "a trained net; fine-tuning"),
        ("lamp", False, False, "a trained net; fine-tuning"),
        ("data_free", False, False, "a trained net; fine-tuning"),
        ("synflow", False, False, "training from the first values on; no fine-tuning"),
        ("snip", True, True, "training from the first values on; no fine-tuning"),
        ("taylor", True, True, "a trained net; fine-tuning"),
        ("obd", True, True, "a trained net; fine-tuning"),
        ("eigendamage", True, True, "a trained net; fine-tuning"),
        ("hrank", True, False, "a trained net; fine-tuning"),
        ("apoz", True, False, "a trained net; fine-tuning"),
        ("thinet", True, False, "a trained net; fine-tuning"),
        ("slimming", True, True, "a trained net; training of its own (shrink); fine-tuning"),
        ("lottery_ticket", False, False, "a net that is not trained yet, then training"),
    ],
)
def test_what_methods_need_is_read_off_their_code(described, name, data, labels, training):
    needs = described[name].needs
    assert (needs["data"] == "training images") == data
    assert (needs["labels"] == "of training images") == labels
    assert training in needs["training"]


def test_the_command_of_a_method_is_one_that_its_recipe_takes(described):
    assert described["subset_sum"].command.endswith("--method subset_sum --density 1")
    assert described["obd"].command.endswith("--density 0.5")
    assert described["l1"].command.endswith("--macs 0.5")


def test_json_of_one_method(capsys):
    assert cli.main(["methods", "taylor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [option["name"] for option in said["options"]] == list(options("taylor"))
    assert said["options"][0]["usual"] == "global_topk"
    assert "dense net is trained" in said["idea"][1]


def test_what_was_measured_of_a_method(tmp_path):
    (tmp_path / "some").mkdir()
    rows = [row("taylor", seed, 0.5, accuracy) for seed, accuracy in enumerate((0.9, 0.92, 0.94))]
    others = [row("l1"), row("dense", macs=None)]
    text = "".join(json.dumps(each) + "\n" for each in (*rows, *others))
    (tmp_path / "some" / "rows.jsonl").write_text(text)
    (tmp_path / "some" / "times.jsonl").write_text('{"net": "lenet5"}\n')
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "e18.jsonl").write_text('{"claim": "E18", "refs": [1, 18]}\n')
    (tmp_path / "claims" / "e02.jsonl").write_text('{"claim": "E2", "refs": [2]}\n')
    first, claim = measured("taylor", tmp_path)
    assert "92.0 ± 2.0 %" in first
    assert "(3 seeds)" in first
    assert claim == "claim E18: docs/results/e18.md"


def test_a_method_that_is_not_there_suggests_another(capsys):
    assert cli.main(["methods", "tailor"]) == 2
    assert "did you mean taylor?" in capsys.readouterr().err
