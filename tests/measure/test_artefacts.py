"""Two nets in files: which runtimes are compared, what the ratio is, what is refused."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import cli, errors, export, measure
from jprune.measure import artefacts

EXAMPLE = jax.ShapeDtypeStruct((1, 3), jnp.float32)
KERNEL = jnp.ones((3, 2))


def net(variables, x):
    return x @ variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with both files, and files beside it."""
    pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")
    place = tmp_path_factory.mktemp("bench")
    (place / "run").mkdir()
    for suffix, write in ((".stablehlo", export.stablehlo), (".tflite", export.tflite)):
        content = write(net, KERNEL, EXAMPLE)
        for path in (place / "run" / f"model{suffix}", place / f"net{suffix}"):
            path.write_bytes(content)
    return place


@pytest.fixture
def scripted(monkeypatch):
    """Times of the first net are 1 to 10 ms, those of the second twice and a half of it."""

    def timings(calls, seconds):
        for call in calls.values():
            call()
        ones = np.arange(1.0, 11.0)
        return {"0": ones, "1": ones * np.where(np.arange(10) < 5, 2.0, 0.5)}

    monkeypatch.setattr(artefacts, "timings", timings)


def test_every_runtime_that_both_have_is_a_row(folder, scripted):
    both = ["XLA, batch 1", "XLA, batch 4", "TFLite, 1 thread", "TFLite, 2 threads"]
    cases = {
        ("run", "run"): both,
        ("run", "net.stablehlo"): both[:2],
        ("net.tflite", "run"): both[2:],
        ("net.stablehlo", "net.tflite"): ["XLA, batch 1 against TFLite, 1 thread"],
        ("net.tflite", "net.stablehlo"): ["TFLite, 1 thread against XLA, batch 1"],
    }
    for (first, second), runtimes in cases.items():
        rows = measure.bench(folder / first, folder / second, batches=(1, 4))
        assert [row["runtime"] for row in rows] == runtimes
        assert [row["batch"] for row in rows] == [4 if "4" in name else 1 for name in runtimes]
    # x [4, 3], weights [3, 2] and out [4, 2] of float32.
    rows = measure.bench(folder / "run", folder / "run", batches=(4,), threads=(1,))
    assert [row["peak_bytes"] for row in rows] == [(104, 104), (None, None)]


def test_the_ratio_is_one_of_rounds_and_not_of_medians(folder, scripted):
    (row,) = measure.bench(folder / "net.tflite", folder / "net.tflite", threads=(1,))
    assert row["ratio"] == {"median": 1.25, "p10": 0.5, "p90": 2.0}
    assert row["times"][0]["median"] == 5.5


def test_nets_of_one_batch_are_timed_with_it(folder, scripted):
    fixed = lambda v, x: net(v, x) * len([*range(x.shape[0])])
    for batch in (2, 5):
        example = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
        with pytest.warns(UserWarning, match=f"batches of {batch} only"):
            content = export.stablehlo(fixed, KERNEL, example)
        (folder / f"of{batch}.stablehlo").write_bytes(content)
    (row,) = measure.bench(folder / "of5.stablehlo", folder / "of5.stablehlo")
    assert (row["runtime"], row["batch"]) == ("XLA, batch 5", 5)
    with pytest.raises(errors.ArgumentError, match=r"takes batches of 5, and .* of 2"):
        measure.bench(folder / "of5.stablehlo", folder / "of2.stablehlo")


def test_what_is_no_net_is_refused_in_one_line(folder, capsys):
    for name in ("net.tflite", "net.stablehlo"):
        whole = (folder / name).read_bytes()
        for size, cut in itertools.product((0, 9, len(whole) // 2), ("cut",)):
            (folder / f"{cut}{size}{name[3:]}").write_bytes(whole[:size])
    (folder / "noise.tflite").write_bytes(b"\0" * 999)
    (folder / "notes.txt").write_text("no net")
    (folder / "empty").mkdir()
    says = {
        "cut0.tflite": "that are no .tflite model",
        "cut9.tflite": "that are no .tflite model",
        f"cut{len((folder / 'net.tflite').read_bytes()) // 2}.tflite": "that are no .tflite model",
        "noise.tflite": "that are no .tflite model",
        "cut9.stablehlo": "no exported net",
        f"cut{len((folder / 'net.stablehlo').read_bytes()) // 2}.stablehlo": "no exported net",
        "missing.tflite": "cannot be read: No such file",
        "notes.txt": "does not end in .stablehlo or .tflite",
        "empty": "is no finished run",
    }
    for name, words in says.items():
        assert cli.main(["bench", str(folder / "run"), str(folder / name)]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.count("\n") == 1
        assert words in err
        assert name in err
    assert cli.main(["bench", str(folder / "run")]) == 2
    assert cli.main(["bench", *[str(folder / "run")] * 2, "--batches", "0"]) == 2
    with pytest.raises(errors.ArgumentError, match="all are 1 or more"):
        measure.bench(folder / "run", folder / "run", threads=(0,))


def test_the_table_has_80_columns_and_json_all_of_it(folder, scripted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["bench", str(folder / "run"), str(folder / "run"), "--batches", "1,4"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A: {folder / 'run'}"
    assert max(map(len, lines[2:])) <= 80
    table = {line[:17].rstrip(): line.split() for line in lines[4:]}
    # Batch over the medians.
    assert table["XLA, batch 4"][-6:] == ["5.5", "4.25", "727", "941", "1.25", "(0.50-2.00)"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == dict(measure.device())
    assert [row["ratio"]["median"] for row in found["rows"]] == [1.25] * 4


def test_a_profile_has_the_counts_of_xla_beside_ours():
    variables, x = {"kernel": jnp.ones((3, 2))}, jnp.ones((7, 3))
    of = measure.profile(lambda v, x: jnp.tanh(x @ v["kernel"]), variables, x, repeats=10)
    assert of.flops == 2 * 7 * 3 * 2
    assert of.xla_flops is not None
    assert of.xla_flops >= of.flops
    assert of.peak_bytes is not None
    assert of.peak_bytes >= 4 * (3 * 2 + 7 * 3 + 7 * 2)
    assert of.images_per_second == pytest.approx(7000 / of.latency["median"])
    assert of.device == measure.device()


def test_a_profile_of_tflite_says_its_threads(folder):
    model = (folder / "net.tflite").read_bytes()
    of = measure.tflite_profile(model, threads=2, repeats=10)
    assert of.device["threads"] == 2
    assert of.flops is None
    assert of.images_per_second == pytest.approx(1000 / of.latency["median"])
    with pytest.raises(errors.CheckpointError, match=r"4 bytes came that are no \.tflite model"):
        measure.tflite_profile(b"four")


def test_another_clock_can_be_taken():
    ticks = itertools.count(0, 2_000_000)
    times = measure.timings({"a": lambda: None}, repeats=10, clock=lambda: next(ticks))
    assert times["a"].tolist() == [2.0] * 10
