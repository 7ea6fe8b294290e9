"""What stands beside a method: L1 and random at its own steps, random filters in its widths."""

import json

import numpy as np
import pytest
from scipy import stats

from jprune import compare
from jprune.compare import beside, order_figure
from jprune.compare.page import html, steps_text
from jprune.compare.steps import steps_of
from tests import compare_rows

HALF = ("macs", 0.5)
STEPS = {"before": 0, "under": 0, "after": 624}


def made():
    """Three seeds of L1, random and a method that trains half of its steps under a penalty."""
    rng = np.random.default_rng(1)
    rows = []
    for seed in range(3):
        for method, level in (("l1", 0.90), ("random", 0.88), ("ssl", 0.89)):
            accuracy = round(level + 0.01 * rng.normal(), 4)
            steps = STEPS if method != "ssl" else {"before": 0, "under": 312, "after": 312}
            rows.append(compare_rows.row(method, seed, 0.5, accuracy, steps=steps))
    return rows


def standing(method, accuracy, seed, settings, after=312):
    """A row beside others."""
    steps = {**STEPS, "after": after}
    row = compare_rows.row(method, seed, 0.5, accuracy, settings=settings, steps=steps)
    return row | {"id": f"{row['id']}-{settings}"}


def whole():
    """The same, with L1 and random at 312 steps, and random filters in the widths of SSL."""
    rows = made()
    for seed in range(3):
        rows.append(standing("l1", 0.87 + seed / 100, seed, {"beside": 312}))
        rows.append(standing("random", 0.86, seed, {"beside": 312}))
        rows.append(standing("random", 0.88, seed, {"choice": f"ssl-0.5-{seed}"}))
    return rows


def one(rows):
    (found,) = compare.summarize(rows)
    return found


def rules(rows):
    return {breach.rule: breach.says for breach in one(rows).breaches}


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5))
    found = beside.paired(dict(enumerate(first)), {**dict(enumerate(second)), 9: 0.0})
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(found[:3], (np.mean(first - second), *expected))
    assert found.n == 5
    assert beside.paired({0: 1.0}, {0: 0.5}) == (0.5, None, None, 1)
    assert beside.paired({0: 1.0}, {1: 0.5}) is None


def test_a_method_without_l1_at_its_own_steps_is_labelled():
    """Equal totals are not enough: half of them lay before the cut."""
    says = "no l1 at as many steps after the cut as ssl (312) has"
    found = [breach.says for breach in one(made()).breaches if breach.rule == "own_steps"]
    assert found == [says, says.replace("l1", "random")]
    assert "own_steps" not in rules(whole())
    # One seed of it is not all seeds.
    lacking = [row for row in whole() if row["settings"] != {"beside": 312} or row["seed"]]
    assert "own_steps" in rules(lacking)
    # Rows of older versions say nothing of it.
    older = [{k: v for k, v in row.items() if k != "steps"} for row in made()]
    assert "own_steps" not in rules(older)


def test_what_stands_beside_is_no_arm():
    comparison = one(whole())
    assert {cell.method for cell in comparison.cells} == {"dense", "l1", "random", "ssl"}
    assert len(comparison.orders) == 3
    assert "finetuning" not in rules(whole())


def test_a_method_is_measured_by_what_stands_beside_it():
    rows = whole()
    cells = {cell.method: cell for cell in one(rows).cells}
    own = {r["seed"]: r["pruned"]["accuracy"] for r in rows if r["method"] == "ssl"}
    assert cells["l1"].ahead == {}
    ahead = cells["ssl"].ahead
    assert ahead.keys() == {"l1", "random", "choice"}
    assert ahead["l1"].mean == pytest.approx(np.mean([own[s] - 0.87 - s / 100 for s in own]))
    assert ahead["random"].mean == pytest.approx(np.mean([own[s] - 0.86 for s in own]))
    assert ahead["choice"].mean == pytest.approx(np.mean([own[s] - 0.88 for s in own]))
    assert ahead["choice"].n == 3


def test_methods_with_the_usual_steps_have_the_usual_baselines_beside_them():
    taylor = [compare_rows.row("taylor", seed, 0.5, 0.9, steps=STEPS) for seed in range(3)]
    cells = {cell.method: cell for cell in one([*made(), *taylor]).cells}
    assert cells["taylor"].ahead.keys() == {"l1", "random"}


def test_the_page_and_the_json_tell_steps_and_distances():
    comparisons = compare.summarize(whole())
    page = html(comparisons).replace("\N{NO-BREAK SPACE}", " ")
    for words in ("Ahead of L1", "Choice", "0 + 312 + 312", "apart by more than chance"):
        assert words in page
    plain = json.loads(json.dumps(compare.plain(comparisons)))["comparisons"][0]
    cells = {cell["method"]: cell for cell in plain["cells"]}
    assert cells["ssl"]["steps"] == {"before": 0, "under": 312, "after": 312}
    assert cells["ssl"]["ahead"]["choice"]["n"] == 3
    assert plain["order_changes"][0]["difference"]["n"] == 3
    assert steps_text(cells["l1"]["steps"]) == "0 + 0 + 624"


def test_orders_are_one_picture():
    """As many dots as pairs, both ways, whose interval leaves out 0; equal rows, equal bytes."""
    rows = made()
    for row in rows:  # random far behind, the same in every seed
        lost = 0.3 if row["method"] == "random" else 0.0
        row["pruned"] = {**row["pruned"], "accuracy": round(row["pruned"]["accuracy"] - lost, 4)}
    comparison = one(rows)
    apart = {pair[1:] for pair, found in comparison.differences.items() if found.apart}
    assert {worse for _, worse in apart} >= {"random"}
    assert all(found.mean >= 0 for found in comparison.differences.values())
    assert order_figure.budgets_of(comparison) == [HALF]
    drawn = order_figure.orders_svg([comparison])
    assert drawn == order_figure.orders_svg(compare.summarize(rows))
    assert drawn.startswith("<?xml")


def test_steps_are_told_in_three():
    """Gates, rounds, and training that goes on behind the last stage that prunes."""
    of = lambda stages, **trained: tuple(steps_of(dict.fromkeys(stages.split()), trained).values())
    assert of("save dense prune before_finetune finetune", finetune=9) == (0, 0, 9)
    assert of("train gates prune begin_anew scratch", train=5, gates=6, scratch=7) == (5, 6, 7)
    assert of("train soft prune before_finetune", train=5, soft=8) == (5, 8, 0)
    rounds = "prune between prune-2 between-2 prune-3 finetune".split()
    trained = {"between": 2, "between-2": 3, "finetune": 4}
    assert steps_of(dict.fromkeys(rounds), trained) == {"before": 0, "under": 5, "after": 4}
    assert of("train save", train=5) == (5, 0, 0)


def test_sources_count_in_the_place_of_commits():
    """A commit that changes neither the job nor the method makes no other row."""
    code = lambda shared, method: {"shared": shared, "method": method}
    rows = whole()
    for number, row in enumerate(rows):
        row |= {"commit": f"{number:07d}", "code": code("a", row["method"])}
    assert "commits" not in rules(rows)
    rows[0]["code"] = code("b", "l1")
    assert rules(rows)["commits"] == "mixed sources of the job: a, b"
    rows[0]["code"] = code("a", "other")
    assert rules(rows)["commits"] == "mixed sources of l1"
    del rows[0]["code"]
    assert rules(rows)["commits"].startswith("mixed commits")
