"""Latency tables, measured with a stopwatch that computes: no test depends on time."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocate, errors, measure
from jprune.base import Budget
from jprune.cost import call_sites
from jprune.measure import sampling, tables
from jprune.measure.table import features

V = {"first": jnp.ones((3, 3, 3, 64)), "thin": jnp.ones((3, 3, 1, 64)), "last": jnp.ones((64, 5))}
EXAMPLE = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
NAMES = ("NHWC", "HWIO", "NHWC")


def net(v, x):
    conv = lambda x, kernel, groups=1: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=NAMES, feature_group_count=groups
    )
    x = jnp.maximum(conv(x, v["first"]), 0)
    x = jnp.maximum(conv(x, v["thin"], v["thin"].shape[-1]), 0)
    return x.mean((1, 2)) @ v["last"]


GROUPS = jprune.trace(net, V, EXAMPLE)
CALL, WRITTEN = 3.0, 1e-4


def site_ms(term):
    """A contraction of one example: twice as long where 8 does not divide the outputs."""
    slow = 1 + (np.round(term.outputs) % 8 != 0)
    return 1e-4 * term.positions * (1 + term.inputs) * (2 + term.outputs) * slow


def watch(calls):
    """Times of functions by what is contracted in them; a whole net takes some time besides."""
    times = {}
    for name, (fn, shape) in calls.items():
        closed = lambda variables, x, fn=fn: fn(x)
        sites = call_sites(closed, {}, shape, groups=jprune.trace(closed, {}, shape))
        terms = [site.term({}) for site in sites]
        times[name] = shape.shape[0] * sum(map(site_ms, terms))
        if len(sites) > 1:
            times[name] += CALL + WRITTEN * sum(term.written for term in terms)
    return times


def build(folder, notes=None, **others):
    note = (lambda text: None) if notes is None else notes.append
    settings: dict[str, Any] = {"batch": 4, "cache": folder, "note": note, "watch": watch, **others}
    return measure.latency_table(net, V, EXAMPLE, GROUPS, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("latency")
    build(place)
    return place


def model_of(table):
    return jprune.cost_model(net, V, jnp.ones(EXAMPLE.shape), groups=GROUPS, latency=table)


def test_the_table_predicts_nets_that_were_not_measured(folder):
    table = build(folder)
    cost = model_of(table)
    (name,) = GROUPS.sizes
    for width in (64, 57, 40, 33, 23, 16):
        masks = {name: np.arange(64) < width}
        closed = sampling.small(net, V, GROUPS, masks)
        (truth,) = watch(
            {"net": (closed, jax.ShapeDtypeStruct((4, 4, 4, 3), jnp.float32))}
        ).values()
        assert float(cost(masks).latency) == pytest.approx(truth, rel=0.05)
        # A width is as good as the mask, and jit as the host.
        jitted = jax.jit(lambda width: cost({name: width}).latency)(float(width))
        assert float(jitted) == pytest.approx(truth, rel=0.05)
    slope = jax.grad(lambda width: cost({name: width}).latency)(40.0)
    assert float(slope) > 0
    assert float(cost({name: np.zeros(64, bool)}).latency) < 0.2 * float(cost({}).latency)


def test_the_steps_of_the_table_are_the_multiple_of_the_budget(folder):
    table = build(folder)
    assert table.multiple_of == 8
    scores = {name: np.arange(size, dtype=float) for name, size in GROUPS.sizes.items()}
    cost = model_of(table)
    masks = allocate.uniform(scores, Budget(latency=0.7, multiple_of=8), cost)
    ((name, mask),) = masks.items()
    assert mask.sum() % 8 == 0
    wider = {name: np.arange(64) >= 64 - mask.sum() - 8}
    dense = float(cost({}).latency)
    assert float(cost(masks).latency) <= 0.7 * dense < float(cost(wider).latency)


def test_a_table_is_measured_once(folder):
    never = lambda calls: pytest.fail("it is in the cache")
    first, again = build(folder), build(folder, watch=never)
    assert first.sites == again.sites
    (file,) = folder.iterdir()
    assert file.name.startswith("xla-b4-")
    assert build(folder, watch=never).multiple_of == 8


def test_sites_of_equal_shapes_are_measured_once():
    calls = []
    counting = lambda asked: calls.append(len(asked)) or watch(asked)
    v = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 16))}
    fn = lambda v, x: x @ v["a"] @ v["b"]
    example = jax.ShapeDtypeStruct((2, 16), jnp.float32)
    groups = jprune.trace(fn, v, example)
    sites = call_sites(fn, v, example, groups=groups)
    sampling.measured_table(fn, v, example, groups, sites, "xla", counting)
    of_site = lambda site: {
        sampling.signature(site, gates) for gates in sampling.settings(groups, site)
    }
    # The first one's output axis is the second one's input axis: at whole widths they are equal.
    assert of_site(sites[0]) & of_site(sites[1])
    assert sum(calls) == len(of_site(sites[0]) | of_site(sites[1])) + sampling.NETS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[: len(text) // 2], "cannot be used (it is no JSON"),
        (lambda text: "\x00\xff", "cannot be used"),
        (lambda text: "[" * 9999, "cannot be used (it is nested deeper"),
        (lambda text: "{}", "has no `key`"),
        (lambda text: text.replace('"kind": "', '"kind": "Another '), "is of another device"),
        (lambda text: text.replace('"jaxlib": "', '"jaxlib": "0'), "is of another versions"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "is of another format"),
        (lambda text: text.replace('"scale": ', '"scale": "x", "was": '), "at `scale`"),
        (lambda text: text.replace('"weights": [', '"weights": [1.0, '), "is of another net"),
    ],
)
def test_a_cache_that_cannot_be_used_is_measured_anew_and_said(folder, tmp_path, change, says):
    (good,) = folder.iterdir()
    broken = tmp_path / good.name
    broken.write_text(change(good.read_text()), encoding="latin-1")
    notes = []
    assert build(tmp_path, notes).sites == build(folder).sites
    assert says in notes[0]
    assert str(broken) in notes[0]
    assert json.loads(broken.read_text()) == json.loads(good.read_text())
    assert os.listdir(tmp_path) == [broken.name]


def test_a_pipe_or_a_folder_in_its_place_is_no_cache(folder, tmp_path):
    (good,) = folder.iterdir()
    os.mkfifo(tmp_path / good.name)
    notes = []
    build(tmp_path, notes)
    assert "is no regular file" in notes[0]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    never = lambda calls: pytest.fail("the folder comes first")
    with pytest.raises(errors.CheckpointError, match="file/table cannot be written to"):
        build(tmp_path / "file" / "table", watch=never)


def test_what_a_target_cannot_do_is_refused(tmp_path):
    for others in ({"target": "onnx"}, {"target": "tflite", "batch": 2}, {"batch": 0}):
        with pytest.raises(errors.ArgumentError, match="write target="):
            build(tmp_path, **others)
    with pytest.raises(errors.ArgumentError, match="does not count latency"):
        allocate.uniform({"first": np.ones(64)}, Budget(latency=0.5), model_of(None))


@pytest.mark.parametrize("target", ["xla", "tflite"])
def test_the_real_stopwatch_runs_every_site(target):
    if target == "tflite":
        pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")
    example = jax.ShapeDtypeStruct((1, *EXAMPLE.shape[1:]), jnp.float32)
    sites = call_sites(net, V, example, groups=GROUPS)
    gates = sampling.gates_of(GROUPS, {name: np.arange(64) < 15 for name in GROUPS.sizes})
    calls = {str(site.site): sampling.alone(site, gates) for site in sites}
    assert [shape.shape[-1] for _, shape in calls.values()] == [3, 15, 15]
    times = sampling.stopwatch(target)(calls)
    assert times.keys() == calls.keys()
    assert min(times.values()) > 0


def test_features_are_those_of_both_axes():
    of = features(np.array([32.0, 33.0]), np.array([8.0, 8.0]))
    assert of.shape == (2, tables.FEATURES)
    assert of[0][:4].tolist() == [1, 32, 8, 256]
    # 8 is no multiple of 16, in the outputs alone; 33 of none of the steps.
    blocks = of.reshape(2, -1, 4)[:, :, 0]
    assert blocks.tolist() == [[1, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]
