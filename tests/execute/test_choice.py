"""From masks to a fast net: the roofline's verdicts, the machine's file, one call."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import errors, execute, kernels
from jprune.cost import ATOM, XEON, Machine, Work, works
from jprune.execute import machine as machines
from jprune.forms.csr import CSR
from jprune.forms.thin import Thin
from tests.nets import conv

CONV5 = Work(macs=256 * 192 * 9 * 13 * 13, activations=4 * 640 * 169, weights=4 * 256 * 192 * 9)
"""AlexNet's conv5, as in the roofline's tests."""
FAST = Machine(62e9, 1e12, 1.2)
"""A machine whose memory bounds nothing."""


def test_a_layer_is_sparse_below_the_density_of_the_roofline_and_dense_above():
    for machine in (XEON, ATOM):
        most = CONV5.useful(machine)[1]
        assert execute.verdict(CONV5, machine, 0.99 * most).form == "csr"
        assert execute.verdict(CONV5, machine, 1.01 * most).form == "dense"
    assert execute.verdict(CONV5, XEON, 0.09).speedup["csr"] == pytest.approx(3.704, rel=1e-3)


def test_columns_beat_weights_where_they_are_as_sparse():
    """A thin layer has alpha = 1: a third of the columns is 3 times as fast."""
    one = execute.verdict(CONV5, FAST, 1 / 3, columns=1 / 3, patches=4e3)
    assert one.form == "thin"
    assert one.speedup["thin"] == pytest.approx(3)
    assert one.speedup["csr"] == pytest.approx(3 / 1.2)
    # Few weights of many columns: single weights win.
    assert execute.verdict(CONV5, FAST, 0.05, columns=0.9, patches=4e3).form == "csr"
    # Patches that take longer to move than the sum takes.
    assert execute.verdict(CONV5, ATOM, 1 / 3, columns=1 / 3, patches=1e9).form == "csr"


def net(v, x):
    x = jax.nn.relu(conv(x, v["first"]))
    x = jax.nn.relu(conv(x, v["sparse"]))
    x = jax.nn.relu(conv(x, v["thin"]))
    x = jax.nn.relu(conv(x, v["grouped"], groups=2))
    return x.mean((1, 2)) @ v["out"]


SHAPES = {
    "first": (3, 3, 3, 8), "sparse": (3, 3, 8, 16), "thin": (3, 3, 16, 8),
    "grouped": (3, 3, 4, 8), "out": (8, 5),
}  # fmt: skip


def masked_net():
    rng = np.random.default_rng(0)
    variables = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()}
    masks = {
        "first": rng.random(SHAPES["first"]) < 0.95,
        "sparse": rng.random(SHAPES["sparse"]) < 0.1,
        "thin": np.ones(8, bool) & (rng.random((3, 3, 16, 1)) < 0.3),
        "grouped": rng.random(SHAPES["grouped"]) < 0.1,
        "out": None,
    }
    # The net's output does not depend on one channel of the second layer.
    masks["thin"][:, :, 5] = False
    return variables, masks, jnp.asarray(rng.normal(size=(2, 9, 9, 3)), jnp.float32)


def test_work_is_that_of_the_layers():
    variables, _, x = masked_net()
    found = works(net, variables, x, groups=jprune.trace(net, variables, x))
    assert [*found] == [*SHAPES]
    assert found["sparse"] == Work(2 * 81 * 9 * 8 * 16, 4 * 2 * 81 * (8 + 16), 4 * 9 * 8 * 16)
    assert found["grouped"].macs == 2 * 81 * 9 * 4 * 8
    assert found["out"] == Work(2 * 8 * 5, 4 * 2 * (8 + 5), 4 * 8 * 5)


def test_one_call_gives_every_layer_the_form_that_pays_and_the_same_answers():
    variables, masks, x = masked_net()
    fast, held = jprune.compact(net, variables, masks, x, machine=FAST)
    kinds = {name: type(leaf) for name, leaf in held.items()}
    assert (kinds["sparse"], kinds["thin"], kinds["grouped"]) == (CSR, Thin, CSR)
    assert isinstance(held["first"], jax.Array)
    assert held["sparse"].shape == (3, 3, 8, 15)  # the channel that nothing reads is gone
    masked = jprune.apply_masks(variables, masks)
    text = jax.jit(fast).lower(held, x).as_text()
    assert text.count("custom_call @jprune_sparse_lines_4") == 2
    expected, found = jax.jit(net)(masked, x), jax.jit(fast)(held, x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    other = jnp.concatenate([x, x + 1, x])[:5]
    np.testing.assert_allclose(
        fast(held, other), net(masked, other), atol=1e-4 * np.abs(net(masked, other)).max()
    )


def test_a_slow_machine_keeps_everything_dense():
    variables, masks, x = masked_net()
    slow = Machine(62e9, 1e12, 1000.0)
    masks["thin"] = None
    _, held = jprune.compact(net, variables, masks, x, machine=slow)
    assert all(isinstance(leaf, jax.Array) for leaf in held.values())


def test_without_numba_the_extra_is_named(monkeypatch):
    variables, masks, x = masked_net()
    monkeypatch.setattr(kernels.call, "available", lambda: False)
    with pytest.raises(errors.MissingExtraError, match=r"jprune\[sparse\]"):
        jprune.compact(net, variables, masks, x)


@pytest.fixture
def counted(monkeypatch):
    """Measuring, replaced: how often it was done."""
    times = []

    def measured():
        times.append(1)
        return Machine(1e11, 2e10, 1.5)

    monkeypatch.setattr(machines, "measured", measured)
    machines._at.cache_clear()
    yield times
    machines._at.cache_clear()


def test_the_machine_is_measured_once_and_its_file_is_read_again(tmp_path, counted):
    path = tmp_path / "new" / "machine.json"
    first = execute.this_machine(path)
    machines._at.cache_clear()
    assert execute.this_machine(path) == first == Machine(1e11, 2e10, 1.5)
    assert len(counted) == 1
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[: len(text) // 2], "machine.json"),
        (lambda text: "[]", "expected"),
        (lambda text: text.replace('"threads"', '"cores"'), "another threads"),
        (lambda text: text.replace('"alpha": 1.5', '"alpha": -1.5'), "above 0"),
        (lambda text: text.replace('"alpha"', '"a"'), "above 0"),
    ],
)
def test_a_damaged_foreign_or_stale_file_is_measured_anew_and_said(tmp_path, counted, change, why):
    path = tmp_path / "machine.json"
    execute.this_machine(path)
    right = path.read_text()
    path.write_text(change(right))
    machines._at.cache_clear()
    with pytest.warns(UserWarning, match=f"(?s){why}.*measured anew"):
        execute.this_machine(path)
    assert len(counted) == 2
    assert json.loads(path.read_text()) == json.loads(right)


def test_a_file_that_cannot_be_written_is_said_and_the_machine_serves(tmp_path, counted):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="Set JPRUNE_MACHINE"):
        machine = execute.this_machine(tmp_path / "file" / "machine.json")
    assert machine == Machine(1e11, 2e10, 1.5)
