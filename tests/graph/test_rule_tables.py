"""A primitive with a rule of labels is in every other table that needs it."""

from jprune.graph.couple import arithmetic, at_zero, interpret
from jprune.graph.couple.rules import RULES
from jprune.graph.look import flow
from jprune.graph.shrink import bodies, rules
from jprune.jaxprs import CONTROL_FLOW, INLINED, NESTED

KNOWN_TO_THE_INTERPRETER = (interpret, bodies)  # imported, so that their rules are registered
MADE_FROM_NOTHING = {"iota", "random_bits", "random_gamma", "rng_uniform", "empty", "empty2"}
"""No operand of theirs shrinks: they are run whole and then cut, as every such primitive is."""
KEYS = {name for name in RULES if name.startswith("random_")} | {"threefry2x32"}
"""Random keys are no channels, so they never shrink."""


def test_what_carries_labels_can_shrink():
    can_shrink = {*rules.RULES, *rules.SHAPELESS}
    missing = {*RULES} - can_shrink - MADE_FROM_NOTHING - KEYS
    assert not missing


def test_bodies_can_shrink():
    """All that keeps its body is rebuilt around the smaller one."""
    assert not {*NESTED} - {*rules.RULES}
    assert {*NESTED} > CONTROL_FLOW
    assert not {*INLINED} & {*NESTED}


def test_what_maps_zero_to_zero_is_said_once():
    """Every elementwise function is in one of the lists of `at_zero`, and in no two."""
    lists = (at_zero.ANY, at_zero.ALL, at_zero.FIRST, at_zero.ALONE)
    named = [name for each in lists for name in each]
    assert len(named) == len({*named})
    assert {*named} <= {*arithmetic.ELEMENTWISE}
    assert {*arithmetic.ELEMENTWISE} == {*at_zero.ALONE} | (
        {*arithmetic.ELEMENTWISE} & {*at_zero.CHANGES}
    )


def test_flow_knows_elementwise_functions_by_the_list_of_rules():
    assert {*flow.POINTWISE} <= {*arithmetic.ELEMENTWISE} | {"custom_jvp_call", "custom_vjp_call"}
    assert {*flow.AFFINE} <= {*flow.POINTWISE}
    assert {*flow.SUMS} <= {*flow.AFFINE}
