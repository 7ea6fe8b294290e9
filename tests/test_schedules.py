"""Schedules against the tables of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jprune import errors, schedules

DENSITY = st.floats(0.001, 1.0)


def test_the_cubic_ramp_has_the_published_values():
    """[45] P2, B10: sparsity 0, .5203125, .7875, .8859375, .9 at quarters of the ramp."""
    schedule = schedules.cubic(0.1, begin=0, end=100)
    steps = jnp.array([0, 25, 50, 75, 100, 101, 10_000])
    sparsity = [0, 0.5203125, 0.7875, 0.8859375, 0.9, 0.9, 0.9]
    np.testing.assert_allclose(1 - schedule(steps), sparsity, atol=1e-7)


def test_the_cubic_ramp_is_its_formula_between_begin_and_end():
    schedule = schedules.cubic(0.2, begin=10, end=30, initial=0.8)
    for step in range(10, 31):
        expected = 0.2 + 0.6 * (1 - (step - 10) / 20) ** 3
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6)
    assert float(schedule(0)) == float(schedule(10)) == np.float32(0.8)


@given(DENSITY, st.integers(1, 20), st.integers(1, 50))
def test_iterative_rounds_remove_the_same_fraction(density, rounds, every):
    kept = [float(schedules.iterative(density, rounds, every)(r * every)) for r in range(rounds)]
    ratios = np.divide(kept, [1, *kept[:-1]])
    np.testing.assert_allclose(ratios, density ** (1 / rounds), rtol=1e-4)


@given(DENSITY, DENSITY)
def test_end_values_are_exact(density, initial):
    high, low = max(density, initial), min(density, initial)
    exact = np.float32(low)
    cubic = schedules.cubic(low, 3, 11, initial=high)
    iterative = schedules.iterative(low, rounds=7, every=3)
    one_shot = schedules.one_shot(low, at=5)
    assert float(cubic(11)) == float(iterative(18)) == float(one_shot(5)) == exact
    assert float(cubic(3)) == np.float32(high)
    assert float(one_shot(4)) == 1.0


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.one_shot(0.3, at=4),
        schedules.iterative(0.3, rounds=3, every=5),
        schedules.cubic(0.3, 2, 17),
    ],
)
def test_jitted_schedules_fall_from_1_to_their_end(schedule):
    steps = jnp.arange(40)
    jitted = jax.jit(jax.vmap(schedule))(steps)
    np.testing.assert_allclose(jitted, [float(schedule(int(step))) for step in steps], rtol=1e-6)
    assert (jnp.diff(jitted) <= 0).all()
    assert float(jitted[-1]) == np.float32(0.3)


def test_errors_say_what_to_write():
    for make, sentence in (
        (lambda: schedules.one_shot(0), "To remove 90 %, write density=0.1"),
        (lambda: schedules.one_shot(0.5, at=-1), "steps count from 0"),
        (lambda: schedules.iterative(1.5, 2, 2), "outside"),
        (lambda: schedules.iterative(0.5, 0, 2), "both are at least 1"),
        (lambda: schedules.cubic(0.5, 3, 3), "must have a length"),
        (lambda: schedules.cubic(0.5, 0, 3, initial=2), "initial=2"),
    ):
        with pytest.raises(errors.ArgumentError, match=sentence):
            make()
