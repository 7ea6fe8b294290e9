"""The clock, checked against a scripted one; where the numbers come from."""

import gc
import platform
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import errors, measure
from jprune.measure import clock, nets, provenance


class Clock:
    """A clock that only calls move; stands in for the module `time`."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def perf_counter_ns(self):
        return round(self.now * 1e9)


@pytest.fixture
def scripted(monkeypatch):
    scripted = Clock()
    monkeypatch.setattr(clock, "time", scripted)
    return scripted


def test_interleaved_gives_percentiles_in_milliseconds(scripted):
    durations = {"fast": np.arange(1, 13) * 1e-3, "slow": np.arange(12, 0, -1) * 1e-2}
    played = {name: iter([9.0, 9.0, *values]) for name, values in durations.items()}

    def call(name):
        scripted.now += next(played[name])

    times = measure.interleaved(
        {"fast": lambda: call("fast"), "slow": lambda: call("slow")}, repeats=12, warmup=2
    )
    for name, values in durations.items():
        p10, median, p90 = np.percentile(values * 1e3, [10, 50, 90])
        assert times[name]["median"] == pytest.approx(median)
        assert times[name]["p10"] == pytest.approx(p10)
        assert times[name]["p90"] == pytest.approx(p90)


def test_interleaved_takes_turns_and_every_round_begins_with_another():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    measure.interleaved(calls, repeats=10, warmup=1)
    assert "".join(order[:12]) == "abc" + "abc" + "bca" + "cab"
    assert len(order) == 3 * 11


def test_interleaved_goes_on_until_the_seconds_are_spent(scripted):
    def second():
        scripted.now += 1

    counted = []
    measure.interleaved({"a": lambda: (second(), counted.append(1))}, warmup=0, seconds=35.0)
    assert len(counted) == 35


def test_interleaved_turns_the_garbage_collector_off_and_on_again():
    seen = []
    measure.interleaved({"a": lambda: seen.append(gc.isenabled())}, repeats=10)
    assert not any(seen)
    assert gc.isenabled()

    with pytest.raises(ZeroDivisionError):
        measure.interleaved({"a": lambda: 1 // 0}, repeats=10)
    assert gc.isenabled()


def test_interleaved_refuses_percentiles_of_too_few():
    with pytest.raises(errors.ArgumentError, match="at least 10 repeats"):
        measure.interleaved({"a": lambda: None}, repeats=9)
    with pytest.raises(errors.ArgumentError, match="no call to time"):
        measure.interleaved({})


def test_latency_compiles_before_the_clock_runs():
    traced = []

    def fn(x):
        traced.append(x)
        return x + 1

    times = measure.latency({"fn": (fn, (np.ones(3, np.float32),))}, repeats=10)
    assert len(traced) == 1
    assert set(times["fn"]) == {"median", "p10", "p90"}
    assert 0 < times["fn"]["p10"] <= times["fn"]["median"] <= times["fn"]["p90"]


def test_xla_latency_closes_over_the_variables(monkeypatch):
    timed = []

    def fake(calls, repeats, warmup, seconds):
        timed.append({name: args for name, (_, args) in calls.items()})
        return {name: fn(*args) for name, (fn, args) in calls.items()}

    monkeypatch.setattr(nets, "latency", fake)
    fn = lambda v, x: (v["bias"], x.shape)
    example = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    table = measure.xla_latency((fn, {"bias": 1}), (fn, {"bias": 2}), example, batches=(1, 128))
    assert table == {
        "dense": {"xla_b1": (1, (1, 2, 3)), "xla_b128": (1, (128, 2, 3))},
        "slim": {"xla_b1": (2, (1, 2, 3)), "xla_b128": (2, (128, 2, 3))},
    }
    # One argument, the same for both: what depends on variables alone can be folded.
    for calls in timed:
        assert len(calls["dense"]) == len(calls["slim"]) == 1
        assert calls["dense"][0] is calls["slim"][0]


def test_xla_latency_measures_real_nets():
    fn = lambda v, x: x @ v["kernel"]
    example = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    table = measure.xla_latency(
        (fn, {"kernel": jnp.ones((3, 8))}),
        (fn, {"kernel": jnp.ones((3, 4))}),
        example,
        batches=(1, 4),
        repeats=10,
    )
    assert {name: set(entry) for name, entry in table.items()} == {
        "dense": {"xla_b1", "xla_b4"},
        "slim": {"xla_b1", "xla_b4"},
    }
    with pytest.raises(errors.ArgumentError, match="at least one example"):
        measure.xla_latency((fn, {}), (fn, {}), example, batches=(0,))


def test_tflite_latency_times_models_in_turns():
    pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")
    from jprune import export

    example = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    model = export.tflite(lambda v, x: x @ v, jnp.ones((3, 2)), example)
    times = measure.tflite_latency({"dense": model, "slim": model}, threads=1, repeats=10)
    assert set(times) == {"dense", "slim"}
    assert 0 < times["slim"]["p10"] <= times["slim"]["median"] <= times["slim"]["p90"]


def test_device_names_the_processor():
    device = measure.device()
    assert device["platform"] == jax.devices()[0].platform
    assert device["kind"] not in ("", "cpu")
    assert device["threads"] >= 1


def test_versions_are_those_that_run(monkeypatch):
    versions = measure.versions()
    assert versions["python"] == platform.python_version()
    assert (versions["jax"], versions["numpy"]) == (jax.__version__, np.__version__)
    assert {"jprune", "jaxlib", "flax", "optax", "orbax-checkpoint"} <= set(versions)

    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert measure.versions()["no-such-package"] is None


def git(folder, *arguments):
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_source_tree_or_none(tmp_path, monkeypatch):
    package = tmp_path / "jprune"
    (package / "measure").mkdir(parents=True)
    shutil.copy(Path(jprune.__file__).parent / "base.py", package)
    monkeypatch.setattr(provenance, "__file__", str(package / "measure" / "provenance.py"))
    assert measure.commit() is None

    # Inside some other repository, as in an environment below it: still not ours.
    git(tmp_path, "init", "--quiet")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    git(tmp_path, *identity, "commit", "--quiet", "--allow-empty", "-m", "Other")
    assert measure.commit() is None

    git(tmp_path, "add", "jprune/base.py")
    git(tmp_path, *identity, "commit", "--quiet", "-m", "Ours")
    assert measure.commit() == git(tmp_path, "rev-parse", "HEAD")


def test_commit_without_git_is_none(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert measure.commit() is None


def test_a_cost_model_is_jitted():
    x = jnp.ones((2, 3))
    v = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 4))}
    net = lambda v, x: jnp.tanh(x @ v["first"]) @ v["second"]
    groups = jprune.trace(net, v, x)
    model = jprune.cost_model(net, v, x, groups=groups)
    masks = {"first": jnp.arange(8) < 5}
    assert float(jax.jit(model)(masks).macs) == float(model(masks).macs) == 3 * 5 + 5 * 4
