"""Options as text: every spelling becomes a value of the annotated type, and goes back to text."""

import dataclasses

import numpy as np
import pytest

from jprune import errors, recipes
from jprune.base import Budget
from jprune.recipes import Train, find
from jprune.recipes.options import numbers, options, written
from jprune.train.numbers import per_name

SHORT = Train(1, 0.01, name="finetune")


@pytest.mark.parametrize(
    ("method", "text", "value"),
    [
        ("han", "q=scan", "scan"),
        ("han", "q=1", 1.0),
        ("han", "q=0.4:1:1:0.7", (0.4, 1.0, 1.0, 0.7)),
        ("thinet", "ratios=inf:1", (np.inf, 1.0)),
        ("thinet", "ratios=inf", np.inf),
        ("channel_lasso", "ratios=3:3:5", (3.0, 3.0, 5.0)),
        ("channel_lasso", "ridge=1e-3", 1e-3),
        ("channel_lasso", "ridge=null", None),
        ("dns", "c_rate=3:3:4:3", (3.0, 3.0, 4.0, 3.0)),
        ("dns", "c-rate=1e+1:2", (10.0, 2.0)),
        ("dns", "c_rate=null", None),
        ("three_d", "dimensions=depth:width", "depth:width"),
        ("fbs", "gates=params/a/*:params/b/*", "params/a/*:params/b/*"),
        ("fbs", "gates=1:2", "1:2"),
    ],
)
def test_a_text_becomes_a_value(method, text, value):
    option = text.partition("=")[0].replace("-", "_")
    read = recipes.read_options(method, [text])
    assert read == {option: value}
    assert type(read[option]) is type(value)


@pytest.mark.parametrize(
    ("method", "text", "says"),
    [
        ("han", "q=scam", "q of han takes float or numbers with ':' between or scan, not 'scam'"),
        ("han", "q=1:x", "q of han takes .*, not '1:x'"),
        ("han", "q=nan", "q of han takes .*, not 'nan'"),
        ("thinet", "ratios=1:2+3", "ratios of thinet takes float or numbers with ':' between, not"),
        ("dns", "c_rate=many", "c_rate of dns takes .* or null, not 'many'"),
        ("three_d", "dimensions=3", "dimensions of three_d takes str, not '3'"),
    ],
)
def test_another_text_is_refused_with_what_to_write(method, text, says):
    with pytest.raises(errors.ArgumentError, match=says):
        recipes.read_options(method, [text])


@pytest.mark.parametrize(
    "text", ["0.5", "0.4:1:1", "0.4:1+0.3", "inf:1", "0.5+0.3", "0.123456789:1"]
)
def test_numbers_are_written_as_they_are_read(text):
    value = numbers(text)
    assert numbers(str(written(value))) == value
    assert text.count(":") == 0 or written(value) == text


def test_what_is_no_sequence_is_written_as_it_is():
    for value in (None, True, 3, 0.5, "scan", {"a": 1}):
        assert written(value) == value


def test_every_method_has_options_that_can_be_typed():
    for method in recipes.METHODS:
        assert all(isinstance(name, str) for name in options(method))
    assert "q" in options("han")
    assert "criterion" not in options("l1")


def test_python_passes_numbers_sequences_or_names():
    names = ("a", "b")
    assert per_name({"b": 2, "a": 1}, names, "q") == per_name([1, 2], names, "q")
    for q in (0.5, (1, 2), [1, 2], {"a": 1, "b": 2}):
        scan = next(
            s for s in find("han")(Budget(density=0.5), None, SHORT, q=q) if s.name == "scan"
        )
        assert scan.q == q


def test_a_word_for_numbers_is_refused_before_anything_runs():
    with pytest.raises(errors.ArgumentError, match="q='sca'; write 'scan', a number"):
        find("han")(Budget(density=0.5), None, dataclasses.replace(SHORT), q="sca")
