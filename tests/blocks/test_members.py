"""Which leaves of a tree a method's paths mean, and groups over several leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import blocks, errors
from jprune.blocks.members import Block, Blocks, Member, along, by_kind, paths_among


def test_a_part_of_the_variables_is_found_by_its_paths():
    paths = ["params/a/kernel", "params/b/kernel"]
    part = {"a": {"kernel": 0, "bias": 1}, "b": {"kernel": 2}, "c": None}
    expected = ("params/a/bias", "params/a/kernel", "params/b/kernel")
    assert paths_among(paths, part) == expected
    assert paths_among(paths, {"params": part}) == expected
    assert paths_among(paths, {"params": part, "stats": {"a": 3}})[-1] == "stats/a"
    assert paths_among(["0/1"], [1, 2]) == ("0/0", "0/1")
    # The more paths are met, the better; of as many, the fewer names before them.
    assert paths_among(["x/a/w", "x/w"], {"a": {"w": 0}, "w": 1}) == ("x/a/w", "x/w")


def test_parts_that_cannot_be_told_apart_are_refused():
    with pytest.raises(errors.StructureError, match="those at params/a/ or at params/b/"):
        paths_among(["params/a/kernel", "params/b/kernel"], {"kernel": 0})
    with pytest.raises(errors.StructureError, match="none of a/kernel is among b"):
        paths_among(["a/kernel"], {"b": 0})


def test_positions_of_no_group_stay_as_they_are():
    units = np.array([0, -1, 1, 0])
    block = Block(2, (Member("w", (None, 1), units),), (Member("b", (1,), units),))
    made = Blocks("filter", "unit", {"g": block})
    leaves = {"b": jnp.ones(4), "w": jnp.array([[1.0, 5.0, 2.0, 3.0]])}
    assert blocks.squares(made, leaves)["g"].tolist() == [10, 4]
    assert blocks.norms(made, leaves)["g"].tolist() == [10**0.5, 2]
    after = blocks.scale(made, leaves, {"g": jnp.array([0.0, 2.0])})
    assert after["w"].tolist() == [[0, 5, 4, 0]]
    assert after["b"].tolist() == [0, 1, 1, 0]
    assert along(block.members[0], (1, 4), np.array([7, 8]), 0).tolist() == [[7, 0, 8, 7]]


def test_a_leaf_that_is_not_trained_is_left_out():
    fn = lambda v, x: (x @ v["a"] + x @ v["b"]) @ v["c"]
    variables = {name: jnp.ones((2, 2)) for name in "abc"}
    rows = blocks.filters(jprune.trace(fn, variables, jnp.ones(2)))
    assert blocks.norms(rows, variables)["a"].tolist() == [2, 2]
    assert blocks.norms(rows, {"a": variables["a"]})["a"].round(3).tolist() == [1.414, 1.414]


def test_what_belongs_to_kinds():
    first, second = (Blocks(kind, "weight", {}) for kind in ("row", "column"))
    assert by_kind(first, {"w": 1}, "x") == [(first, {"w": 1})]
    assert by_kind([first, second], 3, "x") == [(first, 3), (second, 3)]
    assert by_kind([first, second], {"column": 1, "row": 2}, "x") == [(first, 2), (second, 1)]
