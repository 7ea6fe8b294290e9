"""Random nets and random masks obey the law; what they cover is counted."""

import os
from collections import Counter

import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

import jprune
from jprune.jaxprs import program_of
from tests.law import check_law, random_masks
from tests.nets import draw
from tests.random_nets import KINDS, Step, build

DRAWS = int(os.environ.get("JPRUNE_DRAWS", "50"))
NUMBERS = st.integers(0, 59)
STEPS = st.builds(
    lambda kinds, numbers: [Step(kind, *n) for kind, n in zip(kinds, numbers)],
    st.permutations(sorted(KINDS)),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=4, max_size=9),
)
PRIMITIVES = """
    add broadcast_in_dim concatenate conv_general_dilated custom_jvp_call div dot_general gather
    mul pad reduce_sum reshape rev rsqrt slice sub transpose
""".split()


def test_random_nets_obey_the_law(float64):
    seen = Counter()

    @settings(
        max_examples=DRAWS,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps=STEPS, flat=st.booleans(), seed=st.integers(0, 9), density=st.floats(0.3, 0.9))
    def law(steps, flat, seed, density):
        net = build(steps, flat)
        variables, inputs = draw(net, seed, jnp.float64)
        groups = jprune.trace(net.fn, variables, *inputs)
        masks = random_masks(groups, seed, density)
        program, _ = program_of(net.fn, variables, *inputs)
        seen.update({equation.name for equation in program.equations})
        seen.update({"draws"} | {step.kind.removesuffix(" again") for step in steps})
        try:
            jprune.slim(net.fn, groups, masks)
        except jprune.errors.StructureError as error:
            if "together keep nothing" not in str(error):
                raise
            reject()  # rows and columns of a split can hit disjoint halves
        if any(not mask.all() for mask in masks.values()):
            seen.update({"prunable"})
            check_law(net.fn, variables, inputs, masks, groups, net.bound)

    law()
    assert seen["draws"] >= DRAWS
    assert seen["prunable"] >= 0.8 * DRAWS
    rare = {
        name: seen[name] for name in (*PRIMITIVES, *KINDS) if seen[name.removesuffix(" again")] < 3
    }
    assert not rare


REGRESSIONS = {
    # Of the rows of a shuffle one had places of its own kind with the columns: one mask took all.
    "rows and columns in one group": (
        "activation 0 0 0, activation 0 0 0, split 0 0 1, add 0 0 1, attention 0 0 0,"
        "multiply 0 0 0, depthwise 0 0 0, concat 0 0 0, shuffle 0 0 0",
        False,
        1,
    ),
    # What a norm freezes decides which rows and columns two splits share: slim must not ask again.
    "splits that share less without a norm": (
        "rows 58 46 12, concat 59 36 53, grouped 59 52 48, concat 6 18 21, group norm 57 43 47,"
        "conv 17 15 55",
        False,
        567,
    ),
}


@pytest.mark.parametrize("case", REGRESSIONS)
def test_nets_that_once_failed(case, float64):
    text, flat, seed = REGRESSIONS[case]
    words = [part.rsplit(maxsplit=3) for part in text.split(",")]
    steps = [Step(kind.strip(), *map(int, numbers)) for kind, *numbers in words]
    net = build(steps, flat)
    variables, inputs = draw(net, seed, jnp.float64)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = random_masks(groups, seed, 0.6)
    assert any(not mask.all() for mask in masks.values())
    check_law(net.fn, variables, inputs, masks, groups, net.bound)
