"""What methods and their options say to those who write something else."""

import re

import pytest

from jprune import cli, errors, recipes, survey
from jprune.base import Budget

PRUNE = "prune --model lenet300 --data digits --density 0.5 --method"


def test_every_method_takes_a_finetuning_or_says_that_it_has_none():
    stages = [recipes.Train(1, 0.1, 64, name=name) for name in ("train", "finetune")]
    said = []
    for name, make in recipes.METHODS.items():
        for more, named in ((stages[1:], {}), ((), {"finetune": stages[1]})):
            try:
                make(Budget(macs=0.5), stages[0], *more, **named)
            except errors.JpruneError as error:
                said.append((name, str(error)))
    without = [name for name, words in said if "no fine-tuning" in words]
    assert all(f"find({name!r})(budget, train)" in w for name, w in said if name in without)
    assert without[::2] == without[1::2]
    assert {"lottery_ticket", "edge_popup", "erk", "metapruning", "subset_sum", "variational"} <= {
        *without
    }
    assert recipes.find("lottery_ticket")(Budget(density=0.5), stages[0])


def test_a_method_of_the_survey_that_is_not_implemented_is_no_typing_error(capsys):
    absent = [row["name"] for row in survey.rows() if not row["implemented"]]
    for name in absent[:3]:
        with pytest.raises(errors.ArgumentError, match=r"is known and not implemented yet"):
            recipes.find(name)
        assert cli.main(f"{PRUNE} {name}".split()) == 2
        said = capsys.readouterr().err
        assert "not implemented yet" in said
        assert "did you mean" not in said


def test_a_listed_method_whose_recipe_is_not_there_is_told_so(capsys, monkeypatch):
    monkeypatch.delitem(recipes.METHODS, "apoz")
    assert cli.main(f"{PRUNE} apoz".split()) == 2
    said = capsys.readouterr().err
    assert "'apoz' (Network Trimming" in said
    assert "is known and not implemented yet" in said


@pytest.mark.parametrize("came", [0.5, {"macs": 0.5}, None])
@pytest.mark.parametrize("name", ["l1", "lottery_ticket"])
def test_a_budget_that_is_none_is_told_what_to_write(name, came):
    takes = "(budget, train, finetune)" if name == "l1" else "(budget, train)"
    stages = [recipes.Train(1, 0.1, 64)] * (2 if name == "l1" else 1)
    with pytest.raises(errors.ArgumentError, match=r"jprune.Budget\(macs=0.5\)") as caught:
        recipes.find(name)(came, *stages)
    assert f"find({name!r}){takes}" in str(caught.value)
    with pytest.raises(errors.ArgumentError, match="got nothing as its budget"):
        recipes.find(name)()


@pytest.mark.parametrize("written", ["rounds", "allocator", "recalibrate"])
def test_an_option_without_a_value_is_told_that_it_wants_one(capsys, written):
    assert cli.main([*f"{PRUNE} l1 --set".split(), written]) == 2
    said = capsys.readouterr().err
    assert re.search(f"{written} of l1 wants a value: write {written}=", said), said
    assert "did you mean" not in said


def test_an_option_that_is_not_there_is_still_told_the_nearest(capsys):
    for written in ("round", "round=3"):
        assert cli.main([*f"{PRUNE} l1 --set".split(), written]) == 2
        assert "did you mean rounds?" in capsys.readouterr().err


def test_values_without_a_signature():
    read = recipes.read_values(["a=1", "b=0.5", "c=x", "d=1:2", "e-f=true"], "--data-options")
    assert read == {"a": 1, "b": 0.5, "c": "x", "d": (1.0, 2.0), "e_f": True}
    for texts in (["a"], ["a="], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(errors.ArgumentError, match=r"--data-options .*NAME=VALUE"):
            recipes.read_values(texts, "--data-options")
