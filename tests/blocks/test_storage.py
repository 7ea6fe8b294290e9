"""Bits of patterns: numbers of checks.md [3] P3, and entries written and read back one by one."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jprune
from jprune import blocks, errors
from tests.blocks.test_grains import groups_of

MAKERS = {
    "fine": blocks.weights,
    "vector": blocks.vectors,
    "kernel": blocks.kernels,
    "filter": blocks.rows,
    "column": blocks.columns,
}
SHAPE = (3, 3, 8, 8)  # HWIO


@pytest.mark.parametrize(
    ("grain", "bits"), [("fine", 1728), ("vector", 1344), ("kernel", 1216), ("filter", 1160)]
)
def test_bits_without_fillers(grain, bits):
    """P3: a quarter of 8 x 8 x 3 x 3; of filters, 2 of 8: 2 (72 * 8 + 4)."""
    made = MAKERS[grain](groups_of({"w": SHAPE}))
    (member,) = made["w"].members
    grid = member.grid(SHAPE)
    # Every fourth group in the order of the store, which is that of OIHW.
    places = np.arange(made["w"].size).reshape([grid[axis] for axis in (3, 2, 0, 1)])
    mask = (places % 4 == 3).transpose(2, 3, 1, 0).ravel()
    stored = blocks.storage(made, {"w": mask})["w"]
    assert stored == blocks.Storage(made["w"].size // 4, 0, bits, 4608)
    assert stored.ratio == pytest.approx(bits / 4608)


def entries(kept, count, bits):
    """What is written: (code, whether it is a filler), by counting zeros one after the other."""
    written, zeros = [], 0
    for place in range(count):
        if kept[place]:
            written.append((zeros, False))
            zeros = 0
        elif zeros == 2**bits - 1 and kept[place:].any():
            written.append((zeros, True))
            zeros = 0
        else:
            zeros += 1
    return written


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.01, 0.9))
def test_entries_are_those_of_a_writer_whose_reader_finds_every_place(seed, bits, density):
    kept = np.random.default_rng(seed).random(180) < density
    written = entries(kept, len(kept), bits)
    # position = cumsum(gap + 1) - 1
    places = np.cumsum([code + 1 for code, _ in written]) - 1
    stored = [place for place, (_, filler) in zip(places, written) if not filler]
    assert stored == np.flatnonzero(kept).tolist()
    groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((180, 1))}, jnp.ones(180))
    found = blocks.storage(blocks.weights(groups), {"w": kept}, 5, bits)["w"]
    assert found.kept + found.fillers == len(written)
    assert found.bits == len(written) * (5 + bits)


def test_fillers_dominate_where_little_is_left():
    """1 of 100 with gaps of 99 and 4 bits: 6 fillers an entry."""
    groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((1000, 1))}, jnp.ones(1000))
    mask = np.arange(1000) % 100 == 99
    found = blocks.storage(blocks.weights(groups), {"w": mask})["w"]
    assert (found.kept, found.fillers) == (10, 60)


@pytest.mark.parametrize("grain", MAKERS)
def test_the_layout_changes_no_bit(grain):
    rng = np.random.default_rng(0)
    shape = (2, 5, 3, 4)
    weights = np.where(rng.random(shape) < 0.03, 1.0, 0.0)
    weights[0, 0, 0, 0] = 1
    other = weights.transpose(3, 2, 0, 1)
    one, two = groups_of({"w": shape}), groups_of({"w": other.shape}, {"w": "OIHW"})
    stored = [
        blocks.storage(made, blocks.alive(made, {"w": kernel}), 8, 1)
        for made, kernel in ((MAKERS[grain](one), weights), (MAKERS[grain](two), other))
    ]
    assert stored[0] == stored[1]


def test_a_shorter_block_has_its_own_values_and_a_filler_is_whole():
    groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((5, 1))}, jnp.ones(5))
    made = blocks.block(groups, inputs=2)  # 2, 2 and 1 weights
    found = blocks.storage(made, {"w": np.array([False, False, True])}, 8, 1)["w"]
    assert found == blocks.Storage(kept=1, fillers=1, bits=1 * 8 + 1 + 2 * 8 + 1, dense=40)


def test_what_has_no_bits_is_refused():
    groups = groups_of({"w": SHAPE})
    made = blocks.kernels(groups)
    with pytest.raises(errors.ArgumentError, match="at least 1"):
        blocks.storage(made, {"w": np.ones(64, bool)}, index_bits=0)
    with pytest.raises(errors.StructureError, match="has no kernels"):
        blocks.storage(made, {"v": np.ones(64, bool)})
    with pytest.raises(errors.StructureError, match=r"shape \(63,\)"):
        blocks.storage(made, {"w": np.ones(63, bool)})
    fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
    variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
    units = blocks.filters(jprune.trace(fn, variables, jnp.ones((1, 2))))
    with pytest.raises(errors.ArgumentError, match=r"blocks\.rows"):
        blocks.storage(units, {"first": np.ones(3, bool)})
