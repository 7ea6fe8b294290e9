"""Labels and tables of one comparison: they go through the methods in one order, and say means."""

import itertools
import re

import numpy as np
import pytest

from jprune import compare
from jprune.compare import page
from tests import compare_rows
from tests.compare_rows import row


def one(made, metric="accuracy"):
    (comparison,) = compare.summarize(made, metric)
    return comparison


def seeds_of(method, *accuracies, macs=0.5, achieved=None):
    """A row per accuracy; `achieved` are the MACs that each keeps."""
    made = [row(method, seed, macs, value) for seed, value in enumerate(accuracies)]
    for each, kept in zip(made, achieved or ()):
        each["achieved"] = {**each["achieved"], "macs": kept}
    return made


def orders_of(made, metric="accuracy"):
    """The order of the methods in both tables of a page."""
    text = page.html([one(made, metric)])
    names = {each["method"] for each in made}
    parts = text.split(">Methods<")[1].split(">Order over the seeds<")
    return [list(dict.fromkeys(re.findall(f">({'|'.join(names)})<", part))) for part in parts]


def test_a_mean_ahead_in_fewer_seeds_stands_first_in_both_tables():
    made = seeds_of("level", 0.85, 0.85, 0.85) + seeds_of("steep", 0.99, 0.8, 0.8)
    assert orders_of(made) == [["steep", "level"]] * 2
    assert one(made).orders == [(("macs", 0.5), "steep", "level", 2, 3)]
    # Where less is better, the loss 4 (1 - accuracy), the same one is ahead.
    assert orders_of(made, "loss") == [["steep", "level"]] * 2


def test_ties_go_by_name_whatever_the_order_of_the_rows():
    # Means are equal; sums of the differences are -2.8e-17 and 2.8e-17.
    parts = seeds_of("b", 0.9, 0.8, 0.7), seeds_of("a", 0.8, 0.8, 0.8), seeds_of("c", 0.7, 0.9, 0.8)
    assert sum(b - a for b, a in zip((0.9, 0.8, 0.7), (0.8,) * 3)) != 0
    for order in itertools.permutations(parts):
        made = [each for part in order for each in part]
        assert orders_of(made) == [["a", "b", "c"]] * 2
        assert [found[1:3] for found in one(made).orders] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_rows_in_another_order_are_the_same_comparison():
    made = compare_rows.rows() + seeds_of("l1", 0.9, 0.9, macs=0.75, achieved=(0.6, 0.75))
    made += [{**each, "budget": {"params": 0.5}} for each in seeds_of("l2", 0.9, 0.8)]
    text = compare.plain([one(made)])
    for seed in range(3):
        mixed = [made[place] for place in np.random.default_rng(seed).permutation(len(made))]
        again = compare.plain([one(mixed)])
        text["comparisons"][0]["commands"] = again["comparisons"][0]["commands"] = []
        assert again == text
    budgets = lambda key: list(
        dict.fromkeys(str(each["budget"]) for each in text["comparisons"][0][key] if each["budget"])
    )
    assert [each for each in budgets("cells") if each in budgets("order_changes")] == budgets(
        "order_changes"
    )


@pytest.mark.parametrize(
    ("achieved", "says"),
    [
        ((0.377, 0.5, 0.5), "l1 keeps 45.9 % for 50.0 % on average, missed in 1 of 3 seeds"),
        ((0.4, 0.6, 0.5), "l1 keeps 50.0 % for 50.0 % on average, missed in 2 of 3 seeds"),
        ((0.4,), "l1 keeps 40.0 % for 50.0 %"),
        ((0.49, 0.51, 0.5), None),
    ],
)
def test_a_budget_that_some_seed_misses_is_labelled_with_the_mean(achieved, says):
    made = seeds_of("l1", *[0.9] * len(achieved), achieved=achieved)
    said = [breach.says for breach in one(made).breaches if breach.rule == "budgets"]
    assert said == ([f"budgets missed by more than 5 %: {says}"] if says else [])
    (mean,) = [cell.spreads["macs"].mean for cell in one(made).cells if cell.budget]
    assert says is None or f"keeps {100 * mean:.1f} %" in says
