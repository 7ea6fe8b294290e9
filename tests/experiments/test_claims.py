"""Claims that are run again run through, at a size that says nothing of them."""

import dataclasses
import importlib
import inspect
import math
import re
import sys
from collections import Counter
from string import Formatter

import pytest

from experiments import rows as files
from experiments.claims import claim as declared
from experiments.claims import e01, e02, e09, e13, fidelity, p33
from experiments.claims.__main__ import main, parsed
from experiments.claims.claim import Claim, Net, cases, find, is_done, names, run
from experiments.claims.statements import at_least, each, gap, listing, rising, several


def finite(row, *names):
    return all(math.isfinite(row[name]) for name in names)


def test_e01_has_a_row_an_arm():
    found = run(e01.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", *e01.STYLES, "obd_iterative"]
    assert [row["kept"] for row in found] == [1.0, *[0.8] * 5, 0.7]
    assert all(finite(row, "loss", "accuracy") for row in found)
    assert all((row["predicted"] is not None) == (row["arm"][:4] in ("obd", "obd_"))
               or row["arm"] == "obd_iterative" for row in found)  # fmt: skip


def test_e02_has_a_row_a_method():
    found = run(e02.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == list(e02.METHODS)
    for row in found:
        assert (row["weights"], len(row["losses"][0])) == (9, 9)
        assert 0 <= row["removed"][0] < 9
        assert row["losses"][0][0] == pytest.approx(found[0]["losses"][0][0])  # the same net
    obs, obd, magnitude = (row["losses"][0][1] for row in found)
    assert obs <= min(obd, magnitude)


@pytest.mark.slow
def test_fidelity_has_a_row_a_criterion():
    found = run(fidelity.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == list(fidelity.CRITERIA)
    assert all(finite(row, "rank", "within", "sets") for row in found)
    assert len({tuple(row["measured"]) for row in found}) == 1
    assert {len(row["predicted"]) for row in found} == {len(found[0]["measured"])}


@pytest.mark.slow
def test_e13_has_a_row_a_net():
    found = run(e13.CLAIM, smoke=True)
    arms = [(row["net"], row["arm"]) for row in found]
    assert arms[:2] == [("lenet300", "dense"), ("lenet300", "prox")]
    assert arms[-2:] == [("resnet8", "dense"), ("resnet8", "prox")]
    assert all(0 <= row["zeros"] <= 1 and 0 <= row["accuracy"] <= 1 for row in found)


@pytest.mark.slow
def test_p33_has_a_row_a_net():
    found = run(p33.CLAIM, smoke=True)
    pairs = [("P33a", "admm"), ("P33a", "magnitude"), ("P33b", "admm"), ("P33b", "magnitude")]
    assert [(row["part"], row["arm"]) for row in found] == [("dense", "dense"), *pairs]
    assert all(row["law"] < 1e-4 and row["density"] < 0.6 for row in found[1:])


def test_e09_has_a_row_a_net():
    found = run(e09.CLAIM, smoke=True)
    assert [row["arm"] for row in found] == ["dense", "reinit", "random_mask", "ticket"]
    assert [row["round"] for row in found] == [0, 1, 1, 1]
    assert found[0]["kept"] == 1
    assert all(row["kept"] == pytest.approx(0.8, abs=0.01) for row in found[1:])


@pytest.mark.parametrize("stem", names())
def test_a_claim_is_read_in_one_sitting(stem):
    module = importlib.import_module(f"experiments.claims.{stem}")
    assert len(inspect.getsource(module).splitlines()) <= 110


@pytest.mark.parametrize("stem", names())
def test_every_setting_says_what_it_means(stem):
    claim = find(stem)
    said = "\n".join(cls.__doc__ or "" for cls in type(claim.settings).__mro__)
    fields = [field.name for field in dataclasses.fields(claim.settings)]
    assert [name for name in fields if f"        {name}: " not in said] == []


@pytest.mark.parametrize("stem", names())
def test_remarks_compute_the_numbers_they_mention(stem):
    """Beside fields, a template has figures of papers and names, but no percentages or seeds."""
    claim = find(stem)
    assert not re.findall(r"\d+(?:\.\d+)? %|\d+ points|seed \d|\+-", claim.remarks)
    names_ = {name for _, name, _, _ in Formatter().parse(claim.remarks) if name}
    assert {*claim.figures} <= names_  # no figure is computed in vain
    text = claim.remarked(files.read(claim.file))
    assert "nan" not in text.split()
    assert "{" not in text


@pytest.mark.parametrize("stem", names())
def test_every_claim_has_the_rows_of_its_settings(stem):
    claim = find(stem)
    there = files.read(claim.file)
    assert claim.stem == stem
    assert all(is_done(claim, case, there) for case in cases(claim))
    assert {row["claim"] for row in there} == {claim.about["claim"]}
    missing = {row["seed"] for row in there} ^ {*claim.seeds}
    assert not missing


@dataclasses.dataclass(frozen=True)
class Toy:
    """Settings of a claim that trains nothing."""

    epochs: float = 1.0


def toy(fails=(), **more):
    """A claim that counts what is run; of some seeds it fails after the first arm."""
    ran = Counter()

    def arms(case):
        ran[case.net.name, case.seed] += 1
        yield {"arm": "dense", "accuracy": 0.5}, None
        if case.seed in fails:
            raise KeyboardInterrupt
        yield {"arm": "pruned", "accuracy": 0.5 + 0.01 * case.seed}, None

    usual = {
        "settings": Toy(),
        "nets": lambda settings: [Net("a", says={"net": "a"}), Net("b", says={"net": "b"})],
        "statements": (at_least("pruned - dense", "0", gap("accuracy", "pruned", "dense"), 0),),
        "plot": lambda rows, axes: None,
    }
    return Claim("toy", "Toy: a claim [1]", refs=(1,), arms=arms, **{**usual, **more}), ran


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "RESULTS", tmp_path)
    return tmp_path


def test_rows_that_are_there_are_not_made_again(folder):
    claim, ran = toy(seeds=(0, 1))
    assert len(run(claim)) == 8
    assert run(claim) == []
    assert len(run(dataclasses.replace(claim, seeds=(0, 1, 2)))) == 4
    assert {*ran.values()} == {1}
    assert len(run(dataclasses.replace(claim, settings=Toy(2.0)))) == 8  # other settings
    row, *_ = files.read(folder / "toy.jsonl")
    assert (row["claim"], row["refs"], row["net"], row["seed"]) == ("Toy", [1], "a", 0)
    assert (row["epochs"], row["smoke"], row["arm"]) == (1.0, False, "dense")


def test_a_case_that_was_stopped_has_no_rows_and_is_run_again(folder):
    claim, ran = toy(fails=(1,), seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        run(claim)
    assert Counter(row["seed"] for row in files.read(folder / "toy.jsonl")) == {0: 4}
    again, ran = toy(seeds=(0, 1))
    assert len(run(again)) == 4
    assert {*ran} == {("a", 1), ("b", 1)}


def test_a_try_writes_nothing_and_takes_one_seed(folder):
    claim, ran = toy(smoke=(Net("small"),))
    assert [row["smoke"] for row in run(claim, smoke=True)] == [True, True]
    assert {*ran} == {("small", 0)}
    assert not list(folder.iterdir())


def test_statements_go_seed_by_seed():
    claim, _ = toy()
    rows = [
        {"seed": seed, "arm": arm, "accuracy": accuracy}
        for seed, arm, accuracy in (
            (0, "dense", 0.5), (0, "pruned", 0.4), (1, "dense", 0.5), (1, "pruned", 0.7),
            (2, "dense", 0.5),
        )
    ]  # fmt: skip
    (finding,) = claim.findings(rows)
    assert finding == ("pruned - dense", "0", "5.00 ± 21.21", True)  # seed 2 has no pruned net
    assert claim.findings(rows[:1]) == []  # nothing is said of what is not there


def test_values_stand_side_by_side():
    rows = [{"seed": 0, "k": 1, "ms": 3.0, "law": 2e-7}, {"seed": 1, "k": 1, "ms": 5.0, "law": 0.0}]
    time, law, none = each("ms", k=1), each("law", k=1), each("ms", k=2)
    seen = []
    holds = lambda *lists: seen.append(lists) or True
    (finding,) = several("time; law", "-", holds, time.to(0, " ms"), law.worst, beside=[time])(rows)
    assert finding == ("time; law", "-", "4 ± 1 ms; 2e-07", True)
    assert seen == [([3.0, 5.0], [2e-7, 0.0], [3.0, 5.0])]
    assert [*several("time", "-", holds, time, none)(rows)] == []
    (finding,) = listing("times", "rising", {"a ": time.average(1), "b ": time.to(0)}, rising)(rows)
    assert finding == ("times", "rising", "a 4.0, b 4 ± 1", True)
    assert [*listing("times", "rising", [time, none], rising)(rows)] == []
    assert time.over(law).of(rows) == {0: 3.0 - 1e-7, 1: 5.0 - 1e-7}


def test_remarks_tell_settings_rows_and_constants():
    figures = {"mean": each("ms"), "text": lambda rows: f"{len(rows)} rows", "limit": 0.5}
    claim, _ = toy(remarks="{epochs:g} epochs, {mean:.1f} ms, {text}, {limit:g}.", figures=figures)
    rows = [{"seed": 0, "ms": 1.0}, {"seed": 1, "ms": 2.0}]
    assert claim.remarked(rows) == "1 epochs, 1.5 ms, 2 rows, 0.5."
    more = dataclasses.replace(claim, tried="Tried: 3.")
    assert more.remarked(rows[:0]) == "1 epochs, nan ms, 0 rows, 0.5. Tried: 3."


def test_the_command_reads_settings_seeds_and_nets():
    words = ["--seeds", "3", "--nets", "lenet5", "--epochs", "2", "--smoke"]
    claim, smoke = parsed(e13.CLAIM, words)
    assert (claim.seeds, claim.settings.epochs, smoke) == ((3,), 2.0, True)
    assert [case.net.name for case in cases(claim)] == ["lenet5"]
    claim, smoke = parsed(e13.CLAIM, [])
    assert (claim.settings, claim.seeds, smoke) == (e13.CLAIM.settings, (0, 1, 2), False)


def test_rows_say_the_command(monkeypatch):
    monkeypatch.chdir(files.RESULTS.parent.parent)
    script = files.RESULTS.parent / "claims" / "__main__.py"
    monkeypatch.setattr(sys, "argv", [str(script), "e13", "--seeds", "0"])
    assert files.provenance()["command"] == "python -m experiments.claims e13 --seeds 0"


def test_the_command_says_what_cannot_be(capsys):
    assert main(["e99"]) == 2
    assert "there is no claim 'e99'; did you mean e19?" in capsys.readouterr().err
    assert main(["e13", "--nets", "lenet"]) == 2
    assert "e13 has no net 'lenet'; did you mean lenet5?" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert "e09       E9: winning tickets [9]\n" in capsys.readouterr().out
    assert main([]) == 2
